"""The methods that speak of images, on the dense attention of one layer, from their formulas. Shares no
code with Heed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from reference_scopes import REQUIRED, row_mask
from torch import Tensor

PARAMETERS: dict[str, dict[str, Any]] = {
    "pai": {"alpha": 0.5, "gamma": 1, "layers": None},
    "paint": {"alpha": 0.7, "beta": 0.3, "local_ratio": 0.25, "layers": None},
    "vaf": {"enh_para": 1.15, "sup_para": 1, "layers": None},
    "avar": {"alpha_img": 0.15, "alpha_sys": 0, "layers": "all", "rows": "after_image"},
    "adaptvis": {"w": REQUIRED, "layers": "all"},
    "var": {
        "move_fraction": 0.6,
        "rho": 0.5,
        "min_visual_mass": 0.2,
        "tau": 20.0,
        "include_text_sinks": True,
        "sink_dims": REQUIRED,
        "layers": None,
        "prefill": True,
        "decode": True,
    },
    "vhr": {
        "alpha": 2.0,
        "select_fraction": 0.5,
        "filter": True,
        "mode": "companion",
        "rows": "last_and_generated",
        "layers": None,
        "chosen": None,
        "companion": None,
    },
    "spin": {"ratio": 0.8, "lambda": 0.1, "layers": "all"},
    "gift": {
        "alpha": 5.0,
        "beta": 1.0,
        "saliency_layer": REQUIRED,
        "layers": REQUIRED,
        "head_fraction": 0.5,
        "content_rows": "all",
    },
}
"""As in `reference_parameters.PARAMETERS`; `layers` None are the method's own. `chosen` is no parameter:
heads that somebody else chose, by layer, taken over where the choice was a near-tie. Nor is `companion`: by
layer what the last row of the prompt without its images gives, [heads, head_dim]."""

MOST_SINKS = 64
"""VAR: of a layer, the first ones."""

NEAR_TIE = 1e-4
"""Two heads whose distances are as near as this, relatively, may change places."""


@dataclass(frozen=True)
class Images:
    """Where a sequence's images lie.

    visual: bool [tokens], the tokens whose embeddings come from an image. The markers around them, if
        any, are told by `first` and `end`: positions of the first image's beginning and the last one's end.
    seen: by image, how much the encoder's class token attends to each of its patches, which are its tokens:
        in the first layer and in the last but one, summed over heads.
    """

    visual: Tensor
    first: int
    end: int
    seen: Sequence[tuple[Tensor, Tensor]] = ()

    @classmethod
    def of(cls, visual: Tensor) -> Images:
        """Of a model whose images have no markers."""
        at = visual.nonzero()[:, 0].tolist()
        return cls(visual, at[0], at[-1] + 1) if at else cls(visual, 0, 0)

    @property
    def system(self) -> Tensor:
        """bool [tokens]: those before the first image."""
        return torch.arange(len(self.visual)) < self.first


def scales(edit: Mapping[str, Any], images: Images, prompt_length: int) -> tuple[Tensor, Tensor]:
    """c and a, each [rows, keys]: the logits s of the heads that are edited become c * s + a * |s|."""
    count = len(images.visual)
    factor, absolute = torch.ones(count, count), torch.zeros(count, count)
    row = torch.arange(count)
    match edit["method"]:
        case "pai":
            rows = row_mask("last_and_generated", count, prompt_length)
            absolute[rows[:, None] & images.visual] = edit["alpha"]
        case "paint":
            rows = row_mask("last_and_generated", count, prompt_length)
            local, summary = salient(images, edit["local_ratio"])
            absolute[rows[:, None] & local] = edit["alpha"]
            absolute[rows[:, None] & summary] = edit["beta"]
        case "vaf":
            rows = row >= images.end
            factor[rows[:, None] & images.visual] = edit["enh_para"]
            factor[rows[:, None] & images.system] = edit["sup_para"]
        case "avar":
            rows = row_mask(edit["rows"], count, prompt_length, images.end)
            factor[rows[:, None] & images.visual] = 1 + edit["alpha_img"]
            factor[rows[:, None] & images.system] = 1 - edit["alpha_sys"]
        case "adaptvis":
            factor[(row == prompt_length - 1)[:, None] & images.visual] = edit["w"]
    return factor, absolute


def salient(images: Images, ratio: float) -> tuple[Tensor, Tensor]:
    """PAINT: bool [tokens] each, of the local patches and of the summary of every image."""
    local, summary = torch.zeros_like(images.visual), torch.zeros_like(images.visual)
    positions = images.visual.nonzero()[:, 0].tolist()
    for first, later in images.seen:
        own, positions = positions[: len(first)], positions[len(first) :]
        low, _, high = statistics.quantiles(later.tolist(), n=4, method="inclusive")
        outlying = {n for n, c in enumerate(later.tolist()) if c > high + 1.5 * (high - low)}
        order = sorted(range(len(first)), key=lambda n: (-float(first[n]), n))
        top = set(order[: int(Fraction(str(ratio)) * len(first))]) - outlying
        local[[own[n] for n in top]] = True
        summary[[own[n] for n in outlying]] = True
    return local, summary


def redistributed(
    weights: Tensor,
    edit: Mapping[str, Any],
    heads: list[int],
    images: Images,
    layer_input: Tensor,
    prompt_length: int,
) -> Tensor:
    """VAR: the weights [heads, rows, keys] of one layer after it.

    layer_input: the residual stream before the layer's first norm, [rows, hidden_size].
    """
    position = torch.arange(len(images.visual))
    magnitude = layer_input[:, edit["sink_dims"]].abs().max(dim=-1).values
    phi = magnitude / (layer_input.pow(2).mean(dim=-1) + 1e-6).sqrt()
    sinks = (phi > edit["tau"]) & (position < prompt_length)
    if not (sinks & images.visual).any():
        return weights
    giving = sinks if edit["include_text_sinks"] else sinks & images.visual
    giving = giving & (giving.cumsum(0) <= MOST_SINKS)
    rest = images.visual & ~giving
    rows = torch.zeros_like(sinks)
    if edit["prefill"]:
        rows |= (position >= images.end) & (position < prompt_length)
    if edit["decode"]:
        rows |= position >= prompt_length
    result = weights.clone()
    for head in heads:
        for row in rows.nonzero()[:, 0].tolist():
            before = weights[head, row]
            on_image, on_rest = before[images.visual].sum(), before[rest].sum()
            if on_image < edit["min_visual_mass"] or on_rest < edit["rho"] * on_image:
                continue
            if on_rest == 0:
                continue
            moved = edit["move_fraction"] * before[giving].sum()
            after = before.clone()
            after[giving] *= 1 - edit["move_fraction"]
            after[rest] *= 1 + moved / on_rest
            result[head, row] = after
    return result


def suppressed(
    output: Tensor, edit: Mapping[str, Any], images: Images, raw: Tensor, prompt_length: int
) -> Tensor:
    """SPIN: head outputs [heads, rows, head_dim]. raw: logits before any edit, [heads, rows, keys]."""
    count = len(output)
    kept = int(Fraction(str(edit["ratio"])) * count)
    result = output.clone()
    for row in range(prompt_length - 1, output.shape[1]):
        looks = raw[:, row, images.visual].sum(dim=-1).tolist()
        order = sorted(range(count), key=lambda head: (-looks[head], head))
        for head in order[kept:]:
            result[head, row] *= edit["lambda"]
    return result


def reinforced(
    output: Tensor,
    edit: Mapping[str, Any],
    images: Images,
    weights: Tensor,
    value: Tensor,
    layer: int,
    prompt_length: int,
) -> Tensor:
    """VHR: head outputs [heads, rows, head_dim].

    weights: [heads, rows, keys]; value: [heads, keys, head_dim].
    """
    count, row = len(output), prompt_length - 1
    first = {"last_and_generated": row, "all": 0}[edit["rows"]]
    distance, size = [], []
    for head in range(count):
        if edit["mode"] == "companion":
            beside = edit["companion"][layer][head]
        else:
            text = torch.where(images.visual, 0.0, weights[head, row])
            beside = (text / text.sum()) @ value[head]
        distance.append(float((output[head, row] - beside).norm()))
        size.append(float(beside.norm() ** 2))
    out = [
        edit["filter"] and distance[head] > bound(distance) and size[head] > bound(size)
        for head in range(count)
    ]
    order = sorted((h for h in range(count) if not out[h]), key=lambda h: (-distance[h], h))
    chosen = sorted(order[: int(Fraction(str(edit["select_fraction"])) * count)])
    there = (edit["chosen"] or {}).get(layer, chosen)
    if there != chosen:
        swapped = [distance[head] for head in set(there) ^ set(chosen)]
        assert max(swapped) - min(swapped) <= NEAR_TIE * max(swapped), (layer, there, chosen)
    result = output.clone()
    result[there, first:] *= edit["alpha"]
    return result


def saliency(
    edit: Mapping[str, Any], images: Images, weights: Tensor, prompt_length: int
) -> Tensor:
    """GIFT's, [visual keys], from the weights [heads, rows, keys] of its layer."""
    kept = int(Fraction(str(edit["head_fraction"])) * len(weights))
    rows = list(range(images.end, prompt_length - 1))
    if edit["content_rows"] != "all":
        spans = edit["content_rows"]
        rows = [r for r in rows if any(span["start"] <= r < span["end"] for span in spans)]
    if not rows or not kept:
        return torch.zeros(int(images.visual.sum()))
    on_image = weights[:, :, images.visual]
    turns = torch.stack([(on_image[:, r] - on_image[:, r - 1]).relu() for r in rows], dim=1)
    sums = turns.sum(dim=(1, 2)).tolist()
    top = sorted(range(len(weights)), key=lambda head: (-sums[head], head))[:kept]
    mean = turns[top].mean(dim=(0, 1))
    reach = 3 * mean.std()
    mean = mean.clamp(mean.mean() - reach, mean.mean() + reach)
    span = mean.max() - mean.min()
    return (mean - mean.min()) / span if span > 0 else torch.zeros_like(mean)


