"""What the edits mean, on dense tensors, written to be read. All else is compared with it."""

from collections.abc import Sequence

import torch

from heed_kernels.edits import (
    Edit,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyScale,
    KeySet,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.rope import Rope


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edits: Sequence[Edit],
    layer: int,
    scale: float,
    rope: Rope | None = None,
) -> torch.Tensor:
    """Causal attention of one sequence in one layer, with edits, by definition.

    query: [rows, query_heads, head_dim]; key, value: [keys, kv_heads, head_dim]; one floating dtype,
    float64 for a definition. Row i stands at absolute position keys - rows + i. scale is the factor
    on the logits, 1 / sqrt(head_dim) in most models. rope is needed by rolling positions alone.
    Returns [rows, query_heads, head_dim].
    """
    rows, query_heads, _ = query.shape
    keys, kv_heads, _ = key.shape
    key = key.repeat_interleave(query_heads // kv_heads, dim=1)
    value = value.repeat_interleave(query_heads // kv_heads, dim=1)
    q = torch.arange(keys - rows, keys)[:, None]  # [rows, 1]
    k = torch.arange(keys)[None, :]  # [1, keys]

    seen = k <= q  # [rows, keys]
    logits = torch.einsum("qhd,khd->hqk", query, key) * scale  # [query_heads, rows, keys]
    for edit in edits:
        if isinstance(edit, VisibleKeys):
            seen = seen & ((k < edit.sinks) | (k > q - edit.window))
            if edit.rolling:
                assert rope is not None, "rolling positions need the model's rotary embedding"
                hidden = (q - edit.window - edit.sinks + 1).clamp(min=0)
                turned = rope.rotate(query, -hidden)
                to_sinks = torch.einsum("qhd,khd->hqk", turned, key) * scale
                logits = torch.where(k < edit.sinks, to_sinks, logits)

    factor = torch.ones_like(logits)
    absolute = torch.zeros_like(logits)
    bias = torch.zeros_like(logits)
    gain = torch.ones_like(logits[:, :, :1])
    for edit in edits:
        if isinstance(edit, VisibleKeys):
            continue
        on = _heads(edit.on, layer, query_heads) & _rows(edit.rows, q)
        if isinstance(edit, HeadGain):
            gain = torch.where(on, gain * edit.gain, gain)
            continue
        on = on & _keys(edit.keys, q, k)
        if isinstance(edit, KeyBias):
            bias = torch.where(on, bias + edit.bias, bias)
        elif isinstance(edit, KeyScale):
            factor = torch.where(on, factor * edit.scale, factor)
            absolute = torch.where(on, absolute + edit.absolute, absolute)

    logits = factor * logits + absolute * logits.abs() + bias
    weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", gain * weights, value)


def _heads(on: HeadSet, layer: int, query_heads: int) -> torch.Tensor:
    """[query_heads, 1, 1] bool: the heads of `layer` that are in the set."""
    mask = torch.zeros(query_heads, 1, 1, dtype=torch.bool)
    mask[list(on.heads(layer))] = True
    return mask


def _rows(rows: Rows, q: torch.Tensor) -> torch.Tensor:
    """[1, rows, 1] bool."""
    return ((q >= rows.start) & (q < rows.end))[None]


def _keys(keys: KeySet, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[1, rows, keys] bool."""
    if isinstance(keys, TrailingKeys):
        return ((k >= keys.first) & (k >= q - keys.window) & (k < q))[None]
    member = torch.zeros_like(q + k, dtype=torch.bool)
    for start, end in keys.ranges:
        member |= (k >= start) & (k < end)
    return member[None]
