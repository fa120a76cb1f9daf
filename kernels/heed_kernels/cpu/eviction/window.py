"""Weights of a request's last rows on all its keys, and what scores and shares take from them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.compiled import ABSOLUTE, BIAS, GROUP_FIELDS, SCALE, TRAILING_BIAS
from heed_kernels.table import EditTable

EPSILON = 1e-10
"""Added to a weight before its logarithm is taken."""

_NOT_EDITED = np.array([[1, 0, 0]], np.float32)
"""Scale, absolute and bias of keys without an edit."""


@dataclass(frozen=True)
class WindowStatistics:
    """Of the weights of some rows and one KV head; sums and means over its query heads.

    mean: float32 [keys], mean weight over rows and query heads.
    variance: float32 [keys], the n - 1 variance over rows, mean over query heads; 0 for a single row.
    total_variance: sum of the variances over query heads and the keys before the recent ones.
    entropy: sum of -w ln(w + EPSILON) over rows, query heads and the keys before the recent ones.
    """

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    total_variance: float
    entropy: float


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

    def statistics(
        self, query: torch.Tensor, key: torch.Tensor, first_head: int, *, only_mean: bool
    ) -> WindowStatistics:
        """query: [rows, query heads of one KV head, head_dim], the first of which is `first_head` of this
        rank; key: [keys, head_dim]; both float32. only_mean: leave the rest 0. Memory: some 12 bytes per
        row and key, for one query head at a time."""
        rows, heads, _ = query.shape
        counted = max(len(key) - self.recent, 0)
        mean, variance = torch.zeros(len(key)), torch.zeros(len(key))
        total_variance = entropy = 0.0
        for index in range(heads):
            weights = self.weights(query[:, index], key, first_head + index)
            mean += weights.mean(dim=0)
            if only_mean:
                continue
            if rows > 1:
                spread = weights.var(dim=0)
                variance += spread
                total_variance += float(spread[:counted].sum(dtype=torch.float64))
            inside = weights[:, :counted]
            entropy -= float((inside * (inside + EPSILON).log()).sum(dtype=torch.float64))
        return WindowStatistics(
            (mean / heads).numpy(), (variance / heads).numpy(), total_variance, entropy
        )

    def weights(self, query: torch.Tensor, key: torch.Tensor, head: int) -> torch.Tensor:
        """float32 [rows, keys]: weights of the edited attention before any mass transfer, by query head
        `head` of this rank; 0 where a row does not see a key. query: [rows, head_dim]."""
        row = np.arange(self.first_row, self.first_row + len(query))
        logits = (query * self.scale) @ key.T
        phase = np.searchsorted(self.table.phase_start[self.slot], row, side="right") - 1
        for each in np.unique(phase):
            held = slice(*np.searchsorted(phase, [each, each + 1]))
            self._edit(logits[held], row[held], int(each), head)
        later = int(np.searchsorted(self.places, self.first_row, side="right"))
        hidden = torch.from_numpy(self.places[later:] > row[:, None])
        logits[:, later:].masked_fill_(hidden, -torch.inf)
        return logits.softmax(dim=1)

    def _edit(self, logits: torch.Tensor, row: NDArray[np.int64], phase: int, head: int) -> None:
        """Scales, absolutes and biases of one phase on the logits of its rows, in place."""
        table, slot = self.table, self.slot
        line = table.lines.rows[table.line[slot, self.layer, phase]]
        vectors = table.vectors.rows[:, head]
        by_group = vectors[line[GROUP_FIELDS:]].reshape(-1, 3)  # [groups - 1, fields]
        if (by_group != _NOT_EDITED).any():
            by_group = np.concatenate([_NOT_EDITED, by_group])
            start = table.range_start[slot, : table.range_count[slot]]
            ranges = np.searchsorted(start, self.places, side="right") - 1
            of_key = torch.from_numpy(by_group[table.range_group[slot, ranges]])  # [keys, fields]
            added = logits.abs().mul_(of_key[:, ABSOLUTE]).add_(of_key[:, BIAS])
            logits.mul_(of_key[:, SCALE]).add_(added)
        trailing = float(vectors[line[TRAILING_BIAS]])
        if trailing:
            first, width = table.trailing[slot]
            behind = row[:, None] - self.places
            inside = (behind > 0) & (behind <= width) & (self.places >= first)
            logits.add_(torch.from_numpy(inside), alpha=trailing)
