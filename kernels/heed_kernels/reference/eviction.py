"""What scores, shares and survivors of an eviction are, in float64, written to be read.

The definitions are those of `evict.py`; all else is compared with this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    HeadShare,
    KindShare,
    NormScore,
    QueryShare,
    WindowScore,
)
from heed_kernels.rope import Rope

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """What a layer holds when `end` tokens are computed.

    position: int64 [kv_heads, keys], ascending, of the keys that are left.
    key, value: [kv_heads, keys, head_dim], as stored.
    weights: [query_heads, end, keys], of every row so far on these keys, before transfers.
    query: [end, query_heads, head_dim], rotated.
    """

    position: NDArray[np.int64]
    key: Floats
    value: Floats
    weights: Floats
    query: Floats

    @property
    def end(self) -> int:
        return len(self.query)

    @property
    def group_heads(self) -> int:
        """Query heads of a KV head."""
        return len(self.weights) // len(self.key)

    def by_group(self, of_query_heads: Floats) -> Floats:
        """Mean over the query heads of each KV head: [query_heads, …] -> [kv_heads, …]."""
        shape = (len(self.key), self.group_heads, *of_query_heads.shape[1:])
        result: Floats = of_query_heads.reshape(shape).mean(axis=1)
        return result


def scores(edit: Evict, held: Held, scale: float, rope: Rope | None = None) -> Floats:
    """[kv_heads, keys]. scale: on the logits; rope: needed by `ExpectedScore`."""
    match edit.score:
        case WindowScore() as score:
            return _window_scores(score, edit.recent, held)
        case ColumnScore():
            return held.by_group(held.weights.sum(axis=1))
        case NormScore():
            return np.asarray(-np.linalg.norm(held.key, axis=2))
        case DifferenceScore():
            unit = held.key / np.linalg.norm(held.key, axis=2, keepdims=True)
            mean = unit.mean(axis=1, keepdims=True)
            cosine: Floats = (unit * mean).sum(axis=2) / np.linalg.norm(mean, axis=2)
            return -cosine
        case ExpectedScore() as score:
            assert rope is not None
            return _expected_scores(score, held, scale, rope)


def survivors(
    edit: Evict, layers: Sequence[Held], scale: float, rope: Rope | None = None
) -> list[list[list[int]]]:
    """Positions that each KV head of each layer keeps, ascending."""
    by_layer = [scores(edit, held, scale, rope) for held in layers]
    result = []
    for held, given, counts in zip(
        layers, by_layer, counts_of(edit, layers, by_layer), strict=True
    ):
        heads = []
        for head, count in enumerate(counts):
            protected = protected_keys(edit, held, head)
            free = [k for k in range(given.shape[1]) if k not in protected]
            free.sort(key=lambda k, s=given[head]: (-s[k], k))  # type: ignore[misc]
            kept = protected | set(free[: max(count - len(protected), 0)])
            heads.append(sorted(int(held.position[head, k]) for k in kept))
        result.append(heads)
    return result


def protected_keys(edit: Evict, held: Held, head: int) -> set[int]:
    """Which of a head's keys are kept whatever their scores."""
    position = held.position[head]
    return {
        k
        for k in range(len(position))
        if position[k] < edit.sinks or position[k] >= held.end - edit.recent
    }


def counts_of(edit: Evict, layers: Sequence[Held], by_layer: Sequence[Floats]) -> list[list[int]]:
    """Keys that each KV head of each layer keeps, protected ones included."""
    keys = [held.position.shape[1] for held in layers]
    protected = [len(protected_keys(edit, held, 0)) for held in layers]
    counts = [min(count, n) for count, n in zip(edit.counts, keys, strict=True)]
    if isinstance(edit.share, QueryShare):
        counts = _layer_counts(edit, edit.share, layers, counts, keys, protected)
    result = []
    for layer, held in enumerate(layers):
        heads = [counts[layer]] * len(held.key)
        if isinstance(edit.share, HeadShare):
            heads = _head_counts(edit, edit.share, held, by_layer[layer], counts[layer])
        elif isinstance(edit.share, KindShare):
            chosen = _chosen_heads(vectors(edit.share, edit, held), edit.share.far[layer])
            heads = _kind_counts(
                chosen, len(held.key), counts[layer], keys[layer], protected[layer]
            )
        result.append([min(head, edit.most) for head in heads])
    return result


def vectors(share: KindShare, edit: Evict, held: Held) -> Floats:
    """The semantic vectors, [kv_heads, head_dim]."""
    assert isinstance(edit.score, WindowScore)
    mean = held.by_group(held.weights[:, -edit.score.window :].mean(axis=1))
    result = []
    for weight, value in zip(mean, held.value, strict=True):
        top = sorted(range(len(weight)), key=lambda k: (-weight[k], k))[: share.top]
        result.append(sum(weight[k] * value[k] for k in top))
    return np.array(result)


def preference(share: QueryShare, edit: Evict, held: Held) -> float:
    """How much of the budget a layer asks for, relative to others."""
    cosines = []
    last = held.query[-share.rows :]
    for head in range(last.shape[1]):
        unit = last[:, head] / np.linalg.norm(last[:, head], axis=1, keepdims=True)
        pairs = [unit[i] @ unit[j] for i in range(len(unit)) for j in range(len(unit)) if i != j]
        cosines.append(np.mean(pairs) if pairs else 0.0)
    different = 1 - float(np.mean(cosines))
    if share.alpha is None:
        return different
    w = held.weights[:, -share.rows :, : max(held.end - edit.recent, 0)]
    entropy = float(-(w * np.log(w + 1e-10)).sum())
    variance = float(w.var(axis=1, ddof=1).sum()) if w.shape[1] > 1 else 0.0
    cake = max(entropy, 0.0) ** (1 / share.tau1) * variance ** (1 / share.tau2)
    return float(cake + share.alpha * different)


