"""Weights of a request's last rows on all its keys, and what scores and shares take from them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.compiled import ABSOLUTE, BIAS, GROUP_FIELDS, SCALE, TRAILING_BIAS
from heed_kernels.errors import EditError
from heed_kernels.table import EditTable

EPSILON = 1e-10
"""Added to a weight before its logarithm is taken."""

MOST_WEIGHTS = 1 << 20
"""Weights that are computed at once, of at least one KV head's query heads."""

_NOT_EDITED = np.array([1, 0, 0], np.float32)
"""Scale, absolute and bias of keys without an edit."""


@dataclass(frozen=True)
class WindowStatistics:
    """Of the weights of some rows, by KV head; sums and means over the query heads of each.

    mean: float32 [kv_heads, keys], mean weight over rows and query heads.
    variance: float32 [kv_heads, keys], the n - 1 variance over rows, mean over query heads; 0 for a single
        row.
    total_variance: float64 [kv_heads], sum of the variances over query heads and the keys before the
        recent ones.
    entropy: float64 [kv_heads], sum of -w ln(w + EPSILON) over rows, query heads and the keys before the
        recent ones.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    total_variance: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True)
class ObservedRows:
    """Rows [first_row, first_row + rows) of a request in one layer, and the keys that it holds.

    places: int64 [keys], ascending; recent: so many of the last keys are protected; scale: on the logits.
    """

    table: EditTable
    slot: int
    layer: int
    first_row: int
    places: NDArray[np.int64]
    recent: int
    scale: float

    @classmethod
    def on_every_key(
        cls, table: EditTable, slot: int, layer: int, first_row: int, end: int, scale: float
    ) -> Self:
        """Rows from `first_row` on, and all keys below `end`.

        Raises `EditError` after an eviction: the blocks of some of them may be another request's by now.
        """
        if table.evicted_end[slot]:
            raise EditError("rows after an eviction cannot be observed on every key: some are gone")
        return cls(table, slot, layer, first_row, np.arange(end), 0, scale)

    def statistics(
        self, query: torch.Tensor, key: torch.Tensor, *, only_mean: bool
    ) -> WindowStatistics:
        """query: [rows, local_query_heads, head_dim]; key: [local_kv_heads, keys, head_dim].
        only_mean: leave the rest 0. Memory: some 12 bytes for each of the weights that are computed at
        once, which are those of rows, keys and a KV head's query heads, and of more KV heads up to
        MOST_WEIGHTS."""
        rows, (groups, keys, _) = len(query), key.shape
        group_heads = query.shape[1] // groups
        counted = max(keys - self.recent, 0)
        mean = torch.zeros(groups, keys, device=key.device)
        variance = torch.zeros_like(mean)
        sums = mean.new_zeros(2, groups, dtype=torch.float64)  # variances, -entropies
        at_once = max(1, MOST_WEIGHTS // max(1, group_heads * rows * keys))
        for first in range(0, groups, at_once):
            part = slice(first, first + at_once)
            first_head = first * group_heads
            heads = query[:, first_head : (first + at_once) * group_heads]
            weights = self.weights(heads.float(), key[part].float(), first_head)
            by_group = weights.view(-1, group_heads, rows, keys)
            mean[part] = by_group.mean(dim=(1, 2))
            if only_mean:
                continue
            if rows > 1:
                spread = by_group.var(dim=2)
                variance[part] = spread.mean(dim=1)
                sums[0, part] = spread[:, :, :counted].sum(dim=(1, 2), dtype=torch.float64)
            inside = by_group[..., :counted]
            logarithm = (inside + EPSILON).log_()
            sums[1, part] = logarithm.mul_(inside).sum(dim=(1, 2, 3), dtype=torch.float64)
        return WindowStatistics(mean, variance, sums[0], -sums[1])

    def weights(self, query: torch.Tensor, key: torch.Tensor, first_head: int) -> torch.Tensor:
        """float32 [query heads, rows, keys]: weights of the edited attention before any mass transfer; 0
        where a row does not see a key.

        query: [rows, query heads, head_dim], the first of which is `first_head` of this rank; key: [KV heads
        that they are of, keys, head_dim].
        """
        rows, heads, head_dim = query.shape
        row = np.arange(self.first_row, self.first_row + rows)
        by_group = (query * self.scale).transpose(0, 1).reshape(len(key), -1, head_dim)
        logits = torch.bmm(by_group, key.transpose(1, 2)).view(heads, rows, -1)
        phase = np.searchsorted(self.table.phase_start[self.slot], row, side="right") - 1
        for each in np.unique(phase):
            held = slice(*np.searchsorted(phase, [each, each + 1]))
            self._edit(logits[:, held], row[held], int(each), slice(first_head, first_head + heads))
        later = int(np.searchsorted(self.places, self.first_row, side="right"))
        hidden = torch.from_numpy(self.places[later:] > row[:, None]).to(
            logits.device, non_blocking=True
        )
        logits[:, :, later:].masked_fill_(hidden, -torch.inf)
        return logits.softmax(dim=2)

    def _edit(self, logits: torch.Tensor, row: NDArray[np.int64], phase: int, heads: slice) -> None:
        """Scales, absolutes and biases of one phase on the logits of its rows, in place."""
        table, slot = self.table, self.slot
        line = table.lines.rows[table.line[slot, self.layer, phase]]
        vectors = table.vectors.rows[:, heads]
        fields = vectors[line[GROUP_FIELDS:]].reshape(-1, 3, logits.shape[0])
        by_group = fields.transpose(2, 0, 1)  # [heads, groups - 1, fields]
        if (by_group != _NOT_EDITED).any():
            plain = np.broadcast_to(_NOT_EDITED, (len(by_group), 1, 3))
            by_group = np.concatenate([plain, by_group], axis=1)
            start = table.range_start[slot, : table.range_count[slot]]
            ranges = np.searchsorted(start, self.places, side="right") - 1
            group = table.range_group[slot, ranges]
            of_key = torch.from_numpy(by_group[:, group]).to(logits.device, non_blocking=True)
            of_key = of_key[:, None]  # [heads, 1, keys, fields]
            added = logits.abs().mul_(of_key[..., ABSOLUTE]).add_(of_key[..., BIAS])
            logits.mul_(of_key[..., SCALE]).add_(added)
        trailing = vectors[line[TRAILING_BIAS]]
        if trailing.any():
            first, width = table.trailing[slot]
            behind = row[:, None] - self.places
            inside = (behind > 0) & (behind <= width) & (self.places >= first)
            added = torch.from_numpy(inside) * torch.from_numpy(trailing)[:, None, None]
            logits.add_(added.to(logits.device, non_blocking=True))
