"""Ratios over items with bootstrap intervals, and exact tests of answers that changed sides."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DRAWS = 4000
SPREAD = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean or a ratio over items, and the 95 % percentile interval of its bootstrap.

    Of 0/1 scores that few items change it is too narrow: five answers mended and none spoiled leave
    0 outside of it, and the exact test of `Turned` gives them 0.0625.
    """

    mean: float
    low: float
    high: float

    def rounded(self) -> list[float]:
        """Mean, low and high, as they are written down."""
        return [round(value, 5) for value in (self.mean, self.low, self.high)]


@dataclass(frozen=True)
class Ratio:
    """A measure over items as a ratio of two sums, 0 where the lower one is 0.

    parts, wholes: float64 [items]. A mean over items is the case in which every whole is 1.
    """

    parts: np.ndarray
    wholes: np.ndarray

    @classmethod
    def mean(cls, values: np.ndarray) -> "Ratio":
        """The mean of values, float64 [items]."""
        return cls(values, np.ones_like(values))

    @property
    def value(self) -> float:
        """Over all items, each once."""
        return float(_over(self.parts.sum(), self.wholes.sum()))

    def interval(self, seed: int) -> Interval:
        """Over draws of the items."""
        return _interval(self.value, self._drawn(seed))

    def minus(self, other: "Ratio", seed: int) -> Interval:
        """The difference from `other` on the same items: the same draws of both, so it is paired."""
        return _interval(self.value - other.value, self._drawn(seed) - other._drawn(seed))

    def _drawn(self, seed: int) -> np.ndarray:
        """float64 [DRAWS]."""
        weights = _weights(len(self.parts), seed)
        return _over(self.parts @ weights, self.wholes @ weights)


@dataclass(frozen=True)
class Turned:
    """Answers that a setting changed: wrong ones that it made right, and right ones made wrong."""

    mended: int
    spoiled: int

    @classmethod
    def of(cls, differences: np.ndarray) -> "Turned":
        """differences: [items], of paired 0/1 scores."""
        return cls(int((differences > 0).sum()), int((differences < 0).sum()))

    def p_two_sided(self) -> float:
        """McNemar's exact test: how likely a split at least so uneven is by chance, either way."""
        return min(1.0, 2 * _tail(max(self.mended, self.spoiled), self.mended + self.spoiled))

    def p_better(self) -> float:
        """The exact sign test: how likely at least so many of the changes mend by chance."""
        return _tail(self.mended, self.mended + self.spoiled)


def lower_bounds(differences: np.ndarray, level: float, seed: int) -> np.ndarray:
    """One-sided lower bounds of the means of differences.

    differences: float64 [settings, items]. Returns float64 [settings]: with probability `level`
    (over the choice of items) the mean is not below it, each setting taken by itself.
    """
    means = differences @ _weights(differences.shape[1], seed)
    return np.asarray(np.quantile(means, 1 - level, axis=1))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, ((1 - SPREAD) / 2, (1 + SPREAD) / 2))
    return Interval(value, float(low), float(high))


def _over(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0))


@lru_cache(maxsize=1)
def _weights(items: int, seed: int) -> np.ndarray:
    """float64 [items, DRAWS]: how often each item was drawn, over the number of items."""
    drawn = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=DRAWS)
    return drawn.T / items


def _tail(least: int, throws: int) -> float:
    """The probability of at least `least` heads in `throws` of a fair coin."""
    return sum(math.comb(throws, heads) for heads in range(least, throws + 1)) / (1 << throws)
