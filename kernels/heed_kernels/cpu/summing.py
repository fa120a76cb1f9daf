"""Sums of weights and queries for evictions and inspections on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from heed_kernels.cpu.columns import ColumnSums
from heed_kernels.cpu.moments import QueryMoments, Turns
from heed_kernels.edits import HeadSet, ObserveColumns, Rows
from heed_kernels.evict import ExpectedScore
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class Summing:
    """See `device.Summing`. heads: query heads of the whole model, the same in every layer; None for all."""

    table: EditTable
    slot: int
    heads: Sequence[int] | None = None
    _turns: Turns = field(default_factory=Turns, init=False)

    def __call__(self, layer: int, capacity: int) -> ColumnSums:
        """See `device.Summing`."""
        heads = range(self.table.query_heads) if self.heads is None else self.heads
        mask = sum(1 << head for head in heads)
        edit = ObserveColumns(HeadSet((mask,) * self.table.layers), Rows(), 0)
        return ColumnSums(self.table, self.slot, edit, layer, capacity)

    def moments(self, score: ExpectedScore, heads: int, head_dim: int) -> QueryMoments:
        """See `device.Summing`."""
        return QueryMoments(score, heads, head_dim, self._turns)
