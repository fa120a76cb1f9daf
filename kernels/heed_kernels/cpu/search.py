"""The search for keys on the CPU: sums in numpy, made by the kernel that observes.

For each step `KeySearch.advance` says which rows it holds; then, within each layer's forward,
`search_keys` stands before `attend`. Memory: int64 [searched local heads, keys] for each layer that is
searched, until its keys can change no more; up to twice the keys where generated rows are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside import key_search
from heed_kernels.beside.key_search import Counted
from heed_kernels.cpu.columns import ColumnSums, add_columns, weight_of
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation import find_keys
from heed_kernels.cpu.pages import Pages
from heed_kernels.edits import FindKeys
from heed_kernels.plan import FIRST_POSITION, ROWS
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's attention reads, see `attention.attend`; the step's keys are in the cache."""

    query: torch.Tensor
    kv_cache: torch.Tensor
    block_table: torch.Tensor
    scale: float
    rope: Rope | None
    layout: Layout

    def pages(self, row: int) -> Pages:
        """The layer's, of the request in that row of the block table."""
        return Pages.of(self.kv_cache, self.block_table[row], self.layout)


class KeySearch(key_search.KeySearch):
    """One request's search, with a layer's sums as `ColumnSums`."""

    def __init__(self, table: EditTable, slot: int, edit: FindKeys) -> None:
        super().__init__(table, slot, edit)
        self._columns: dict[int, ColumnSums] = {}
        # By layer the places of the found keys in the sums: lines and columns.
        self._found: dict[int, tuple[NDArray[np.int32], NDArray[np.intp]]] = {}
        self._held: dict[int, int] = {}
        self._mass: dict[int, int] = {}

    def counted(self) -> Counted:
        """See `key_search.KeySearch`."""
        rows = self._next_row
        sums = {layer: columns.sums[:, :rows].copy() for layer, columns in self._columns.items()}
        return Counted(rows, sums, dict(self._mass))

    def resume(self, counted: Counted) -> None:
        """See `key_search.KeySearch`."""
        self._next_row, self._mass = counted.rows, dict(counted.mass)
        for layer, sums in counted.sums.items():
            columns = self._with_room(layer, counted.rows)
            columns.sums[:, : counted.rows] = sums

    def before(self, layer: int) -> tuple[NDArray[np.int32], ColumnSums] | None:
        """Find what is found before the step's rows. Returns which of them are to be counted, and where;
        None when none is."""
        first = int(self.item[FIRST_POSITION])
        if self.segments.begins(first):
            self._find(layer, first)
        if not self.counts(first):
            self._columns.pop(layer, None)
            return None
        item = self.item.copy()
        item[ROWS] = self._counted_rows
        columns = self._with_room(layer, first + self._counted_rows)
        self._held[layer] = self._on_found(layer)
        return item, columns

    def after(self, layer: int) -> None:
        """The step's rows have been counted: find what is found from them, and note what the keys hold."""
        if self._ahead:
            self._find(layer, self.segments.prompt)
        given = self._on_found(layer) - self._held.pop(layer)
        self._mass[layer] = self._mass.get(layer, 0) + given
        if self._ahead and self._settled:
            del self._columns[layer]

    def found(self, layer: int) -> dict[int, list[int]]:
        """See `key_search.KeySearch`."""
        counts = self.table.found_count[self.slot, layer]
        keys = self.table.found_keys[self.slot, layer]
        return {
            self.table.head_start + int(head): keys[head, : counts[head]].tolist()
            for head in np.flatnonzero(counts)
        }

    def mass(self, layer: int) -> float:
        """See `key_search.KeySearch`."""
        return weight_of(self._mass.get(layer, 0))

    def close(self) -> None:
        """See `key_search.KeySearch`."""
        self._columns.clear()

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
        if columns is None:
            columns = ColumnSums(self.table, self.slot, self.edit, layer, self._capacity(0, keys))
            self._columns[layer] = columns
        columns.grow(self._capacity(columns.sums.shape[1], keys))
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
