"""Evictions on a device: sums that the kernels add to, and the edit table once survivors have moved.

Everything else of an eviction is the same on every device (`heed_kernels.eviction`), over `DevicePages`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.evict import Evict
from heed_kernels.eviction import Eviction
from heed_kernels.eviction.device import Pages, Summing
from heed_kernels.eviction.memory import held_bytes
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT, Plan
from heed_kernels.triton.columns import ColumnWork, DeviceSums, LayerInputs, Room
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.pages import DevicePages


class DeviceEvictions:
    """What all evictions of a worker share on the device."""

    def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
        self._table, self._work, self._room = table, work, room

    def enter(self, slot: int, evict: Evict, head_dim: int, rows: int) -> Summing:
        """A request has got its slot. Returns what sums its weights.

        rows: it computes no more. Raises `EditError` where there is no room for what its scores take.
        """
        host = self._table.table
        self._room.hold(self._owner(slot), held_bytes(evict, host, head_dim, rows))

        def summing(layer: int, capacity: int) -> DeviceSums:
            return DeviceSums(host.local_query_heads, capacity, self._table.device)

        return summing

    def leave(self, slot: int) -> None:
        """The slot's request is gone, or lets nothing go any more."""
        self._room.leave(self._owner(slot))

    def pages(
        self, caches: Mapping[int, tuple[torch.Tensor, torch.Tensor]], block_row: NDArray[np.int32]
    ) -> list[Pages]:
        """By layer, of the request with these blocks. caches: keys and values by layer, as in `DevicePages`."""
        blocks = self._table.sent(block_row)
        return [DevicePages(*caches[layer], blocks) for layer in range(self._table.table.layers)]

    def moved(self, slot: int) -> None:
        """Survivors of a slot were moved, and the edit table says which places are read from now on."""
        self._table.evicted(slot)

    def load(self, plan: Plan, items: NDArray[np.int32]) -> None:
        """Prepare a step in which these rows, `plan.Pattern.items`, are added to sums, before its forward."""
        first = items[:, FIRST_POSITION].astype(np.int64)
        self._work.load(plan, items[:, SLOT], np.column_stack([first, first + items[:, ROWS]]))

    def observe(
        self,
        layer: int,
        inputs: LayerInputs,
        evictions: Sequence[Eviction],
        items: NDArray[np.int32],
    ) -> None:
        """Add the rows of the step that was loaded in one layer, before its `attend`.

        items: one for each of `evictions`.
        """
        addresses = np.zeros((len(items), self._table.table.local_query_heads), np.int64)
        for at, eviction, item in zip(addresses, evictions, items, strict=True):
            sums = eviction.columns(layer, int(item[FIRST_POSITION]), int(item[ROWS]))
            if isinstance(sums, DeviceSums):
                at[:] = sums.addresses()
        if addresses.any():
            self._work.place(slice(layer, layer + 1), items[:, SLOT], addresses[None])
            self._work.add(layer, inputs)

    @staticmethod
    def _owner(slot: int) -> tuple[str, int]:
        return "eviction", slot
