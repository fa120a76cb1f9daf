"""Evictions on a device: sums that the kernels add to, and the edit table once survivors have moved.

Everything else of an eviction is the same on every device (`heed_kernels.eviction`), over `DevicePages`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import OwnPages, Summing
from heed_kernels.evict import Evict
from heed_kernels.eviction.memory import held_bytes
from heed_kernels.triton.columns import ColumnAdder, ColumnWork, DeviceSumming, DeviceSums, Room
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.moving import Mover
from heed_kernels.triton.pages import BlockRow, EvictedPages


class DeviceEvictions(ColumnAdder):
    """What all evictions of a worker share on the device."""

    def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
        super().__init__(table, work)
        self._room, self._mover = room, Mover(table.device)

    def enter(self, slot: int, evict: Evict, head_dim: int, rows: int) -> Summing:
        """A request has got its slot. Returns what sums its weights.

        rows: it computes no more. Raises `EditError` where there is no room for what its scores take.
        """
        host = self._table.table
        self._room.hold(self._owner(slot), held_bytes(evict, host, head_dim, rows))
        return DeviceSumming(host.local_query_heads, self._table.device, mover=self._mover)

    def leave(self, slot: int) -> None:
        """The slot's request is gone, or lets nothing go any more."""
        self._room.leave(self._owner(slot))

    def pages(
        self, caches: Mapping[int, tuple[torch.Tensor, torch.Tensor]], block_row: NDArray[np.int32]
    ) -> list[OwnPages]:
        """By layer, of the request with these blocks. caches: keys and values by layer, as in `DevicePages`."""
        row, layers = BlockRow(block_row, self._table.device), self._table.table.layers
        return [EvictedPages(*caches[layer], row, self._mover) for layer in range(layers)]

    def warm_up(self, key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
        """Compile and load what moves keys of these caches, and sums. A token moves to its own place."""
        here = np.zeros(1, np.int64)
        self._mover.move((key_cache, value_cache), [here] * key_cache.shape[2], here)
        sums = DeviceSums(
            self._table.table.local_query_heads, 1, self._table.device, None, self._mover
        )
        sums.keep(slice(None), here)

    def moved(self, slot: int) -> None:
        """Survivors of a slot were moved, and the edit table says which places are read from now on."""
        self._table.evicted(slot)

    @staticmethod
    def _owner(slot: int) -> tuple[str, int]:
        return "eviction", slot
