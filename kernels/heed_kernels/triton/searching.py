"""The search for keys on a device: sums that stay there, made by the kernels that observe.

`DeviceSearches.load` is called once per step, before its forward, and finds what is found from earlier rows;
`DeviceSearches.observe` stands before `attend` in each layer of a step in which rows are counted. Memory on the
device: int64 [searched local heads, keys], of one layer where the prompt's rows are looked ahead at, else
of all searched layers until their keys can change no more; up to twice the keys where generated rows are
counted.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside import key_search
from heed_kernels.beside.key_search import Counted
from heed_kernels.edits import FindKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, Plan
from heed_kernels.triton.columns import ColumnWork, LayerInputs, Room
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.observing import UNITS, find_keys, on_found

FOUND_AT_ONCE = 1 << 21
"""Column sums that are looked through at once: some 30 bytes are needed for each."""


class KeySearch(key_search.KeySearch):
    """One request's search. Its lines are pairs of layer and searched local head, ascending."""

    def __init__(self, device: DeviceTable, slot: int, edit: FindKeys, room: Room) -> None:
        super().__init__(device.table, slot, edit)
        device.reserve(slot)
        self._device, self._room = device, room
        counts = [len(heads) for heads in self._heads]
        self._first = np.cumsum([0, *counts])
        """By layer its first line, and at the end the number of lines."""
        heads = device.table.local_query_heads
        lines = [layer * heads + own for layer, own in enumerate(self._heads)]
        self._lines = torch.from_numpy(np.concatenate(lines)).to(device.device)
        self._sums = torch.zeros(0, 0, dtype=torch.int64, device=device.device)
        self._mass = torch.zeros(len(self._lines), dtype=torch.int64, device=device.device)
        """What was given to the keys found for the rows counted before the step at hand."""
        self._held: torch.Tensor | None = None
        """Sums of the found keys when the step at hand began, where it counts rows."""
        self._uncounted: set[int] = set()

    def advance(self, item: NDArray[np.int32]) -> None:
        """See `key_search.KeySearch`. Raises `EditError` also when rows of the step before were not counted,
        and where there is no room for the sums."""
        if self._uncounted:
            raise EditError(f"rows were not counted in layer {min(self._uncounted)}")
        super().advance(item)
        first = int(item[FIRST_POSITION])
        if not self.counts(first):
            return
        self._uncounted = {layer for layer in range(self.table.layers) if self.searched(layer)}
        capacity = self._capacity(self._sums.shape[1], first + self._counted_rows)
        # As much on every rank, whichever heads are searched: all of them stop here or none.
        per_layer = [mask.bit_count() for mask in self.edit.on.masks]
        heads = max(per_layer) if self._settled else sum(per_layer)
        ranks = self.table.query_heads // self.table.local_query_heads
        self._room.hold(self, -(-8 * heads * capacity // ranks))
        try:
            self._grow(capacity)
        except torch.OutOfMemoryError:
            raise EditError("the device has no memory left for the sums of a search") from None

    def begin(self) -> None:
        """Find what is found before the step's rows. Once per step, when the edit table is on the device."""
        self._settle()
        first = int(self.item[FIRST_POSITION])
        if self.segments.begins(first):
            self._find(slice(None), self._sums, first)
        if not self.counting:
            self.close()
            return
        if not self._ahead:
            self._held = on_found(self._found, self._sums)

    def addresses(self) -> NDArray[np.int64]:
        """int64 [layers, local_query_heads]: where the columns of each head lie, 0 for none."""
        places = np.zeros((self.table.layers, self.table.local_query_heads), np.int64)
        start, step = self._sums.data_ptr(), 8 * self._sums.shape[1]
        for layer, heads in enumerate(self._heads):
            line = 0 if self._settled else self._first[layer]
            places[layer, heads] = start + step * (line + np.arange(len(heads)))
        return places

    def before(self, layer: int) -> None:
        """The step's rows are about to be counted in a layer."""
        if self._settled:
            self._sums.zero_()

    def after(self, layer: int) -> None:
        """They have been: what is found from these very rows is found."""
        self._uncounted.discard(layer)
        if not self._ahead:
            return
        own = slice(*self._first[layer : layer + 2])
        sums = self._sums[: len(self._heads[layer])] if self._settled else self._sums[own]
        self._find(own, sums, self.segments.prompt)
        self._mass[own] = on_found(self._found[own], sums)

    def counted(self) -> Counted:
        """See `key_search.KeySearch`. What is kept does not stay on the device."""
        self._settle()
        rows = self._next_row
        sums, mass = (
            part.to("cpu", copy=True).numpy() for part in (self._sums[:, :rows], self._mass)
        )
        parts = {
            layer: slice(*self._first[layer : layer + 2])
            for layer in range(self.table.layers)
            if self.searched(layer) and len(sums)
        }
        return Counted(
            rows,
            {layer: sums[part] for layer, part in parts.items()},
            {layer: sum(mass[part].tolist()) for layer, part in parts.items()},
        )

    def resume(self, counted: Counted) -> None:
        """See `key_search.KeySearch`."""
        self._next_row = counted.rows
        sums = np.zeros((len(self._lines), self._capacity(0, counted.rows)), np.int64)
        mass = np.zeros(len(self._lines), np.int64)
        for layer, own in counted.sums.items():
            sums[slice(*self._first[layer : layer + 2]), : counted.rows] = own
            mass[self._first[layer]] = counted.mass[layer]
        self._sums = torch.from_numpy(sums).to(self._device.device)
        self._mass = torch.from_numpy(mass).to(self._device.device)

    def found(self, layer: int) -> dict[int, list[int]]:
        """See `key_search.KeySearch`. Waits for the device."""
        found = self._device.found[self.slot][layer].cpu()
        return {
            self.table.head_start + head: line[1 : 1 + line[0]].tolist()
            for head, line in enumerate(found)
            if line[0]
        }

    def mass(self, layer: int) -> float:
        """See `key_search.KeySearch`. Waits for the device."""
        self._settle()
        own = self._mass[self._first[layer] : self._first[layer + 1]]
        return int(own.sum()) / UNITS

    def close(self) -> None:
        """See `key_search.KeySearch`."""
        self._sums = self._sums[:0, :0]
        self._room.leave(self)

    @property
    def _found(self) -> torch.Tensor:
        """int32 [lines, FOUND_WORDS]."""
        return self._device.found[self.slot].flatten(0, 1)[self._lines]

    def _settle(self) -> None:
        """Add what the step before gave to the found keys, which are still the same."""
        if self._held is not None:
            self._mass += on_found(self._found, self._sums) - self._held
            self._held = None

    def _grow(self, capacity: int) -> None:
        lines = max(map(len, self._heads)) if self._settled else len(self._lines)
        have = self._sums.shape[1]
        if have < capacity:
            grown = self._sums.new_zeros(lines, capacity)
            grown[: len(self._sums), :have] = self._sums
            self._sums = grown

    def _find(self, own: slice, sums: torch.Tensor, rows_seen: int) -> None:
        """own: lines, of which these are the sums."""
        lines, at_once = self._lines[own], max(1, FOUND_AT_ONCE // rows_seen)
        for start in range(0, len(lines), at_once):
            part = slice(start, start + at_once)
            find_keys(self._device, self.slot, self.edit, lines[part], sums[part], rows_seen)


class DeviceSearches:
    """What all searches of a worker share on the device."""

    def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
        self._table, self._work, self._room = table, work, room

    def new(self, slot: int, edit: FindKeys) -> KeySearch:
        """The search of a request that has got its slot."""
        return KeySearch(self._table, slot, edit, self._room)

    def load(self, plan: Plan, searches: Sequence[KeySearch]) -> None:
        """Prepare a step, before its forward and once its edits are on the device."""
        for search in searches:
            search.begin()
        counting = [search for search in searches if search.counting]
        if not counting:
            return
        slots = np.array([search.slot for search in counting])
        rows = np.array([(search.edit.rows.start, search.edit.rows.end) for search in counting])
        self._work.load(plan, slots, rows)
        self._work.place(slice(None), slots, np.stack([s.addresses() for s in counting], axis=1))

    def observe(self, layer: int, inputs: LayerInputs, searches: Sequence[KeySearch]) -> None:
        """Bring the searches of the step that was loaded forward in one layer, before its `attend`."""
        counting = [search for search in searches if search.counting and search.searched(layer)]
        if not counting:
            return
        for search in counting:
            search.before(layer)
        self._work.add(layer, inputs)
        for search in counting:
            search.after(layer)
