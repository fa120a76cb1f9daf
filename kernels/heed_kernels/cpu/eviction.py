"""Sums of weights for evictions on the CPU."""

from dataclasses import dataclass

from heed_kernels.cpu.observation import ColumnSums
from heed_kernels.edits import HeadSet, ObserveColumns, Rows
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class Summing:
    """See `eviction.device.Summing`."""

    table: EditTable
    slot: int

    def __call__(self, layer: int, capacity: int) -> ColumnSums:
        """See `eviction.device.Summing`."""
        every = HeadSet(((1 << self.table.query_heads) - 1,) * self.table.layers)
        edit = ObserveColumns(every, Rows(), 0)
        return ColumnSums(self.table, self.slot, edit, layer, capacity)
