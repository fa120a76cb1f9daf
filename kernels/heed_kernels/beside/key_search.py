"""The search for a transfer's keys while a request's rows come in: what is the same on every device.

A search counts the rows of a step in column sums, layer by layer within the forward, and finds keys by
them at the rows that `Segments` names. How sums are kept, and made, is the device's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.edits import OPEN, FindKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, ROWS
from heed_kernels.segments import Segments
from heed_kernels.table import EditTable

_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class Counted:
    """What a search has counted in the rows [0, rows), for another one of the same device to go on from.

    sums: by layer int64 [searched heads, rows], in the device's units; mass: by layer of the keys found for
        these rows, over all heads, in the same units. It may exceed 64 bits.
    """

    rows: int
    sums: dict[int, NDArray[np.int64]]
    mass: dict[int, int]


class KeySearch(ABC):
    """One request's search, in the heads of this rank.

    item: int32 [5], the rows of the step at hand, as in `plan.Pattern.items`.
    rows: how many rows have been counted in the column sums.
    """

    def __init__(self, table: EditTable, slot: int, edit: FindKeys) -> None:
        self.table, self.slot, self.edit = table, slot, edit
        self.segments = Segments.of(edit)
        self.item = np.zeros(5, np.int32)
        self.rows = 0
        self._next_row = 0
        # By layer this rank's query heads that are searched, by their local numbers, ascending.
        self._heads = [table.own_heads(edit.on, layer) for layer in range(table.layers)]

    def advance(self, item: NDArray[np.int32]) -> None:
        """The next step's rows.

        Raises `EditError` when they are not the next ones, or may not be computed together.
        """
        first, end = int(item[FIRST_POSITION]), int(item[FIRST_POSITION] + item[ROWS])
        if first != self._next_row:
            raise EditError(f"row {first} came where row {self._next_row} was to be counted")
        if end > self.segments.end(first):
            raise EditError(f"rows {first} to {end - 1} came in one step, and are not one segment")
        if self.segments.ahead and end < self.segments.prompt:
            raise EditError(f"a prompt of {self.segments.prompt} rows came in more than one step")
        self.item, self._next_row = item, end
        self.rows = min(end, self.edit.rows.end)

    def searched(self, layer: int) -> bool:
        """Whether keys are sought in `layer`, in this rank's heads."""
        return bool(len(self._heads[layer]))

    def counts(self, first: int) -> bool:
        """Whether a step whose rows begin at `first` adds to the column sums: all of its layers are then
        looked at."""
        return first < self.edit.rows.end

    @property
    def counting(self) -> bool:
        """Whether rows of the step at hand are counted."""
        return self.counts(int(self.item[FIRST_POSITION]))

    @abstractmethod
    def counted(self) -> Counted:
        """What has been counted so far, when not all that can be: before a step in which rows are."""

    @abstractmethod
    def resume(self, counted: Counted) -> None:
        """Go on from what an equal search has counted, before the first step."""

    @abstractmethod
    def found(self, layer: int) -> dict[int, list[int]]:
        """The keys that hold now, ascending, by query head of the whole model; heads without one are
        left out."""

    @abstractmethod
    def mass(self, layer: int) -> float:
        """Sum, over the counted rows and the searched heads of a layer, of what a row would give to the keys
        found for it if nothing were transferred."""

    @abstractmethod
    def close(self) -> None:
        """The request is gone: the sums are not needed any more."""

    def told(self, fraction: float, *, detailed: bool) -> dict[str, Any]:
        """What was found so far, as plain values. fraction: of the mass of found keys that is moved.

        counts: by layer the number of pairs of head and found key; positions: by layer the keys that some
        head found; keys: by layer and head, where detailed; moved: by layer the mass taken from the found
        keys, summed over heads and rows, of which there are `rows`; heads: by layer how many are searched
        on all ranks. The rest is of this rank's heads.
        """
        masks = self.edit.on.masks
        layers = [layer for layer in range(self.table.layers) if masks[layer]]
        found = {layer: self.found(layer) for layer in layers}
        told: dict[str, Any] = {
            "counts": {layer: sum(map(len, heads.values())) for layer, heads in found.items()},
            "positions": {
                layer: sorted(set(chain.from_iterable(heads.values())))
                for layer, heads in found.items()
            },
            "moved": {layer: fraction * self.mass(layer) for layer in layers},
            "heads": {layer: masks[layer].bit_count() for layer in layers},
            "rows": self.rows,
        }
        return told | {"keys": found} if detailed else told

    @property
    def _settled(self) -> bool:
        """Whether what is found from the prompt's rows holds for good: no sums are kept behind a layer."""
        return self.segments.ahead and not self.segments.running

    @property
    def _ahead(self) -> bool:
        """Whether the step's rows are those that are looked ahead at."""
        return self.segments.ahead and int(self.item[FIRST_POSITION]) == 0

    @property
    def _counted_rows(self) -> int:
        """The step's rows that are counted are its first so many."""
        return min(int(self.item[ROWS]), self.edit.rows.end - int(self.item[FIRST_POSITION]))

    def _capacity(self, have: int, keys: int) -> int:
        """Keys that sums are to have room for, where they have room for `have` and need it for `keys`."""
        if have >= keys:
            return have
        if self.edit.rows.end != OPEN:
            return self.edit.rows.end
        return max(keys, 2 * have, _FIRST_CAPACITY)
