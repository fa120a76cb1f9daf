"""The worker's book of inspections: whose attention is measured, and what was measured. No vLLM here."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.recording import LayerRows, Recording, RecordingDevice
from heed_kernels.device import LayerInputs
from heed_kernels.errors import EditError
from heed_kernels.inspection import Inspection
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT, Plan
from heed_kernels.table import EditTable
from heed_server.engine.books.twins import Outputs, Twins
from heed_server.engine.payload import Payload
from heed_server.engine.running.step import Observer

RECORDINGS_KEPT = 32
"""Recordings kept until the API process takes them; the oldest go first."""
MOST_BYTES_KEPT = 256 << 20
"""Of all of them together: sixteen of the largest that are measured for a client."""


class Inspecting(RecordingDevice, Protocol):
    """How requests are inspected on a device."""

    def enter(self, slot: int, inspection: Inspection) -> None:
        """A request has got its slot. Raises `EditError` where there is no room for what it measures."""
        ...

    def leave(self, slot: int) -> None:
        """Nothing of the slot's request is held any more."""
        ...

    def observer(self, recordings: Sequence[Recording], items: NDArray[np.int32]) -> Observer:
        """What adds the rows of a step to the column sums of several requests.

        items: int32 [requests, 5], as in `plan.Pattern.items`, one for each of `recordings`.
        """
        ...


@dataclass(frozen=True)
class InspectedRows:
    """Rows of one request in one step that are inspected: an observer and a comparer of the step.

    item: int32 [5], as in `plan.Pattern.items`.
    """

    recording: Recording
    item: NDArray[np.int32]

    def load(self, plan: Plan) -> None:
        """See `device_edits.DeviceObserver`: there is nothing to be prepared."""

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        start, count = int(self.item[FIRST_TOKEN]), int(self.item[ROWS])
        rows = LayerRows(
            inputs.query[start : start + count],
            inputs.pages(int(self.item[BLOCK_TABLE_ROW])),
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


class InspectedRequest:
    """What one request has measured.

    recording: None where it measures nothing, and failure says why. without: what its last row is compared
    with, for it to be there again after a preemption. reported: whether it is for its own reports.
    """

    def __init__(
        self,
        recording: Recording | None,
        failure: str | None = None,
        without: Outputs | None = None,
        *,
        reported: bool = False,
    ) -> None:
        self.recording, self.failure, self.without = recording, failure, without
        self.reported = reported
        self.heads = recording.heads if recording is not None else []
        self.bytes = recording.inspection.values * 4 if recording is not None else 0
        self.arrays: dict[str, NDArray[np.float32]] = {}

    def finish(self) -> None:
        """No more rows come: from now on nothing of it is on the device."""
        if self.recording is None:
            return
        self.failure = self.recording.failure
        self.arrays = self.recording.arrays() if self.failure is None else {}
        self.recording = None


class InspectedRequests:
    """Inspections by slot of the edit table, and by report id until they are taken.

    Those that are for a request's own reports go by slot alone.

    twins: the worker's book of them.
    """

    def __init__(self, table: EditTable, device: Inspecting, twins: Twins) -> None:
        self._table, self._device, self._twins = table, device, twins
        self._by_slot: dict[int, InspectedRequest] = {}
        self._by_report: OrderedDict[str, InspectedRequest] = OrderedDict()

    def enter(self, slot: int, payload: Payload) -> None:
        """A request has got its slot; after a preemption it starts again.

        Raises `EditError` when it is to be compared with a twin that left nothing.
        """
        if payload.inspection is None:
            return
        without = self._outputs_of_twin(payload) if payload.inspection.without else None
        try:
            self._device.enter(slot, payload.inspection)
        except EditError as error:
            request = InspectedRequest(None, str(error))
        else:
            asked = payload.inspection, payload.edits
            recording = Recording(*asked, self._table, slot, self._device, without)
            reported = payload.inspection_reported
            request = InspectedRequest(recording, without=without, reported=reported)
            self._by_slot[slot] = request
        if payload.inspection_reported:
            return
        self._by_report[payload.report] = request
        self._make_room()

    def _make_room(self) -> None:
        """Let the oldest recordings go, of which one is always kept."""
        held = sum(request.bytes for request in self._by_report.values())
        while len(self._by_report) > 1 and (
            len(self._by_report) > RECORDINGS_KEPT or held > MOST_BYTES_KEPT
        ):
            held -= self._by_report.popitem(last=False)[1].bytes

    def leave(self, slot: int) -> None:
        """The slot's request is gone; what was measured stays until it is taken."""
        request = self._by_slot.pop(slot, None)
        if request is not None:
            request.finish()
            self._device.leave(slot)

    def on_images(self, slot: int) -> dict[str, Any] | None:
        """For a request's own reports, masses of the prompt's last row, where they have been seen: by layer and
        query head of this rank, on each set of keys."""
        request = self._by_slot.get(slot)
        if request is None or not request.reported or request.recording is None:
            return None
        if request.recording.failure is not None:
            return None
        masses = request.recording.arrays()["mass"][:, :, 0].tolist()
        layers = request.recording.inspection.layers
        return {"masses": {str(layer): each for layer, each in zip(layers, masses, strict=True)}}

    def _outputs_of_twin(self, payload: Payload) -> Outputs:
        before = self._by_report.get(payload.report)
        if before is not None and before.without is not None:
            return dict(before.without)
        return self._twins.take(payload.report)

    def comparers(self, items: NDArray[np.int32]) -> tuple[InspectedRows, ...]:
        """Which rows of a step hold outputs that are compared; items as in `observers`."""
        return tuple(rows for rows in self._rows(items) if rows.recording.without is not None)

    def sees(self, slot: int, first: int) -> bool:
        """Whether any of a slot's rows from `first` on is inspected."""
        request = self._by_slot.get(slot)
        if request is None or request.recording is None:
            return False
        return first < request.recording.inspection.length

    def observers(self, items: NDArray[np.int32]) -> tuple[Observer, ...]:
        """What inspects the rows of a step.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        rows = self._rows(items)
        summed = [each for each in rows if each.recording.sums_columns]
        if not summed:
            return rows
        recordings, items_of = [r.recording for r in summed], np.array([r.item for r in summed])
        return (*rows, self._device.observer(recordings, items_of))

    def _rows(self, items: NDArray[np.int32]) -> tuple[InspectedRows, ...]:
        found: list[InspectedRows] = []
        for item in items if self._by_slot else ():
            slot, first = int(item[SLOT]), int(item[FIRST_POSITION])
            if not self.sees(slot, first):
                continue
            recording = self._by_slot[slot].recording
            assert recording is not None
            item = item.copy()
            item[ROWS] = min(int(item[ROWS]), recording.inspection.length - first)
            found.append(InspectedRows(recording, item))
        return tuple(found)

    def take(self, report: str) -> dict[str, Any] | None:
        """What was measured for an engine request, once, as plain values; None for one that is not known.

        failure: why there is nothing, or None. heads: of the inspection and this rank. arrays: by
        quantity the shape, and float32 little-endian bytes [layers, heads, …].
        """
        request = self._by_report.pop(report, None)
        if request is None:
            return None
        request.finish()
        return {
            "failure": request.failure,
            "heads": request.heads,
            "arrays": {
                name: [list(array.shape), array.astype("<f4").tobytes()]
                for name, array in request.arrays.items()
            },
        }
