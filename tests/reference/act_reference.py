"""ACT (arXiv 2406.15765) over the dense weights of one layer, from its formula. Shares no code with Heed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PARAMETERS: dict[str, Any] = {
    "beta": 0.4,
    "tau": None,
    "alpha_over_n": None,
    "stats": "full",
    "decode": "frozen",
    "protect": "first_flagged",
    "max_sinks": 64,
    "min_rows": 1,
    "layers": None,
    "heads": "all",
    "report": "summary",
    "sinks": None,
}
"""The defaults. `sinks` is none of the method's: what somebody else found, by layer and head, in force
for the last row; it is compared with what is found here, and then taken over."""


@dataclass(frozen=True)
class Disagreement:
    """Somebody else found other sinks. margin: how far the means here are from these, see `margin_to`."""

    layer: int
    head: int
    here: list[int]
    there: list[int]
    margin: float


def default_layers(layer_count: int) -> list[int]:
    return list(range(2, layer_count - 1))


def calibrated(
    weights: Tensor,
    edit: Mapping[str, Any],
    heads: Sequence[int],
    layer: int,
    prompt_length: int,
) -> tuple[Tensor, list[Disagreement]]:
    """The weights `[heads, rows, keys]` after ACT in `heads`, and where sinks differ from `sinks`."""
    result = weights.clone()
    different = []
    for head in heads:
        parts = list(segments(weights[head], edit, prompt_length))
        if edit["sinks"] is not None:
            there = edit["sinks"].get(layer, {}).get(head, [])
            rows, here, counted = parts[-1]
            if here != there:
                margin = margin_to(there, weights[head, :counted, :counted], edit)
                different.append(Disagreement(layer, head, here, there, margin))
                parts[-1] = rows, there, counted
        for rows, sinks, _ in parts:
            if sinks:
                result[head, rows] = moved(weights[head, rows], sinks, edit["beta"])
    return result, different


def moved(rows: Tensor, sinks: list[int], beta: float) -> Tensor:
    """`[rows, keys]`: sinks keep beta of what they have, the rest shares what they give."""
    others = torch.ones(rows.shape[-1], dtype=torch.bool)
    others[sinks] = False
    given = (1 - beta) * rows[:, sinks].sum(-1, keepdim=True)
    rest = rows[:, others].sum(-1, keepdim=True)
    changed = torch.where(others, rows * (1 + given / rest), rows * beta)
    return torch.where((rest > 0) & (given > 0), changed, rows)


def segments(
    weights: Tensor, edit: Mapping[str, Any], prompt_length: int
) -> Iterator[tuple[slice, list[int], int]]:
    """Edited rows of one head that share their sinks, the sinks, and how many rows they are found from."""
    length = len(weights)
    prompt = min(prompt_length, length)
    last = length if edit["decode"] != "off" else prompt
    if edit["stats"] == "full":
        starts, counted = [0], [prompt]
    else:
        starts = [0] + [row for row in (32 << n for n in range(30)) if row < prompt]
        counted = list(starts)
    if length > prompt and edit["decode"] != "off":
        if edit["decode"] == "running":
            starts += range(prompt, length)
            counted += range(prompt, length)
        elif edit["stats"] == "causal":
            starts.append(prompt)
            counted.append(prompt)
    for start, end, rows in zip(starts, [*starts[1:], last], counted, strict=True):
        yield slice(start, end), sinks_of(weights[:rows, :rows], edit), rows


def means_of(weights: Tensor, edit: Mapping[str, Any]) -> tuple[dict[int, float], float]:
    """Mean weight of each key that enough of the rows `[rows, rows]` see, ascending, and the threshold."""
    rows = len(weights)
    if rows == 0:
        return {}, float("inf")
    seen_by = rows - torch.arange(rows)
    means = (weights.double().sum(0) / seen_by).tolist()
    threshold = edit["tau"] or (edit["alpha_over_n"] or 5.0) / rows
    return {k: means[k] for k in range(rows) if seen_by[k] >= edit["min_rows"]}, threshold


def sinks_of(weights: Tensor, edit: Mapping[str, Any]) -> list[int]:
    """Sinks found from the rows `[rows, rows]`."""
    means, threshold = means_of(weights, edit)
    flagged = [key for key, mean in means.items() if mean > threshold]
    if edit["protect"] == "first_flagged":
        sinks = flagged[1:]
    else:
        sinks = [key for key in flagged if key != 0]
    return sorted(sorted(sinks, key=lambda key: (-means[key], key))[: edit["max_sinks"]])


def margin_to(sinks: list[int], weights: Tensor, edit: Mapping[str, Any]) -> float:
    """How far a mean of the rows `[rows, rows]` has to move, at the most, for `sinks` to be found from them.

    A key gets in, or out, by crossing the threshold; where there are `max_sinks` of them it also gets out
    by falling below the least. Keys on which both sides agree count for nothing, however near.
    """
    means, threshold = means_of(weights, edit)
    if not means.keys() >= set(sinks) or len(sinks) > edit["max_sinks"]:
        return float("inf")
    above = {key: max(0.0, mean - threshold) for key, mean in means.items()}
    below = {key: max(0.0, threshold - mean) for key, mean in means.items()}
    out = dict(above)
    if len(sinks) == edit["max_sinks"]:
        least = min(means[key] for key in sinks)
        out = {key: min(above[key], max(0.0, mean - least)) for key, mean in means.items()}
    get_in = max((below[key] for key in sinks), default=0.0)
    if edit["protect"] == "position_0":
        others = [out[key] for key in means if key not in sinks and key != 0]
        return float("inf") if 0 in sinks else max([get_in, *others])
    # Whichever key is the first flagged: those before it are not, it is, and it is no sink.
    ways = [] if sinks else [max(above.values(), default=0.0)]
    for first in means:
        if first >= min(sinks, default=len(weights)):
            break
        before = [above[key] for key in means if key < first]
        after = [out[key] for key in means if key > first and key not in sinks]
        ways.append(max([get_in, below[first], *before, *after]))
    return min(ways, default=float("inf"))
