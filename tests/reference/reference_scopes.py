"""Which heads and rows an intervention edits, as requests write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import act_reference
import torch
from torch import Tensor


def heads_in_layer(intervention: Mapping[str, Any], layer: int, config: Any) -> list[int]:
    """Query heads of `layer` that the intervention edits."""
    layers, heads = intervention.get("layers", "all"), intervention.get("heads", "all")
    if isinstance(heads, Mapping):
        by_layer = {int(name) % config.num_hidden_layers: ids for name, ids in heads.items()}
        return list(by_layer.get(layer, []))
    if layers is None:
        layers = act_reference.default_layers(config.num_hidden_layers)
    if layers != "all" and layer not in [each % config.num_hidden_layers for each in layers]:
        return []
    return list(range(config.num_attention_heads)) if heads == "all" else list(heads)


def row_mask(rows: str, length: int, prompt_length: int) -> Tensor:
    """`[length]`: which rows are in scope."""
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
    raise ValueError(f"rows: {rows!r}")
