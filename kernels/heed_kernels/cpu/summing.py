"""Sums of weights for evictions and inspections on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from heed_kernels.cpu.observation import ColumnSums
from heed_kernels.edits import HeadSet, ObserveColumns, Rows
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class Summing:
    """See `device.Summing`. heads: query heads of the whole model, the same in every layer; None for all."""

    table: EditTable
    slot: int
    heads: Sequence[int] | None = None

    def __call__(self, layer: int, capacity: int) -> ColumnSums:
        """See `device.Summing`."""
        heads = range(self.table.query_heads) if self.heads is None else self.heads
        mask = sum(1 << head for head in heads)
        edit = ObserveColumns(HeadSet((mask,) * self.table.layers), Rows(), 0)
        return ColumnSums(self.table, self.slot, edit, layer, capacity)
