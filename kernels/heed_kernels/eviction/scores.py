"""Scores that need no attention weights, from keys, values and past queries."""

import torch

from heed_kernels.evict import ExpectedScore
from heed_kernels.eviction.threads import one_thread
from heed_kernels.rope import Rope

GROUP = 128
"""Rows that enter running sums together, aligned to absolute positions."""

KEYS = 256
"""Keys that meet a covariance at once."""


def norm_scores(key: torch.Tensor) -> torch.Tensor:
    """float64 [kv_heads, keys] from [kv_heads, keys, head_dim]."""
    norm: torch.Tensor = torch.linalg.vector_norm(key, dim=2)
    return -norm


def difference_scores(key: torch.Tensor) -> torch.Tensor:
    """float64 [kv_heads, keys] from [kv_heads, keys, head_dim]."""
    unit = torch.nn.functional.normalize(key, dim=2)
    mean = unit.mean(dim=1, keepdim=True)
    return -torch.nn.functional.cosine_similarity(key, mean, dim=2)


def query_similarity(query: torch.Tensor) -> torch.Tensor:
    """float64 [query_heads], see `QuerySimilarity`, of [rows, query_heads, head_dim]."""
    heads, head_dim = query.shape[1:]
    similarity = QuerySimilarity(heads, head_dim, query.device)
    similarity.add(query)
    return similarity.mean()


class QuerySimilarity:
    """Mean cosine of two different rows, while they come in; 0 where there is one row."""

    def __init__(self, heads: int, head_dim: int, device: torch.device | None = None) -> None:
        self._rows = 0
        self._sum = torch.zeros(heads, head_dim, dtype=torch.float64, device=device)
        self._same = torch.zeros(heads, dtype=torch.float64, device=device)

    def add(self, query: torch.Tensor) -> None:
        """query: [rows, heads, head_dim]."""
        unit = torch.nn.functional.normalize(query.double(), dim=2)
        self._rows += len(query)
        self._sum += unit.sum(dim=0)
        self._same += unit.square().sum(dim=(0, 2))

    def mean(self) -> torch.Tensor:
        """float64 [heads]."""
        pairs = self._sum.square().sum(dim=1) - self._same
        return pairs / max(self._rows * (self._rows - 1), 1)


class QueryMoments:
    """See `device.Moments`: in torch, for devices without a kernel for it.

    Rows are added in groups of GROUP by position, so that chunks change no bit. Memory: 8 head_dim
    (head_dim + GROUP) bytes per query head, without covariance 8 head_dim GROUP.
    """

    def __init__(
        self, score: ExpectedScore, heads: int, head_dim: int, device: torch.device
    ) -> None:
        self._score = score
        self._sum = torch.zeros(heads, head_dim, dtype=torch.float64, device=device)
        side = head_dim if score.covariance else 0
        self._products = self._sum.new_zeros(heads, side, side)
        self._waiting: list[torch.Tensor] = []
        self._next = score.first

    @one_thread
    def add(self, query: torch.Tensor, first: int, rope: Rope) -> None:
        """See `device.Moments`."""
        query = query[max(self._score.first - first, 0) :].double()
        position = torch.arange(self._next, self._next + len(query), device=query.device)
        query = rope.rotate(query, -position[:, None])
        while len(query):
            part = query[: GROUP - self._next % GROUP]
            self._waiting.append(part.clone())
            self._next += len(part)
            query = query[len(part) :]
            if self._next % GROUP == 0:
                self._settle()

    def moments(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See `device.Moments`."""
        total, products = self._sum[heads], self._products[heads]
        rows = max(self._next - self._score.first, 1)
        if self._waiting:
            total, products = self._added(heads)
        mean = total / rows
        covariance = products / rows
        if self._score.covariance:
            covariance = covariance - mean[:, :, None] * mean[:, None, :]
        return mean, covariance

    def _settle(self) -> None:
        self._sum, self._products = self._added(slice(None))
        self._waiting = []

    def _added(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums with the waiting rows, which stay where they are."""
        rows = torch.cat(self._waiting)[:, heads].transpose(0, 1)  # [heads, rows, head_dim]
        total = self._sum[heads] + rows.sum(dim=1)
        if not self._score.covariance:
            return total, self._products[heads]
        return total, self._products[heads] + rows.transpose(1, 2) @ rows


def mean_rotation(rope: Rope, head_dim: int, first: int, horizon: int) -> torch.Tensor:
    """float64 [head_dim, head_dim] R, the mean rotation of the positions from `first` on: x' = R x."""
    cos, sin = rope.angles(torch.arange(first, first + horizon))
    unit = torch.eye(head_dim, dtype=torch.float64)
    return rope.turn(unit, cos.mean(dim=0), sin.mean(dim=0)).T


def expected_scores(
    score: ExpectedScore,
    key: torch.Tensor,
    value: torch.Tensor,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    rotation: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """float64 [keys], 0 for the keys below the score's first.

    key, value: float64 [keys, head_dim]; mean, covariance: `device.Moments.moments` of the query heads of
    the KV head; rotation: `mean_rotation`; scale: on the logits.
    """
    turned, value = key[score.first :] @ rotation, value[score.first :]
    logits = mean @ turned.T * scale  # [heads, keys]
    if score.covariance:
        heads, head_dim = mean.shape
        of_all_heads = covariance.transpose(0, 1).reshape(head_dim, -1)
        for first in range(0, len(turned), KEYS):
            part = turned[first : first + KEYS]
            spread = (part @ of_all_heads).view(-1, heads, head_dim).mul_(part[:, None])
            logits[:, first : first + KEYS] += spread.sum(dim=2).T * (scale**2 / 2)
    weight = logits.softmax(dim=1).mean(dim=0)
    result = (weight + score.epsilon) * value.norm(dim=1)
    return torch.cat([result.new_zeros(score.first), result])
