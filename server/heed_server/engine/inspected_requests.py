"""The worker's book of inspections: whose attention is measured, and what was measured. No vLLM here."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.recording import LayerRows, Recording
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload
from heed_server.engine.twins import Outputs, Twins

RECORDINGS_KEPT = 32
"""Recordings kept until the API process takes them; the oldest go first."""


@dataclass(frozen=True)
class InspectedRows:
    """Rows of one request in one step that are inspected: an observer and a comparer of the step.

    item: int32 [5], as in `plan.Pattern.items`.
    """

    recording: Recording
    item: NDArray[np.int32]

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        start, count = int(self.item[FIRST_TOKEN]), int(self.item[ROWS])
        blocks = inputs.block_table[int(self.item[BLOCK_TABLE_ROW])]
        rows = LayerRows(
            inputs.query[start : start + count],
            Pages.of(inputs.kv_cache, blocks, inputs.layout),
            int(self.item[FIRST_POSITION]),
            inputs.scale,
            inputs.rope,
        )
        self.recording.observe(layer, rows)

    def after_edits(self, layer: int, inputs: LayerInputs, output: torch.Tensor) -> None:
        """See `step.Comparer`. Nothing is multiplied."""
        last = self.recording.inspection.length - 1 - int(self.item[FIRST_POSITION])
        if 0 <= last < int(self.item[ROWS]):
            self.recording.compare(layer, output[int(self.item[FIRST_TOKEN]) + last])


class InspectedRequests:
    """Recordings by slot of the edit table, and by report id until they are taken.

    A request's own reports may say what it attends to in images: such recordings go by slot alone.

    twins: the worker's book of them.
    """

    def __init__(self, table: EditTable, twins: Twins) -> None:
        self._table, self._twins = table, twins
        self._by_slot: dict[int, Recording] = {}
        self._on_images: dict[int, Recording] = {}
        self._by_report: OrderedDict[str, Recording] = OrderedDict()

    def enter(self, slot: int, payload: Payload) -> None:
        """A request has got its slot; after a preemption it starts again.

        Raises `EditError` when it is to be compared with a twin that left nothing.
        """
        if payload.on_images is not None:
            seen = Recording(payload.on_images, payload.edits, self._table, slot)
            self._on_images[slot] = seen
        if payload.inspection is None:
            return
        without = self._outputs_of_twin(payload) if payload.inspection.without else None
        recording = Recording(payload.inspection, payload.edits, self._table, slot, without)
        self._by_slot[slot] = recording
        self._by_report[payload.report] = recording
        while len(self._by_report) > RECORDINGS_KEPT:
            self._by_report.popitem(last=False)

    def leave(self, slot: int) -> None:
        """The slot's request is gone; what was measured stays until it is taken."""
        self._by_slot.pop(slot, None)
        self._on_images.pop(slot, None)

    def on_images(self, slot: int) -> dict[str, Any] | None:
        """Masses of the prompt's last row, where they have been seen: by layer and query head of this
        rank, on each set of keys."""
        recording = self._on_images.get(slot)
        if recording is None or recording.failure is not None:
            return None
        masses = recording.arrays()["mass"][:, :, 0].tolist()
        layers = recording.inspection.layers
        return {"masses": {str(layer): each for layer, each in zip(layers, masses, strict=True)}}

    def _outputs_of_twin(self, payload: Payload) -> Outputs:
        before = self._by_report.get(payload.report)
        if before is not None and before.without is not None:
            return dict(before.without)
        return self._twins.take(payload.report)

    def comparers(self, items: NDArray[np.int32]) -> tuple[InspectedRows, ...]:
        """Which rows of a step hold outputs that are compared; items as in `observers`."""
        return tuple(each for each in self.observers(items) if each.recording.without is not None)

    def observers(self, items: NDArray[np.int32]) -> tuple[InspectedRows, ...]:
        """Which rows of a step are inspected.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        return tuple(
            InspectedRows(book[int(item[SLOT])], item)
            for book in (self._by_slot, self._on_images)
            if book
            for item in items
            if int(item[SLOT]) in book
        )

    def take(self, report: str) -> dict[str, Any] | None:
        """What was measured for an engine request, once, as plain values; None for one that is not known.

        failure: why there is nothing, or None. heads: of the inspection and this rank. arrays: by
        quantity the shape, and float32 little-endian bytes [layers, heads, …].
        """
        recording = self._by_report.pop(report, None)
        if recording is None:
            return None
        failure = recording.failure
        arrays = recording.arrays() if failure is None else {}
        return {
            "failure": failure,
            "heads": recording.heads,
            "arrays": {
                name: [list(array.shape), array.astype("<f4").tobytes()]
                for name, array in arrays.items()
            },
        }
