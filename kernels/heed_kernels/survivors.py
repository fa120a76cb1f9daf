"""From scores to survivors: how a budget is shared out, and which keys a head keeps.

Everything here is over the whole model's KV heads and the keys that they hold, in order; so the
protected keys are the first and the last ones. All tensor-parallel ranks compute the same.

A model may overflow. A score that is no number is then the lowest of all, a vector's element that is
not finite counts as 0, and so does such a preference; so every request keeps as many keys as it asks for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from heed_kernels.errors import EditError
from heed_kernels.evict import Evict, HeadShare, KindShare, QueryShare, WindowScore

NEAR = 1e-4
"""Distances to the centre that differ by less, relatively, count as equal."""


@dataclass(frozen=True)
class LayerScores:
    """What is decided from, of one layer.

    scores: float64 [kv_heads, keys], as pooled.
    vectors: float64 [kv_heads, head_dim], the semantic vectors; None but for `KindShare`.
    preference: of `QueryShare`; 0 for others.
    """

    scores: NDArray[np.float64]
    vectors: NDArray[np.float64] | None = None
    preference: float = 0.0


def pooled(scores: NDArray[np.float64], score: WindowScore, recent: int) -> NDArray[np.float64]:
    """`scores` [kv_heads, keys], averaged over the layer where it is asked for, and pooled without the
    last `recent` keys, which stay as they are."""
    if score.heads == "layer":
        scores = np.broadcast_to(scores.mean(axis=0), scores.shape)
    end = max(scores.shape[1] - recent, 0)
    side = score.kernel // 2
    if not side or not end:
        return scores
    beyond = 0.0 if score.pooling == "mean" else -np.inf
    padded = np.pad(scores[:, :end], ((0, 0), (side, side)), constant_values=beyond)
    windows = np.lib.stride_tricks.sliding_window_view(padded, score.kernel, axis=1)
    result = scores.copy()
    result[:, :end] = windows.mean(axis=2) if score.pooling == "mean" else windows.max(axis=2)
    return result


def survivors(edit: Evict, layers: Sequence[LayerScores]) -> list[list[NDArray[np.int64]]]:
    """Per layer and KV head, the kept ones of the head's keys, ascending."""
    layers = [_orderable(layer) for layer in layers]
    counts = head_counts(edit, layers)
    return [
        _best(layer.scores, of_heads, edit) for layer, of_heads in zip(layers, counts, strict=True)
    ]


def _orderable(layer: LayerScores) -> LayerScores:
    scores = np.where(np.isnan(layer.scores), -np.inf, layer.scores)
    vectors = layer.vectors
    if vectors is not None:
        vectors = np.where(np.isfinite(vectors), vectors, 0.0)
    liking = layer.preference if math.isfinite(layer.preference) else 0.0
    return LayerScores(scores, vectors, liking)


def head_counts(edit: Evict, layers: Sequence[LayerScores]) -> list[list[int]]:
    """Per layer and KV head, how many keys are kept. `EditError` where that is more than the edit's `most`."""
    held = [layer.scores.shape[1] for layer in layers]
    counts = [min(count, keys) for count, keys in zip(edit.counts, held, strict=True)]
    if isinstance(edit.share, QueryShare):
        counts = _by_preference(edit, layers, counts, held)
    result = []
    for index, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        match edit.share:
            case HeadShare():
                heads = _by_head(edit, edit.share, layer.scores, count)
            case KindShare():
                heads = _by_kind(edit, edit.share, layer, count, index)
            case _:
                heads = [count] * len(layer.scores)
        if max(heads) > edit.most:
            raise EditError(
                f"a head of layer {index} keeps {max(heads)} keys, at most {edit.most} may be"
            )
        result.append(heads)
    return result


def _protected(edit: Evict, keys: int) -> int:
    return min(edit.sinks + edit.recent, keys)


def _candidates(edit: Evict, keys: int) -> slice:
    """The keys that are not protected."""
    first = min(edit.sinks, keys)
    return slice(first, max(keys - edit.recent, first))


def _best(
    scores: NDArray[np.float64], counts: Sequence[int], edit: Evict
) -> list[NDArray[np.int64]]:
    """By KV head of a layer; scores: [kv_heads, keys]."""
    keys = scores.shape[1]
    free = _candidates(edit, keys)
    order = np.argsort(-scores[:, free], axis=1, kind="stable") + free.start
    kept = np.ones(scores.shape, bool)
    kept[:, free] = False
    for own, best, count in zip(kept, order, counts, strict=True):
        own[best[: max(count - _protected(edit, keys), 0)]] = True
    return [np.flatnonzero(own) for own in kept]


