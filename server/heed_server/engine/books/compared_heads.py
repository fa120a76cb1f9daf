"""Requests whose heads are compared with each other, and what was chosen for them. No vLLM here."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.compare import Gather, HeadComparer, Multiply, SettledRows
from heed_kernels.beside.shift import GazeShifter
from heed_kernels.device import LayerInputs
from heed_kernels.edits import GazeShift, HeadChoice, HeadRanking
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT
from heed_kernels.table import EditTable
from heed_server.engine.books.twins import Outputs, Twins
from heed_server.engine.payload import Payload
from heed_server.engine.running.step import Comparer

Known = dict[int, torch.Tensor]
"""By layer, on the device, what a comparison has found once and goes on with: bool [query_heads] of the whole
model for a `HeadChoice`, the saliency of the keys for a `GazeShift`."""


@dataclass(frozen=True)
class ComparedRows:
    """Rows of one request in one step: a `step.Comparer`.

    item: int32 [5], as in `plan.Pattern.items`.
    """

    comparer: HeadComparer | GazeShifter
    item: NDArray[np.int32]

    def after_edits(self, layer: int, inputs: LayerInputs, output: torch.Tensor) -> None:
        """See `step.Comparer`."""
        self.comparer.carry_out(self.item, layer, inputs, output)


@dataclass(frozen=True)
class MultipliedRows:
    """Rows of all requests of one step for which nothing is left to compare: a `step.Comparer`."""

    settled: SettledRows

    def after_edits(self, layer: int, inputs: LayerInputs, output: torch.Tensor) -> None:
        """See `step.Comparer`."""
        self.settled.carry_out(layer, output)


class ComparedHeads:
    """By slot of the edit table; what was found once is kept by request until it ends, so that one that was
    preempted goes on with the same. So is what its twin left, until the heads are chosen.

    twins: the worker's book of them. device: of the model; None for the CPU. multiply: where
    kernels of the device do so.
    """

    def __init__(
        self,
        table: EditTable,
        gather: Gather,
        twins: Twins,
        device: torch.device | None = None,
        multiply: Multiply | None = None,
    ) -> None:
        self._table, self._gather = table, gather
        self._device, self._multiply = device, multiply
        self._by_slot: dict[int, HeadComparer | GazeShifter] = {}
        self._known: dict[str, Known] = {}
        self._taken: dict[str, Outputs] = {}
        self._twins = twins

    def enter(self, slot: int, request_id: str, payload: Payload) -> None:
        """A request has got its slot.

        Raises `EditError` when it is to be compared with a twin that left nothing.
        """
        self._twins.enter(slot, payload)
        for edit in payload.edits:
            if not isinstance(edit, HeadRanking | HeadChoice | GazeShift):
                continue
            known = self._known.setdefault(request_id, {})
            if isinstance(edit, GazeShift):
                self._by_slot[slot] = GazeShifter(
                    self._table, slot, edit, self._gather, known, self._device
                )
                continue
            if isinstance(edit, HeadChoice) and edit.twin and request_id not in self._taken:
                self._taken[request_id] = self._twins.take(payload.report)
            twin = self._taken.get(request_id)
            self._by_slot[slot] = HeadComparer(
                self._table, slot, edit, self._gather, known, twin, self._device, self._multiply
            )

    def leave(self, slot: int) -> None:
        """The slot's request left the batch."""
        self._by_slot.pop(slot, None)
        self._twins.leave(slot)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._known.pop(request_id, None)
        self._taken.pop(request_id, None)

    def drop(self, report: str) -> None:
        """The API process has the reports of a request: what a twin left for it is of no use any more."""
        self._twins.drop(report)

    def compares(self, slot: int, first: int, rows: int) -> bool:
        """Whether any of a slot's rows [first, first + rows) is looked at or multiplied, layer by layer."""
        comparer = self._by_slot.get(slot)
        if comparer is not None and comparer.acts(first, rows):
            return True
        return self._twins.looks_at(slot, first, rows)

    def advance(self, items: NDArray[np.int32]) -> tuple[tuple[Comparer, ...], dict[int, str]]:
        """What looks at outputs of a step or multiplies them, and by slot why a comparison cannot go on.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        compared: list[Comparer] = []
        settled: list[tuple[HeadComparer, NDArray[np.int32]]] = []
        failures: dict[int, str] = {}
        for item in items if self._by_slot else ():
            slot, first, rows = (int(item[at]) for at in (SLOT, FIRST_POSITION, ROWS))
            comparer = self._by_slot.get(slot)
            if comparer is None or not comparer.acts(first, rows):
                continue
            if isinstance(comparer, GazeShifter):
                compared.append(ComparedRows(comparer, item))
            elif not comparer.ready(first, rows):
                failures[slot] = "the prompt was not computed in one step"
                del self._by_slot[slot]
            elif comparer.settled() is not None:
                settled.append((comparer, item))
            else:
                compared.append(ComparedRows(comparer, item))
        if settled:
            compared.append(MultipliedRows(SettledRows(settled)))
        return (*compared, *self._twins.rows(items)), failures

    def told(self, slot: int) -> dict[int, dict[str, Any]]:
        """The report's part, by intervention: by layer the heads that were chosen. Waits for the device."""
        comparer = self._by_slot.get(slot)
        if comparer is None or not isinstance(comparer.edit, HeadChoice):
            return {}
        chosen = sorted(comparer.known.items())
        heads = {str(layer): mask.nonzero().flatten().tolist() for layer, mask in chosen}
        return {comparer.edit.source: {"chosen_heads": heads}}
