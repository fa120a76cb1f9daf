"""Means with bootstrap intervals over items, alone and paired."""

from dataclasses import dataclass

import numpy as np

DRAWS = 4000
SPREAD = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over items, and the 95 % percentile interval of its bootstrap."""

    mean: float
    low: float
    high: float

    def rounded(self) -> list[float]:
        """Mean, low and high, as they are written down."""
        return [round(value, 5) for value in (self.mean, self.low, self.high)]


def interval(values: np.ndarray, seed: int) -> Interval:
    """values: float64 [items]; a difference of two settings on the same items makes it paired."""
    means = values @ _weights(len(values), seed)
    low, high = np.quantile(means, ((1 - SPREAD) / 2, (1 + SPREAD) / 2))
    return Interval(float(values.mean()), float(low), float(high))


def lower_bounds(differences: np.ndarray, level: float, seed: int) -> np.ndarray:
    """One-sided lower bounds of the means of differences.

    differences: float64 [settings, items]. Returns float64 [settings]: with probability `level`
    (over the choice of items) the mean is not below it, each setting taken by itself.
    """
    means = differences @ _weights(differences.shape[1], seed)
    return np.asarray(np.quantile(means, 1 - level, axis=1))


def _weights(items: int, seed: int) -> np.ndarray:
    """float64 [items, DRAWS]: how often each item was drawn, over the number of items."""
    drawn = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=DRAWS)
    return drawn.T / items