def _rounded(parts: Sequence[Fraction], total: int) -> list[int]:
    """Whole parts with the sum `total`: floors, and one more each for the largest remainders."""
    floors = [int(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda i: floors[i] - parts[i])
    for index in order[: total - sum(floors)]:
        floors[index] += 1
    return floors


def _by_head(edit: Evict, share: HeadShare, scores: NDArray[np.float64], count: int) -> list[int]:
    heads, keys = scores.shape
    protected = _protected(edit, keys)
    free = scores[:, _candidates(edit, keys)]
    budget = count - protected
    highest = np.argsort(-free, axis=None, kind="stable")[: heads * budget]
    inside = np.bincount(highest // max(free.shape[1], 1), minlength=heads)
    floor = Fraction(share.floor)
    parts = [(1 - floor) * int(n) + floor * budget for n in inside]
    return [protected + part for part in _rounded(parts, heads * budget)]


def _by_kind(
    edit: Evict, share: KindShare, layer: LayerScores, count: int, index: int
) -> list[int]:
    heads, keys = layer.scores.shape
    assert layer.vectors is not None
    chosen = chosen_heads(layer.vectors, share.far[index])
    others = [head for head in range(heads) if head not in chosen]
    counts = kind_counts(len(chosen), len(others), keys, _protected(edit, keys), count)
    result = [0] * heads
    for head, kept in zip([*chosen, *others], chain(*counts), strict=True):
        result[head] = kept
    return result


def kind_counts(
    chosen: int, others: int, keys: int, protected: int, count: int
) -> tuple[list[int], list[int]]:
    """Keys that each of the chosen heads and each of the others keeps, see `KindShare`.

    keys, protected: of each head; count: the layer's budget for a head.
    """
    budget = (chosen + others) * count
    if chosen * keys + others * protected <= budget:
        return [keys] * chosen, _even_parts(budget - chosen * keys, others)
    return _even_parts(budget - others * protected, chosen), [protected] * others


def _even_parts(total: int, parts: int) -> list[int]:
    return [total // parts + (place < total % parts) for place in range(parts)]


def chosen_heads(vectors: NDArray[np.float64], far: int) -> list[int]:
    """Ascending: the `far` heads farthest from the centre, and the nearest of the others.

    vectors: [kv_heads, head_dim].
    """
    distance = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    left = list(range(len(distance)))
    chosen = []
    for _ in range(min(far, len(left))):
        farthest = max(distance[head] for head in left)
        chosen.append(next(head for head in left if distance[head] >= farthest * (1 - NEAR)))
        left.remove(chosen[-1])
    if left:
        nearest = min(distance[head] for head in left)
        chosen.append(next(head for head in left if distance[head] <= nearest * (1 + NEAR)))
    return sorted(chosen)


def _by_preference(
    edit: Evict, layers: Sequence[LayerScores], counts: Sequence[int], held: Sequence[int]
) -> list[int]:
    protected = [_protected(edit, keys) for keys in held]
    room = [
        max(min(keys, edit.most) - least, 0) for keys, least in zip(held, protected, strict=True)
    ]
    total = min(sum(counts) - sum(protected), sum(room))
    weights = [Fraction(max(layer.preference, 0.0)) for layer in layers]
    parts, left = [Fraction(0)] * len(layers), Fraction(total)
    sharing = list(range(len(layers)))
    while sharing:
        sum_of_weights = sum(weights[layer] for layer in sharing)
        for layer in sharing:
            fraction = (
                weights[layer] / sum_of_weights if sum_of_weights else Fraction(1, len(sharing))
            )
            parts[layer] = left * fraction
        full = [layer for layer in sharing if parts[layer] > room[layer]]
        if not full:
            break
        for layer in full:
            parts[layer] = Fraction(room[layer])
            left -= room[layer]
            sharing.remove(layer)
    return [least + part for least, part in zip(protected, _rounded(parts, total), strict=True)]


def preference(share: QueryShare, features: NDArray[np.float64]) -> float:
    """A layer's preference. features: float64 [kv_heads, 3], of the last queries and their weights the mean
    over query heads of the mean cosine, the entropy, and the variance."""
    different = 1 - float(features[:, 0].mean())
    if share.alpha is None:
        return different
    entropy, variance = (max(float(part), 0.0) for part in features[:, 1:].sum(axis=0))
    return float(
        entropy ** (1 / share.tau1) * variance ** (1 / share.tau2) + share.alpha * different
    )
