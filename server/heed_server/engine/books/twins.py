"""The worker's book of twins: what their last rows gave, until the requests that they run for take it. No vLLM here."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_server.engine.payload import Payload

LEFT_KEPT = 1024
"""Outputs of so many twins are kept while the requests that they ran for wait; the oldest go first."""

Outputs = dict[int, torch.Tensor]
"""By layer a row's head outputs before the projection, [local_query_heads, head_dim]."""


@dataclass
class Left:
    """What a twin left. waiting: how often its request has not taken it yet (`payload.Twin`)."""

    layers: tuple[int, ...]
    waiting: int
    outputs: Outputs = field(default_factory=dict)


@dataclass(frozen=True)
class TwinRows:
    """Rows of one twin in one step, of which the last row of its prompt is looked at: a `step.Comparer`
    that multiplies nothing.

    item: int32 [5], as in `plan.Pattern.items`. row: the position of that last row.
    """

    left: Left
    item: NDArray[np.int32]
    row: int

    def after_edits(self, layer: int, inputs: Any, output: torch.Tensor) -> None:
        """See `step.Comparer`."""
        if layer in self.left.layers:
            place = self.row - int(self.item[FIRST_POSITION])
            self.left.outputs[layer] = output[int(self.item[FIRST_TOKEN]) + place].clone()


class Twins:
    """Twins by slot of the edit table, and what they left by the report id of the request it is for."""

    def __init__(self) -> None:
        self._by_slot: dict[int, tuple[Left, int]] = {}
        self._left: OrderedDict[str, Left] = OrderedDict()

    def enter(self, slot: int, payload: Payload) -> None:
        """A request has got its slot; a twin that was preempted starts again."""
        twin = payload.twin
        if twin is None:
            return
        left = Left(twin.layers, twin.taken)
        self._by_slot[slot] = left, payload.prompt_length - 1
        self._left[twin.report] = left
        while len(self._left) > LEFT_KEPT:
            self._left.popitem(last=False)

    def leave(self, slot: int) -> None:
        """The slot's request is gone; what a twin left stays."""
        self._by_slot.pop(slot, None)

    def looks_at(self, slot: int, first: int, rows: int) -> bool:
        """Whether the last row of the slot's twin is among the rows [first, first + rows)."""
        twin = self._by_slot.get(slot)
        return twin is not None and first <= twin[1] < first + rows

    def rows(self, items: NDArray[np.int32]) -> tuple[TwinRows, ...]:
        """Which rows of a step have the last one of a twin.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        found: list[TwinRows] = []
        for item in items if self._by_slot else ():
            slot = int(item[SLOT])
            if self.looks_at(slot, int(item[FIRST_POSITION]), int(item[ROWS])):
                found.append(TwinRows(self._by_slot[slot][0], item, self._by_slot[slot][1]))
        return tuple(found)

    def take(self, report: str) -> Outputs:
        """For a comparison of the request with this report id: a copy that shares its tensors. With the last
        one it is let go.

        Raises `EditError` where the twin did not leave all of it.
        """
        left = self._left.get(report)
        if left is None or set(left.outputs) != set(left.layers):
            raise EditError("the run without the image left nothing to compare with")
        left.waiting -= 1
        if left.waiting <= 0:
            del self._left[report]
        return dict(left.outputs)

    def drop(self, report: str) -> None:
        """The request with this report id has ended, whatever became of its twin."""
        self._left.pop(report, None)
