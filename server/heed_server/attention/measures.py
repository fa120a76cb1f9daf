"""From what the workers measured to what an answer says. docs/attention.md has the formulas.

Arrays are float32 [layers, heads, …], see `heed_kernels.inspection.Inspection.shape`; results are
float64 and NaN where a number is not defined. T is the number of tokens.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heed_kernels.inspection import AHEAD

SHARE = 0.3
"""Share of the heads that are local, and of those that are global (arXiv 2510.13554)."""

SEEN = 16
"""Least rows that a secondary sink is seen by."""

Floats = NDArray[np.float64]


def column_mean(sums: ArrayLike) -> Floats:
    """[layers, heads, T]: mean weight of each key over the rows that come at or after it."""
    columns = np.asarray(sums, np.float64)
    length = columns.shape[-1]
    return np.asarray(columns / (length - np.arange(length)))


def sink_share(means: Floats, epsilon: float) -> tuple[Floats, Floats]:
    """Of `column_mean`: [layers, heads], the share of keys above epsilon; [T], the share of heads."""
    above = means > epsilon
    return above.mean(axis=-1), above.mean(axis=(0, 1))


def secondary_sinks(means: Floats, epsilon: float) -> NDArray[np.intp]:
    """Places [sinks, 3] of layer, head and key, in that order, of `column_mean`: keys behind the first one
    above epsilon. The last keys are left out: fewer than SEEN rows see them, mostly their own."""
    inside = means[..., 1 : max(means.shape[-1] - SEEN + 1, 1)]
    return np.asarray(np.argwhere(inside > epsilon) + np.array([0, 0, 1]))


def vas(image: ArrayLike, system: ArrayLike | None) -> tuple[Floats, float | None]:
    """Mass on the image over mass before it, [layers, heads, rows], and its mean (arXiv 2603.03825).

    system: None where no key is before the image.
    """
    ratio = _ratio(image, np.zeros_like(image) if system is None else system)
    return ratio, None if np.isnan(ratio).all() else float(np.nanmean(ratio))


def normalised_entropy(nats: ArrayLike, rows: ArrayLike) -> Floats:
    """[layers, heads, rows]: the entropy of each row over that of equal weights; not of row 0."""
    return _ratio(nats, np.log(np.asarray(rows) + 1.0))


def row_entropy(dormancy: NDArray[np.float32]) -> Floats:
    """[layers, heads]: mean of `normalised_entropy` over the rows from 1 on."""
    return _ratio(dormancy[..., 0], dormancy.shape[-1] - 2)


def column_entropy(sums: ArrayLike, dormancy: NDArray[np.float32]) -> Floats:
    """[layers, heads]: the largest entropy of a column, as a distribution over the rows that see the
    key, over that of equal weights. Keys that one row alone sees, or that get nothing, do not count."""
    columns = np.asarray(sums, np.float64)
    length = columns.shape[-1]
    if length < 2:
        return np.full(columns.shape[:-1], np.nan)
    columns = columns[..., :-1]
    safe = np.where(columns > 0, columns, 1)
    entropy = np.log(safe) - dormancy[..., 1:-1] / safe
    normalised = entropy / np.log(length - np.arange(length - 1))
    return np.asarray(np.where(columns > 0, normalised, 0).max(axis=-1))


def extreme_heads(distance: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places [pairs, 2] of the local heads, with the shortest spans, and of the global ones.

    distance: [layers, heads, response, 2]; a head's span is the mean of the first over the response.
    Of equal spans the lower layer and head is the shorter one. Each at least one head.
    """
    spans = distance[..., 0].mean(axis=-1, dtype=np.float64)
    order = np.argsort(spans, axis=None, kind="stable")
    count = max(1, int(SHARE * spans.size))
    places = np.stack(np.unravel_index(order, spans.shape), axis=-1)
    return places[:count], places[-count:]


def waad(distance: NDArray[np.float32], local: NDArray[np.intp]) -> Floats:
    """[response]: windowed average attention distance, of the map averaged over local heads.

    Between 0 and `inspection.LOCAL_WINDOW`.
    """
    return np.asarray(distance[local[:, 0], local[:, 1], :, 1].mean(axis=0, dtype=np.float64))


def fai(ahead: NDArray[np.float32], far: NDArray[np.intp], response: int) -> Floats:
    """[response]: future attention influence, what rows `AHEAD` of each token give it on the average,
    in the map averaged over global heads. Between 0 and 1; not defined where there is no such row."""
    sums = ahead[far[:, 0], far[:, 1]].mean(axis=0, dtype=np.float64)[response:]
    length = ahead.shape[-1]
    least, most = AHEAD
    token = np.arange(response, length)
    rows = np.minimum(length - 1, token + most) - (token + least) + 1
    return _ratio(sums, np.maximum(rows, 0))


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """NaN where the denominator is not above 0."""
    below = np.asarray(denominator, np.float64)
    return np.asarray(np.asarray(numerator, np.float64) / np.where(below > 0, below, np.nan))
