"""What the edits mean, on dense tensors, written to be read. All else is compared with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heed_kernels.device import Found
from heed_kernels.edits import (
    SOURCES,
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    KeySet,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    PatchKeys,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.reference.compare import compared
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at


@dataclass(frozen=True)
class Evicted:
    """What an eviction left in one layer: rows read the places k < kept[g] and k >= end.

    kept: per KV head.
    """

    kept: Sequence[int]
    end: int


@dataclass(frozen=True)
class Weights:
    """Weights of one layer.

    before, after: [query_heads, rows, keys], without and with the mass transfer; a row that sees no
        key is all zeros.
    log_sum_exp: [query_heads, rows], of the edited logits of the visible keys; -inf where there is none.
    """

    before: torch.Tensor
    after: torch.Tensor
    log_sum_exp: torch.Tensor


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edits: Sequence[Edit],
    layer: int,
    scale: float,
    rope: Rope | None = None,
    found: Found | None = None,
    evicted: Evicted | None = None,
) -> torch.Tensor:
    """Causal attention of one sequence in one layer, with edits, by definition.

    query: [rows, query_heads, head_dim]; key, value: [keys, kv_heads, head_dim]; one floating dtype,
    float64 for a definition. Row i stands at absolute position keys - rows + i. scale is the factor
    on the logits, 1 / sqrt(head_dim) in most models. rope is needed by rolling positions and shifts
    alone, found by `FoundKeys`; after an eviction keys and values stand in their places. Returns
    [rows, query_heads, head_dim].
    """
    rows, query_heads, head_dim = query.shape
    weights = attention_weights(query, key, edits, layer, scale, rope, found, evicted)
    group = query_heads // value.shape[1]
    key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
    output = torch.einsum("hqk,khd->qhd", weights.after, value)
    q = torch.arange(len(key) - rows, len(key))[:, None]
    gain = torch.ones(query_heads, rows, 1, dtype=query.dtype)
    added = torch.zeros(query_heads, rows, head_dim, dtype=query.dtype)
    for edit in edits:
        if isinstance(edit, HeadGain):
            on = _heads(edit.on, layer, query_heads) & _rows(edit.rows, q)
            gain = torch.where(on, gain * edit.gain, gain)
        elif isinstance(edit, HeadMix):
            held = _rows(edit.rows, q)[0]
            for head, vector in mixed_vectors(edit, layer).items():
                added[head] += held * edit.weight * vector.to(query.dtype)
    output = output * gain.transpose(0, 1) + added.transpose(0, 1)
    return compared(edits, layer, query, key, value, weights.before, output, scale)


def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    edits: Sequence[Edit],
    layer: int,
    scale: float,
    rope: Rope | None = None,
    found: Found | None = None,
    evicted: Evicted | None = None,
) -> Weights:
    """The weights behind `attend`, with the same arguments."""
    rows, query_heads, _ = query.shape
    keys, kv_heads, _ = key.shape
    key = key.repeat_interleave(query_heads // kv_heads, dim=1)
    q = torch.arange(keys - rows, keys)[:, None]  # [rows, 1]
    k = torch.arange(keys)[None, :]  # [1, keys]
    seen = _visible(edits, q, k)[None]  # [1 or query_heads, rows, keys]
    if evicted is not None:
        kept = torch.tensor(evicted.kept).repeat_interleave(query_heads // kv_heads)
        seen = seen & ((k < kept[:, None, None]) | (k >= evicted.end))

    logits = torch.einsum("qhd,khd->hqk", query, key) * scale  # [query_heads, rows, keys]
    for keys_met, back in _turns(edits, q, k):
        assert rope is not None, "turned queries need the model's rotary embedding"
        turned = rope.rotate(query, -back)
        logits = torch.where(keys_met, torch.einsum("qhd,khd->hqk", turned, key) * scale, logits)

    factor = torch.ones_like(logits)
    absolute = torch.zeros_like(logits)
    bias = torch.zeros_like(logits)
    for edit in edits:
        if not isinstance(edit, KeyBias | KeyScale):
            continue
        assert not isinstance(edit.keys, PatchKeys), "the keys of patches are not known here"
        on = _heads(edit.on, layer, query_heads) & _rows(edit.rows, q) & _keys(edit.keys, q, k)
        if isinstance(edit, KeyBias):
            bias = torch.where(on, bias + edit.bias, bias)
        else:
            factor = torch.where(on, factor * edit.scale, factor)
            absolute = torch.where(on, absolute + edit.absolute, absolute)

    logits = factor * logits + absolute * logits.abs() + bias
    logits = logits.masked_fill(~seen, -torch.inf)
    before = torch.softmax(logits, dim=-1).masked_fill(~seen.any(dim=-1, keepdim=True), 0)
    after = before
    for edit in edits:
        if isinstance(edit, MassTransfer):
            on = _heads(edit.on, layer, query_heads) & _rows(edit.rows, q)
            after = torch.where(on, _transferred(edit, before, q, k, found), after)
    return Weights(before, after, logits.logsumexp(dim=-1))


def observed_columns(edit: ObserveColumns | FindKeys, before: torch.Tensor) -> torch.Tensor:
    """Sum of each key's weights over the rows of `edit`: [query_heads, keys], of all heads.

    before: `Weights.before` of every row from the first on, [query_heads, keys, keys].
    """
    q = torch.arange(before.shape[1])[:, None]
    return (before * _rows(edit.rows, q)).sum(dim=1)


def observed_mass(edit: ObserveMass, before: torch.Tensor) -> torch.Tensor:
    """m_keys of each row: [query_heads, rows], of all heads and rows.

    before: `Weights.before`, [query_heads, rows, keys].
    """
    rows, keys = before.shape[1:]
    q, k = torch.arange(keys - rows, keys)[:, None], torch.arange(keys)[None, :]
    return (before * _keys(edit.keys, q, k)).sum(dim=-1)


def found_keys(edit: FindKeys, columns: torch.Tensor, layer: int) -> list[list[int]]:
    """Per query head the keys that `edit` finds, ascending; none in heads that are not in its set.

    columns: [query_heads, keys], `observed_columns` over all rows of the sequence so far.
    """
    query_heads, keys = columns.shape
    k = torch.arange(keys)
    first, end = edit.rows.start, min(edit.rows.end, keys)
    support = (end - k.clamp(min=first)).clamp(min=0)  # rows that see each key
    mean = columns / support.clamp(min=1)
    threshold = threshold_at(edit, keys)
    protected = _keys(edit.protected, k[:1, None], k[None])[0, 0]
    result: list[list[int]] = []
    for head in range(query_heads):
        above = (mean[head] > threshold) & (support >= edit.least_rows)
        flagged = above.nonzero().flatten().tolist()
        if edit.protect_first:
            flagged = flagged[1:]
        flagged = [key for key in flagged if not protected[key]]
        flagged.sort(key=lambda key: (-mean[head, key].item(), key))
        kept = sorted(flagged[: min(edit.most, SOURCES)])
        result.append(kept if edit.on.masks[layer] >> head & 1 else [])
    return result


def flagged_keys(edit: FlagKeys, states: torch.Tensor) -> list[int]:
    """The keys that `edit` finds in a layer, ascending.

    states: hidden states of all tokens so far at the layer's input, [tokens, hidden_size].
    """
    largest = states[:, list(edit.dimensions)].abs().amax(dim=1)
    above = largest / (states.square().mean(dim=1) + 1e-6).sqrt() > edit.threshold
    k = torch.arange(len(states))
    flagged = above & _rows(edit.rows, k[:, None])[0, :, 0]
    needed = flagged & _keys(edit.needed, k[:1, None], k[None])[0, 0]
    if not needed.any():
        return []
    kept: list[int] = (needed if edit.only_needed else flagged).nonzero().flatten().tolist()
    return kept[:SOURCES]


def mixed_vectors(edit: HeadMix, layer: int) -> dict[int, torch.Tensor]:
    """float64 [head_dim] by query head of `layer`, not yet weighted."""
    data = np.frombuffer(edit.vectors, "<f4").reshape(edit.on.pair_count, -1)
    before = sum(mask.bit_count() for mask in edit.on.masks[:layer])
    heads = edit.on.heads(layer)
    rows = data[before : before + len(heads)].astype(np.float64)
    return {head: torch.from_numpy(row) for head, row in zip(heads, rows, strict=True)}


def _visible(edits: Sequence[Edit], q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """[rows, keys] bool: what each row sees."""
    seen = k <= q
    for edit in edits:
        if isinstance(edit, VisibleKeys):
            seen = seen & ((k < edit.sinks) | (k > q - edit.window))
        elif isinstance(edit, VisibleRanges):
            kept = KeyRanges(tuple((start, end) for start, end, _ in edit.ranges))
            seen = seen & (~_rows(edit.rows, q)[0] | _keys(kept, q, k)[0])
    return seen


def _turns(
    edits: Sequence[Edit], q: torch.Tensor, k: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys, [1, keys] bool, and how far the query of each row is turned back for them, [rows, 1]."""
    for edit in edits:
        if isinstance(edit, VisibleKeys) and edit.rolling:
            yield k < edit.sinks, (q - edit.window - edit.sinks + 1).clamp(min=0)
        elif isinstance(edit, VisibleRanges):
            for start, end, shift in edit.ranges:
                if shift:
                    yield (k >= start) & (k < end), torch.full_like(q, shift)