def shifted(
    output: Tensor,
    edit: Mapping[str, Any],
    images: Images,
    weights: Tensor,
    value: Tensor,
    salient: Tensor,
    prompt_length: int,
) -> Tensor:
    """GIFT: head outputs [heads, rows, head_dim] of a layer. weights: [heads, rows, keys]."""
    count, rows = weights.shape[:2]
    kept = int(Fraction(str(edit["head_fraction"])) * count)
    position = torch.arange(rows)
    question = (position >= images.end) & (position < prompt_length - 1)
    raised = (edit["alpha"] * salient).exp()
    result = output.clone()
    for row in range(prompt_length - 1, rows):
        now = weights[:, row].clone()
        image_mass = now[:, images.visual].sum(dim=1).tolist()
        question_mass = now[:, question].sum(dim=1).tolist()
        looking = sorted(range(count), key=lambda head: (-image_mass[head], head))[:kept]
        asking = sorted(range(count), key=lambda head: (-question_mass[head], head))[:kept]
        before = sum(image_mass[head] for head in looking)
        for head in looking:
            now[head, images.visual] *= raised
        after = sum(float(now[head, images.visual].sum()) for head in looking)
        for head in asking:
            now[head, question] *= edit["beta"] * after / before
        for head in {*looking, *asking}:
            result[head, row] = (now[head] / now[head].sum()) @ value[head]
    return result


def bound(values: list[float]) -> float:
    """Mean and one standard deviation (n - 1)."""
    return statistics.fmean(values) + statistics.stdev(values)
