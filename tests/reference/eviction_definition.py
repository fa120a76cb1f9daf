"""Which keys each eviction method keeps, by its formula: dense, float64, one function per formula.

This file shares no code with Heed. It knows a request's attention as a whole, every row and every
key, and is written to be read. Symbols: P prompt tokens, H KV heads, keys and rows by position; `end`
rows have been computed when keys are chosen (P, or more in decode).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
MeanRotation = Callable[[int, int], Array]
"""(first, count) -> [head_dim, head_dim]: the mean of the rotations of `count` positions from `first`."""

COMMON: dict[str, Any] = {"budget": None, "keep": None, "sinks": 0, "recent": None}
WINDOWED: dict[str, Any] = {**COMMON, "window": 32, "kernel": 5, "pooling": "avg"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "snapkv": WINDOWED,
    "h2o": {**COMMON, "decode": True},
    "tova": {**COMMON, "decode": True},
    "knorm": COMMON,
    "keydiff": COMMON,
    "pyramidkv": {**WINDOWED, "beta": 20},
    "adakv": {**WINDOWED, "kernel": 7, "pooling": "max", "floor": 0.5},
    "expected_attention": {
        **COMMON,
        "sinks": 4,
        "n_future_positions": 512,
        "use_covariance": True,
        "epsilon": 0.02,
    },
    "task_kv": {
        **WINDOWED,
        "sinks": 16,
        "recent": 256,
        "kernel": 7,
        "beta": 0.25,
        "m": None,
        "t": 256,
    },
    "tappa": {**WINDOWED, "gamma_c": 200, "alpha": None, "tau1": 1.6, "tau2": 0.4},
}


@dataclass(frozen=True)
class Layer:
    """What one layer computed, float64.

    weights: [query_heads, rows, keys] of the edited attention. query, unrotated: [query_heads, rows,
    head_dim], after and before RoPE. key (after RoPE), value: [kv_heads, keys, head_dim].
    """

    weights: Array
    query: Array
    unrotated: Array
    key: Array
    value: Array

    @property
    def kv_heads(self) -> int:
        return len(self.key)


NEAR = 1e-5
"""Keys whose scores lie so near to the cut, relatively, may be kept by one side and not by the other:
float32 is not more exact. Norms of keys are equal but for rounding where a token stands twice."""

Kept = list[list[Array]]
"""[layers][kv_heads] ascending positions."""


@dataclass(frozen=True)
class Choice:
    """kept, and the scores that decided: [layers][kv_heads] arrays over keys, -inf where none."""

    kept: Kept
    scores: list[Array]


@dataclass(frozen=True)
class Budget:
    """Keys per KV head on the average, of which the protected ones are [0, sinks) and [tail, end)."""

    count: int
    sinks: int
    tail: int
    end: int

    @property
    def protected(self) -> int:
        return self.sinks + self.end - self.tail

    @property
    def free(self) -> int:
        return self.count - self.protected


def budget_of(parameters: Mapping[str, Any], prompt: int, end: int) -> Budget | None:
    """None where nothing is evicted from a prompt of this length."""
    window, recent = parameters.get("window", 0), parameters["recent"]
    if parameters["keep"] == 1 or window > prompt:
        return None
    count = parameters["budget"] or max(1, math.floor(parameters["keep"] * prompt + 1e-9))
    if recent is None:
        recent = count // 2 if parameters["method"] == "h2o" else 0
    recent = max(recent, window)
    count = max(count, parameters["sinks"] + recent)
    if count >= prompt and (not parameters.get("decode") or parameters["budget"] is None):
        return None
    return Budget(count, parameters["sinks"], max(0, end - recent), end)


def choose(
    parameters: Mapping[str, Any],
    layers: Sequence[Layer],
    has: Kept | None,
    prompt: int,
    end: int,
    mean_rotation: MeanRotation,
) -> Choice | None:
    """What is kept when `end` rows have been computed; None where every head keeps all it has.

    parameters: with every default filled in. has: the keys that each head still has; None: all.
    """
    budget = budget_of(parameters, prompt, end)
    if budget is None:
        return None
    if has is None:
        has = [[np.arange(end)] * layer.kv_heads for layer in layers]
    scores = [score(parameters, layer, budget, prompt, mean_rotation) for layer in layers]
    counts = shares(parameters, layers, scores, budget, prompt)
    kept = [
        [best(scores[i][g], has[i][g], counts[i][g], budget) for g in range(layers[i].kv_heads)]
        for i in range(len(layers))
    ]
    everything = all(
        len(one) == len(other)
        for ones, others in zip(kept, has, strict=True)
        for one, other in zip(ones, others, strict=True)
    )
    return None if everything else Choice(kept, scores)


def differing(choice: Choice, found: Kept) -> int:
    """How many keys only one of the two keeps, all of them at the cut.

    Raises:
        AssertionError: the counts differ, or a key that is not within NEAR of the cut.
    """
    count = 0
    for layer, (ours, theirs) in enumerate(zip(choice.kept, found, strict=True)):
        for head, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert len(one) == len(other), (layer, head, len(one), len(other))
            apart = np.setxor1d(one, other)
            if len(apart):
                scores = choice.scores[layer][head][apart]
                assert np.ptp(scores) <= NEAR * np.abs(scores).max(), (layer, head, apart)
            count += len(apart)
    return count


def best(scores: Array, has: Array, count: int, budget: Budget) -> Array:
    """The protected keys and the highest scores among the others, of equal ones the first."""
    protected = (has < budget.sinks) | (has >= budget.tail)
    others = has[~protected]
    order = np.argsort(-scores[others], kind="stable")
    chosen = others[order[: max(0, count - int(protected.sum()))]]
    return np.sort(np.concatenate((has[protected], chosen)))


# Scores: [kv_heads, end].


def score(
    parameters: Mapping[str, Any],
    layer: Layer,
    budget: Budget,
    prompt: int,
    mean_rotation: MeanRotation,
) -> Array:
    end = budget.end
    match parameters["method"]:
        case "h2o":
            return by_group(layer.weights[:, :end, :end].sum(axis=1), layer.kv_heads)
        case "tova":
            last = layer.weights[:, end - 1, :end].mean(axis=0)
            return np.tile(last, (layer.kv_heads, 1))
        case "knorm":
            return -np.linalg.norm(layer.key[:, :end], axis=-1)
        case "keydiff":
            unit = layer.key[:, :end] / np.linalg.norm(layer.key[:, :end], axis=-1, keepdims=True)
            anchor = unit.mean(axis=1, keepdims=True)
            return -(unit * anchor).sum(-1) / np.linalg.norm(anchor, axis=-1)
        case "expected_attention":
            return expected(parameters, layer, prompt, mean_rotation)
        case _:
            return windowed(parameters, layer, budget)


def by_group(values: Array, kv_heads: int) -> Array:
    """Mean over the query heads of each KV head."""
    return values.reshape(kv_heads, -1, *values.shape[1:]).mean(axis=1)


def window_weights(parameters: Mapping[str, Any], layer: Layer, end: int) -> Array:
    """[query_heads, window, end]."""
    return layer.weights[:, end - parameters["window"] : end, :end]


def windowed(parameters: Mapping[str, Any], layer: Layer, budget: Budget) -> Array:
    """SnapKV's score, with TAPPA's variance; keys of the tail have none."""
    weights = window_weights(parameters, layer, budget.end)
    values = weights.mean(axis=1)
    if "gamma_c" in parameters:
        values = values + parameters["gamma_c"] * weights.var(axis=1, ddof=1)
    values = by_group(values, layer.kv_heads)[:, : budget.tail]
    pad = parameters["kernel"] // 2
    empty = 0.0 if parameters["pooling"] == "avg" else -np.inf
    padded = np.pad(values, ((0, 0), (pad, pad)), constant_values=empty)
    windows = np.lib.stride_tricks.sliding_window_view(padded, parameters["kernel"], axis=1)
    pooled = windows.mean(-1) if parameters["pooling"] == "avg" else windows.max(-1)
    return np.pad(pooled, ((0, 0), (0, budget.end - budget.tail)), constant_values=-np.inf)


def expected(
    parameters: Mapping[str, Any], layer: Layer, prompt: int, mean_rotation: MeanRotation
) -> Array:
    """Expected Attention; the sinks have no score."""
    first, width = parameters["sinks"], layer.key.shape[-1]
    turn = mean_rotation(prompt, parameters["n_future_positions"])
    scores = np.full((layer.kv_heads, prompt), -np.inf)
    group = len(layer.unrotated) // layer.kv_heads
    for g in range(layer.kv_heads):
        key, weights = layer.key[g, first:prompt], []
        for query in layer.unrotated[g * group : (g + 1) * group, first:prompt]:
            centred = query - query.mean(axis=0)
            logits = key @ (turn @ query.mean(axis=0)) / math.sqrt(width)
            if parameters["use_covariance"]:
                covariance = turn @ (centred.T @ centred / len(query)) @ turn.T
                logits = logits + ((key @ covariance) * key).sum(-1) / (2 * width)
            weights.append(softmax(logits))
        norms = np.linalg.norm(layer.value[g, first:prompt], axis=-1)
        scores[g, first:] = (np.mean(weights, axis=0) + parameters["epsilon"]) * norms
    return scores


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


# Shares: keys per layer and KV head.


def shares(
    parameters: Mapping[str, Any],
    layers: Sequence[Layer],
    scores: Sequence[Array],
    budget: Budget,
    prompt: int,
) -> list[list[int]]:
    even = [[budget.count] * layer.kv_heads for layer in layers]
    match parameters["method"]:
        case "pyramidkv":
            counts = pyramid(parameters["beta"], len(layers), budget, prompt)
            return [[n] * len(heads) for n, heads in zip(counts, even, strict=True)]
        case "adakv":
            return [adaptive(parameters["floor"], by_head, budget) for by_head in scores]
        case "task_kv":
            far = far_heads(parameters, len(layers), layers[0].kv_heads)
            return [
                by_kind(parameters, layer, n, budget) for layer, n in zip(layers, far, strict=True)
            ]
        case "tappa":
            counts = by_similarity(parameters, layers, budget)
            return [[n] * len(heads) for n, heads in zip(counts, even, strict=True)]
    return even


def rounded(parts: Sequence[float] | Array, total: int) -> list[int]:
    """Parts that add up to `total`, each rounded down, the largest remainders up again."""
    exact = np.asarray(parts, dtype=float)
    # A part that is whole in exact arithmetic must not be taken for a little less.
    whole = np.floor(exact + 1e-9)
    order = np.argsort(-np.round(exact - whole, 9), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return [int(part) for part in whole]


def pyramid(beta: float, layers: int, budget: Budget, prompt: int) -> list[int]:
    b = budget.free
    if prompt < 2 * b or layers == 1:
        return [budget.count] * layers
    least = math.floor(b / beta + 1e-9)
    most = 2 * b - least
    if most > prompt - budget.protected:
        most = prompt - budget.protected
        least = 2 * b - most
    line = [most - layer * (most - least) / (layers - 1) for layer in range(layers)]
    return [budget.protected + part for part in rounded(line, layers * b)]


def adaptive(floor: float, scores: Array, budget: Budget) -> list[int]:
    heads = len(scores)
    candidates = scores[:, budget.sinks : budget.tail]
    ranked = np.argsort(-candidates.ravel(), kind="stable")[: heads * budget.free]
    highest = np.bincount(ranked // candidates.shape[1], minlength=heads)
    parts = (1 - floor) * highest + floor * budget.free
    return [budget.protected + part for part in rounded(parts, heads * budget.free)]


def far_heads(parameters: Mapping[str, Any], layers: int, heads: int) -> list[int]:
    """f(r), rounded down; the default m is cut to what keeps f from rising."""
    first, last = heads * parameters["beta"], parameters["m"]
    if last is None:
        last = min(1, math.floor(first))
    if layers == 1:
        return [math.floor(first)]
    return [math.floor(first - (first - last) / (layers - 1) * r + 1e-9) for r in range(layers)]


def by_kind(parameters: Mapping[str, Any], layer: Layer, far: int, budget: Budget) -> list[int]:
    heads, prompt = layer.kv_heads, budget.end
    importance = by_group(window_weights(parameters, layer, prompt).mean(axis=1), heads)
    vectors = []
    for g in range(heads):
        top = np.argsort(-importance[g], kind="stable")[: parameters["t"]]
        vectors.append(importance[g, top] @ layer.value[g, top])
    distance = np.linalg.norm(np.array(vectors) - np.mean(vectors, axis=0), axis=-1)
    left, chosen = list(range(heads)), []
    for _ in range(min(far, heads)):
        farthest = max(distance[g] for g in left)
        chosen.append(next(g for g in left if distance[g] >= farthest * (1 - 1e-4)))
        left.remove(chosen[-1])
    if left:
        nearest = min(distance[g] for g in left)
        chosen.append(next(g for g in left if distance[g] <= nearest * (1 + 1e-4)))
        left.remove(chosen[-1])
    total = heads * budget.count
    if len(chosen) * prompt + len(left) * budget.protected <= total:
        rest = total - len(chosen) * prompt
        of_others = rounded([rest / len(left)] * len(left), rest) if left else []
        counts = dict(zip(sorted(left), of_others, strict=True)) | dict.fromkeys(chosen, prompt)
    else:
        rest = total - len(left) * budget.protected
        of_chosen = rounded([rest / len(chosen)] * len(chosen), rest)
        counts = dict.fromkeys(left, budget.protected)
        counts |= dict(zip(sorted(chosen), of_chosen, strict=True))
    return [counts[g] for g in range(heads)]


def by_similarity(
    parameters: Mapping[str, Any], layers: Sequence[Layer], budget: Budget
) -> list[int]:
    preferences = [max(0.0, preference(parameters, layer, budget)) for layer in layers]
    room = budget.end - budget.protected
    total = len(layers) * budget.free
    given = [0.0] * len(layers)
    open_layers = set(range(len(layers)))
    while open_layers:
        left = total - sum(given[i] for i in range(len(layers)) if i not in open_layers)
        weight = sum(preferences[i] for i in open_layers)
        for i in open_layers:
            part = preferences[i] / weight if weight > 0 else 1 / len(open_layers)
            given[i] = left * part
        over = {i for i in open_layers if given[i] > room}
        for i in over:
            given[i] = room
        if not over:
            break
        open_layers -= over
    return [budget.protected + part for part in rounded(given, total)]


def preference(parameters: Mapping[str, Any], layer: Layer, budget: Budget) -> float:
    rows = parameters["window"]
    cosines = []
    for query in layer.query[:, budget.end - rows : budget.end]:
        unit = query / np.linalg.norm(query, axis=-1, keepdims=True)
        similarity = unit @ unit.T
        cosines.append((similarity.sum() - np.trace(similarity)) / (rows * (rows - 1)))
    unlike = 1 - float(np.mean(cosines))
    if parameters["alpha"] is None:
        return unlike
    weights = window_weights(parameters, layer, budget.end)[:, :, : budget.tail]
    entropy = -(weights * np.log(weights + 1e-10)).sum()
    variance = weights.var(axis=1, ddof=1).sum()
    cake = entropy ** (1 / parameters["tau1"]) * variance ** (1 / parameters["tau2"])
    return float(cake + parameters["alpha"] * unlike)