def _window_scores(score: WindowScore, recent: int, held: Held) -> Floats:
    w = held.weights[:, -score.window :]
    raw = w.mean(axis=1)
    if w.shape[1] > 1:
        raw = raw + score.variance * w.var(axis=1, ddof=1)
    if score.heads == "group":
        raw = held.by_group(raw)
    else:
        raw = np.repeat(raw.mean(axis=0, keepdims=True), len(held.key), axis=0)
    pooled: Floats = raw.copy()
    side = score.kernel // 2
    for head in range(len(raw)):
        end = int((held.position[head] < held.end - recent).sum())
        for k in range(end):
            near = raw[head, max(k - side, 0) : min(k + side + 1, end)]
            pooled[head, k] = near.max() if score.pooling == "max" else near.sum() / score.kernel
    return pooled


def _expected_scores(score: ExpectedScore, held: Held, scale: float, rope: Rope) -> Floats:
    rows = torch.arange(score.first, held.end)
    query = rope.rotate(torch.from_numpy(held.query)[score.first :], -rows[:, None]).numpy()
    unit = torch.eye(query.shape[2], dtype=torch.float64)
    later = range(held.end, held.end + score.horizon)
    turned = [rope.rotate(unit, torch.tensor([t])).numpy().T for t in later]
    rotation = np.mean(turned, axis=0)
    result = np.zeros(held.position.shape)
    for head in range(len(held.key)):
        inside = held.position[head] >= score.first
        key, value = held.key[head, inside], held.value[head, inside]
        a = np.zeros(len(key))
        for own in range(head * held.group_heads, (head + 1) * held.group_heads):
            mu = query[:, own].mean(axis=0)
            logit = key @ rotation @ mu * scale
            if score.covariance:
                centred = query[:, own] - mu
                spread = rotation @ (centred.T @ centred / len(centred)) @ rotation.T
                logit += scale**2 / 2 * np.einsum("ki,ij,kj->k", key, spread, key)
            a += np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        a /= held.group_heads
        result[head, inside] = (a + score.epsilon) * np.linalg.norm(value, axis=1)
    return result


def _whole(parts: Sequence[Fraction], total: int) -> list[int]:
    result = [math.floor(part) for part in parts]
    while sum(result) < total:
        remainders = [part - floor for part, floor in zip(parts, result, strict=True)]
        result[remainders.index(max(remainders))] += 1
    return result


def _head_counts(edit: Evict, share: HeadShare, held: Held, given: Floats, count: int) -> list[int]:
    heads, keys = given.shape
    protected = protected_keys(edit, held, 0)
    budget = count - len(protected)
    free = [(head, k) for head in range(heads) for k in range(keys) if k not in protected]
    free.sort(key=lambda pair: (-given[pair], pair))
    highest = [head for head, _ in free[: heads * budget]]
    floor = Fraction(share.floor)
    parts = [(1 - floor) * highest.count(head) + floor * budget for head in range(heads)]
    return [len(protected) + part for part in _whole(parts, heads * budget)]


def _chosen_heads(vectors: Floats, far: int) -> set[int]:
    centre = vectors.mean(axis=0)
    distance = {head: float(np.linalg.norm(v - centre)) for head, v in enumerate(vectors)}
    chosen: set[int] = set()
    for _ in range(far):
        if distance:
            farthest = max(distance.values())
            chosen.add(min(h for h, d in distance.items() if d >= farthest * (1 - 1e-4)))
            distance = {h: d for h, d in distance.items() if h not in chosen}
    if distance:
        nearest = min(distance.values())
        chosen.add(min(h for h, d in distance.items() if d <= nearest * (1 + 1e-4)))
    return chosen


def _kind_counts(chosen: set[int], heads: int, count: int, keys: int, protected: int) -> list[int]:
    budget, others = heads * count, set(range(heads)) - chosen
    first, second, amount = chosen, others, keys
    if len(chosen) * keys + len(others) * protected > budget:
        first, second, amount = others, chosen, protected
    result = [amount if head in first else 0 for head in range(heads)]
    left = budget - amount * len(first)
    while left > 0 and second:
        for head in sorted(second):
            result[head] += left > 0
            left -= 1
    return result


def _layer_counts(
    edit: Evict,
    share: QueryShare,
    layers: Sequence[Held],
    counts: Sequence[int],
    keys: Sequence[int],
    protected: Sequence[int],
) -> list[int]:
    wish = [Fraction(max(preference(share, edit, held), 0.0)) for held in layers]
    room = [min(n, edit.most) - least for n, least in zip(keys, protected, strict=True)]
    total = sum(counts) - sum(protected)
    parts, open_ = [Fraction(0)] * len(layers), set(range(len(layers)))
    while open_:
        left = total - sum(parts[index] for index in range(len(layers)) if index not in open_)
        wishes = sum(wish[index] for index in open_)
        for index in open_:
            parts[index] = left * wish[index] / wishes if wishes else Fraction(left) / len(open_)
        full = {index for index in open_ if parts[index] > room[index]}
        for index in full:
            parts[index] = Fraction(room[index])
        if not full:
            break
        open_ -= full
    whole = _whole(parts, min(total, sum(room)))
    return [least + part for least, part in zip(protected, whole, strict=True)]
