"""Which heads and rows an intervention edits, as requests write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import act_reference
import torch
from torch import Tensor

REQUIRED = object()
"""In the place of a default that a parameter does not have."""

OWN_LAYERS: dict[str, Callable[[int], Sequence[int]]] = {
    "act": act_reference.default_layers,
    "pai": lambda count: range(2, count),
    "paint": lambda count: range(2, count),
    "vaf": lambda count: range(9, min(15, count)),
    "var": lambda count: range(2, count - 1),
    "vhr": lambda count: sorted({1, *range(max(0, count - 14), count)}),
}
"""By method, the layers of a model with so many where the request names none."""


def heads_in_layer(intervention: Mapping[str, Any], layer: int, config: Any) -> list[int]:
    """Query heads of `layer` that the intervention edits."""
    layers, heads = intervention.get("layers", "all"), intervention.get("heads", "all")
    if isinstance(heads, Mapping):
        by_layer = {int(name) % config.num_hidden_layers: ids for name, ids in heads.items()}
        return list(by_layer.get(layer, []))
    if layers is None:
        layers = OWN_LAYERS[intervention["method"]](config.num_hidden_layers)
    if layers != "all" and layer not in [each % config.num_hidden_layers for each in layers]:
        return []
    return list(range(config.num_attention_heads)) if heads == "all" else list(heads)


def row_mask(rows: str, length: int, prompt_length: int, image_end: int = 0) -> Tensor:
    """`[length]`: which rows are in scope. image_end: position after the last image."""
    row = torch.arange(length)
    match rows:
        case "all":
            return row >= 0
        case "prompt":
            return row < prompt_length
        case "generated":
            return row >= prompt_length
        case "last_and_generated":
            return row >= prompt_length - 1
        case "after_image":
            return row >= image_end
    raise ValueError(f"rows: {rows!r}")
