"""Running sums of a layer's queries before rotation, for `ExpectedScore`, on the CPU."""

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.runtime import choose_threads, compiled
from heed_kernels.evict import ExpectedScore
from heed_kernels.rope import Rope

_TOGETHER = 8
"""Rows that are added to an element while it is at hand."""


class Turns:
    """Cosines and sines of a step's rows, which all layers of a request share."""

    def __init__(self) -> None:
        self._known: tuple[Rope, int, NDArray[np.float64]] | None = None

    def of(self, rope: Rope, first: int, rows: int) -> NDArray[np.float64]:
        """float64 [2, rows, rotary_dim / 2] of the positions from `first` on."""
        known = self._known
        if known is None or known[0] is not rope or known[1] != first or known[2].shape[1] != rows:
            angle = np.arange(first, first + rows)[:, None] * rope.inv_freq
            known = self._known = rope, first, np.stack([np.cos(angle), np.sin(angle)])
        return known[2]


class QueryMoments:
    """See `device.Moments`.

    Every row is added by itself and in order, so that chunks change no bit. Memory: 8 head_dim
    (head_dim + 1) bytes per query head, without covariance 8 head_dim.
    """

    def __init__(self, score: ExpectedScore, heads: int, head_dim: int, turns: Turns) -> None:
        self._score, self._turns = score, turns
        self._sum = np.zeros((heads, head_dim))
        side = head_dim if score.covariance else 0
        self._products = np.zeros((heads, side, side))  # those above the diagonal are not kept up
        self._next = score.first

    def add(self, query: torch.Tensor, first: int, rope: Rope) -> None:
        """See `device.Moments`."""
        query = query[max(self._score.first - first, 0) :]
        if not len(query):
            return
        choose_threads()
        add_rows(
            query.float().contiguous().numpy(),
            self._turns.of(rope, self._next, len(query)),
            rope.interleaved,
            self._sum,
            self._products,
        )
        self._next += len(query)

    def moments(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See `device.Moments`."""
        rows = max(self._next - self._score.first, 1)
        mean = torch.from_numpy(self._sum[heads] / rows)
        lower = torch.from_numpy(self._products[heads] / rows)
        covariance = lower.tril() + lower.tril(-1).transpose(1, 2)
        if self._score.covariance:
            covariance -= mean[:, :, None] * mean[:, None, :]
        return mean, covariance


@compiled(parallel=True, fastmath={"contract"})
def add_rows(query: Any, turns: Any, interleaved: Any, total: Any, products: Any) -> None:
    """Turn rows back, and add them to `total` and the products of their elements to `products`.

    query: float32 [rows, heads, head_dim]; turns: float64 [2, rows, rotary_dim / 2], see `Turns`; total: float64
    [heads, head_dim]; products: float64 [heads, head_dim, head_dim], on and below the diagonal, or no elements.
    """
    rows, heads, head_dim = query.shape
    half = turns.shape[2]
    for head in numba.prange(heads):
        own, sums = total[head], products[head]
        turned = np.zeros((_TOGETHER, head_dim))
        for start in range(0, rows, _TOGETHER):
            count = min(_TOGETHER, rows - start)
            for r in range(count):
                row, source = turned[r], query[start + r, head]
                for d in range(half):
                    first, second = (2 * d, 2 * d + 1) if interleaved else (d, d + half)
                    cos, sin = turns[0, start + r, d], turns[1, start + r, d]
                    x, y = np.float64(source[first]), np.float64(source[second])
                    row[first] = x * cos + y * sin
                    row[second] = y * cos - x * sin
                for d in range(2 * half, head_dim):
                    row[d] = source[d]
                for d in range(head_dim):
                    own[d] += row[d]
            turned[count:] = 0
            add_products(turned, sums)


@compiled(fastmath={"contract"})
def add_products(rows: Any, sums: Any) -> None:
    """rows: float64 [_TOGETHER, head_dim]; sums: float64 [head_dim, head_dim] or [0, 0].

    An element takes up the rows in their order, each rounded once, however many there are.
    """
    r0, r1, r2, r3, r4, r5, r6, r7 = (
        rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7],
    )  # fmt: skip
    for i in range(len(sums)):
        line = sums[i]
        a0, a1, a2, a3, a4, a5, a6, a7 = r0[i], r1[i], r2[i], r3[i], r4[i], r5[i], r6[i], r7[i]
        # A whole number of vectors: up to 15 elements above the diagonal.
        for j in range((i // 16 + 1) * 16):
            value = line[j] + a0 * r0[j]
            value = value + a1 * r1[j]
            value = value + a2 * r2[j]
            value = value + a3 * r3[j]
            value = value + a4 * r4[j]
            value = value + a5 * r5[j]
            value = value + a6 * r6[j]
            line[j] = value + a7 * r7[j]
