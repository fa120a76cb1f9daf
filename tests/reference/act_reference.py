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
    """Somebody else found other sinks. margin: how near a mean came to the threshold here."""

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
            rows, here, margin = parts[-1]
            if here != there:
                different.append(Disagreement(layer, head, here, there, margin))
                parts[-1] = rows, there, margin
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
) -> Iterator[tuple[slice, list[int], float]]:
    """Edited rows of one head that share their sinks, the sinks, and the margin of the decision."""
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
        yield slice(start, end), *sinks_of(weights[:rows, :rows], edit)


def sinks_of(weights: Tensor, edit: Mapping[str, Any]) -> tuple[list[int], float]:
    """Sinks found from the rows `[rows, rows]`, and the smallest distance of a mean to the threshold."""
    rows = len(weights)
    if rows == 0:
        return [], float("inf")
    seen_by = rows - torch.arange(rows)
    means = weights.double().sum(0) / seen_by
    threshold = edit["tau"] or (edit["alpha_over_n"] or 5.0) / rows
    flagged = [k for k in range(rows) if means[k] > threshold and seen_by[k] >= edit["min_rows"]]
    if edit["protect"] == "first_flagged":
        sinks = flagged[1:]
    else:
        sinks = [key for key in flagged if key != 0]
    sinks = sorted(sorted(sinks, key=lambda key: (-float(means[key]), key))[: edit["max_sinks"]])
    return sinks, float((means - threshold).abs().min())