def _transferred(
    edit: MassTransfer,
    before: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    found: Found | None,
) -> torch.Tensor:
    """[query_heads, rows, keys]: the weights after the transfer, as if it held everywhere."""
    query_heads = len(before)
    source = torch.zeros(query_heads, 1, k.shape[1], dtype=torch.bool)
    if isinstance(edit.sources, FoundKeys):
        assert found is not None, "found keys are not known"
        for head, keys in enumerate(found):
            source[head, 0, list(keys)] = True
    else:
        source |= _keys(edit.sources, q[:1], k)

    def mass(keys: KeyRanges, without_sources: bool) -> torch.Tensor:
        members = _keys(keys, q, k) & ~(source & without_sources)
        return (before * members).sum(dim=-1, keepdim=True)  # [query_heads, rows, 1]

    moved = edit.fraction * (before * source).sum(dim=-1, keepdim=True)
    destination = mass(edit.destination, True)
    denominator = mass(edit.gate.denominator, False)
    open_ = mass(edit.gate.numerator, True) >= edit.gate.ratio * denominator
    open_ &= (denominator >= edit.gate.least) & (destination > 0)
    gain = 1 + moved / destination.masked_fill(destination == 0, 1)
    changed = before * torch.where(_keys(edit.destination, q, k), gain, 1.0)
    changed = torch.where(source, before * (1 - edit.fraction), changed)
    return torch.where(open_, changed, before)


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
