"""The search for a transfer's keys while a request's rows come in, layer by layer.

For each step `KeySearch.advance` says which rows it holds; then, within each layer's forward,
`search_keys` stands before `attend`. Memory: int64 [searched local heads, keys] for each layer that is
searched, until its keys can change no more; up to twice the keys where generated rows are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation import ColumnSums, add_columns, find_keys, weight_of
from heed_kernels.edits import OPEN, FindKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, ROWS
from heed_kernels.rope import Rope
from heed_kernels.segments import Segments
from heed_kernels.table import EditTable

_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's attention reads, see `attention.attend`; the step's keys are in the cache."""

    query: torch.Tensor
    kv_cache: torch.Tensor
    block_table: torch.Tensor
    scale: float
    rope: Rope | None
    layout: Layout


@dataclass(frozen=True)
class Counted:
    """What a search has counted in the rows [0, rows), for another one to go on from.

    sums: by layer int64 [searched heads, rows]; mass: by layer of the keys found for these rows, over all
        heads, in the same units. It may exceed 64 bits.
    """

    rows: int
    sums: dict[int, NDArray[np.int64]]
    mass: dict[int, int]


class KeySearch:
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
        self._columns: dict[int, ColumnSums] = {}
        # By layer the places of the found keys in the sums: lines and columns.
        self._found: dict[int, tuple[NDArray[np.int32], NDArray[np.intp]]] = {}
        self._held: dict[int, int] = {}
        self._mass: dict[int, int] = {}
        own = (1 << table.local_query_heads) - 1
        self._searched = [bool(mask >> table.head_start & own) for mask in edit.on.masks]

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

    def counted(self) -> Counted:
        """What has been counted so far, when not all that can be: before a step in which rows are."""
        rows = self._next_row
        sums = {layer: columns.sums[:, :rows].copy() for layer, columns in self._columns.items()}
        return Counted(rows, sums, dict(self._mass))

    def resume(self, counted: Counted) -> None:
        """Go on from what an equal search has counted, before the first step."""
        self._next_row, self._mass = counted.rows, dict(counted.mass)
        for layer, sums in counted.sums.items():
            columns = self._with_room(layer, counted.rows)
            columns.sums[:, : counted.rows] = sums

    def searched(self, layer: int) -> bool:
        """Whether keys are sought in `layer`, in this rank's heads."""
        return self._searched[layer]

    def before(self, layer: int) -> tuple[NDArray[np.int32], ColumnSums] | None:
        """Find what is found before the step's rows. Returns which of them are to be counted, and where;
        None when none is."""
        first = int(self.item[FIRST_POSITION])
        if self.segments.begins(first):
            self._find(layer, first)
        end = min(first + int(self.item[ROWS]), self.edit.rows.end)
        if end <= first:
            self._columns.pop(layer, None)
            return None
        item = self.item.copy()
        item[ROWS] = end - first
        columns = self._with_room(layer, end)
        self._held[layer] = self._on_found(layer)
        return item, columns

    def after(self, layer: int) -> None:
        """The step's rows have been counted: find what is found from them, and note what the keys hold."""
        ahead = self.segments.ahead and int(self.item[FIRST_POSITION]) == 0
        if ahead:
            self._find(layer, self.segments.prompt)
        given = self._on_found(layer) - self._held.pop(layer)
        self._mass[layer] = self._mass.get(layer, 0) + given
        if ahead and not self.segments.running:
            del self._columns[layer]

    def found(self, layer: int) -> dict[int, list[int]]:
        """The keys that hold now, ascending, by query head of the whole model; heads without one are
        left out."""
        counts = self.table.found_count[self.slot, layer]
        keys = self.table.found_keys[self.slot, layer]
        return {
            self.table.head_start + int(head): keys[head, : counts[head]].tolist()
            for head in np.flatnonzero(counts)
        }

    def mass(self, layer: int) -> float:
        """Sum, over the counted rows and the searched heads of a layer, of what a row would give to the keys
        found for it if nothing were transferred."""
        return weight_of(self._mass.get(layer, 0))

    def _find(self, layer: int, rows_seen: int) -> None:
        columns = self._columns[layer]
        find_keys(self.table, self.slot, layer, self.edit, columns.sums, rows_seen)
        counts = self.table.found_count[self.slot, layer]
        keys = self.table.found_keys[self.slot, layer]
        lines = np.repeat(columns.lines, counts)
        at = [keys[head, :count] for head, count in enumerate(counts)]
        self._found[layer] = lines, np.concatenate(at).astype(np.intp)

    def _on_found(self, layer: int) -> int:
        """Column sums of the layer's found keys, in the units of `ColumnSums`."""
        if layer not in self._found:
            return 0
        sums, found = self._columns[layer].sums, self._found[layer]
        # A head's rows give its keys at most 1 each, which int64 holds; all heads together may give more.
        by_head = np.zeros(len(sums), np.int64)
        np.add.at(by_head, found[0], sums[found])
        return sum(by_head.tolist())

    def _with_room(self, layer: int, keys: int) -> ColumnSums:
        """The layer's column sums, for at least so many keys."""
        columns = self._columns.get(layer)
        end = self.edit.rows.end
        if columns is None:
            capacity = max(keys, _FIRST_CAPACITY) if end == OPEN else end
            columns = ColumnSums(self.table, self.slot, self.edit, layer, capacity)
            self._columns[layer] = columns
        have = columns.sums.shape[1]
        if have < keys:
            columns.sums = np.pad(columns.sums, ((0, 0), (0, max(keys, 2 * have) - have)))
        return columns


def search_keys(
    searches: Sequence[KeySearch], table: EditTable, layer: int, inputs: LayerInputs
) -> None:
    """Bring the searches of a step's requests forward in one layer, before its `attend`."""
    active = [search for search in searches if search.searched(layer)]
    counted = [(search, *rows) for search in active if (rows := search.before(layer)) is not None]
    if not counted:
        return
    add_columns(
        inputs.query,
        inputs.kv_cache,
        inputs.block_table,
        table,
        [item for _, item, _ in counted],
        layer,
        inputs.scale,
        inputs.rope,
        inputs.layout,
        [columns for _, _, columns in counted],
    )
    for search, _, _ in counted:
        search.after(layer)
