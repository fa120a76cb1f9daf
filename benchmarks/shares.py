"""Shares that are sums over items, and the paired bootstrap of the difference of two."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

DRAWS = 4000


@dataclass(frozen=True)
class Share:
    """Hits of an item, and how many there could have been: float64 [items] each, in the items' order."""

    hits: np.ndarray
    of: np.ndarray

    @classmethod
    def right(cls, answers: Iterable[bool]) -> "Share":
        """One hit at most for each item."""
        hits = np.fromiter(answers, float)
        return cls(hits, np.ones_like(hits))

    @property
    def percent(self) -> float:
        return float(100 * self.hits.sum() / max(self.of.sum(), 1))

    def interval(self) -> tuple[float, float]:
        """95 %, bootstrapped over items, in percent."""
        low, high = np.quantile(self._drawn(), (0.025, 0.975))
        return float(low), float(high)

    def change(self, plain: "Share") -> tuple[float, float, float]:
        """In points of percent against `plain` on the same items: the difference, and its interval."""
        low, high = np.quantile(self._drawn() - plain._drawn(), (0.025, 0.975))
        return self.percent - plain.percent, float(low), float(high)

    def _drawn(self) -> np.ndarray:
        """The share in each draw of items, the same draws for all shares of as many items."""
        items = len(self.hits)
        weights = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), size=DRAWS)
        return np.asarray(100 * (weights @ self.hits) / np.maximum(weights @ self.of, 1))
