"""When the reference evicts, and what its attention looked like then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from eviction_definition import Choice, Kept, Layer, MeanRotation, differing
from torch import Tensor


@dataclass(frozen=True)
class Eviction:
    """Rows from `end` on see, of the keys before it, those in `kept`.

    differing: in how many keys, all at the cut, they are not those of the definition.
    """

    end: int
    kept: Kept
    differing: int = 0


def adopted(
    end: int, choice: Choice, reported: Mapping[str, Any] | None, *, anywhere: bool = False
) -> Eviction:
    """The choice, or what a server has reported, {"layer": [positions per KV head]}, where keys at the
    cut went the other way. anywhere: other keys may have, too, if there are as many in all.

    Raises:
        AssertionError: what was reported is no such choice.
    """
    if reported is None:
        return Eviction(end, choice.kept)
    layers = range(len(choice.kept))
    found = [[np.array(kept) for kept in reported[str(layer)]] for layer in layers]
    if anywhere:
        assert kept_keys(found) == kept_keys(choice.kept)
        return Eviction(end, found)
    return Eviction(end, found, differing(choice, found))


def kept_keys(kept: Kept) -> int:
    """Over all layers and KV heads."""
    return sum(len(keys) for heads in kept for keys in heads)


def ends(
    edit: Mapping[str, Any], prompt_length: int, length: int, block_size: int
) -> Iterator[int]:
    """Numbers of rows after which keys may be evicted, as long as there are rows to miss them."""
    yield prompt_length
    if edit.get("decode"):
        first = prompt_length // block_size * block_size + block_size
        yield from range(first, length, block_size)


def held_at(end: int, evictions: Sequence[Eviction]) -> Kept | None:
    """The keys that each head holds when `end` rows have been computed; None: all."""
    if not evictions:
        return None
    last = evictions[-1]
    new = np.arange(last.end, end)
    return [[np.concatenate((kept, new)) for kept in heads] for heads in last.kept]


def evicted(evictions: Sequence[Eviction], layer: int, heads: int, rows: int) -> Tensor:
    """`[heads, rows, keys]`: the keys that were gone when a row was computed."""
    gone = torch.zeros(heads, rows, rows, dtype=torch.bool)
    for eviction in evictions:  # a later one takes the place of those before it
        kept = eviction.kept[layer]
        for head in range(heads):
            gone[head, eviction.end :, : eviction.end] = True
            gone[head, eviction.end :, kept[head * len(kept) // heads]] = False
    return gone


@dataclass(frozen=True)
class Observed:
    """What a pass over a prompt leaves for the definitions."""

    layers: list[Layer]
    mean_rotation: MeanRotation

    @classmethod
    def of(cls, attentions: Sequence[Any]) -> Observed:
        """From the `EditedAttention` of each layer, once called."""
        layers = [_layer(attention) for attention in attentions]
        return cls(layers, partial(_mean_rotation, attentions[0]))


def _layer(attention: Any) -> Layer:
    query, key, value = attention.states
    positions = torch.arange(query.shape[1])
    turned_query = attention.rotate(query, positions)
    turned_key = attention.rotate(key, positions)
    step = attention.group
    arrays = (attention.observed, turned_query, query, turned_key[::step], value[::step])
    return Layer(*(array.double().numpy() for array in arrays))


def _mean_rotation(attention: Any, first: int, count: int) -> np.ndarray:
    width = attention.module.head_dim
    unit = torch.eye(width)[:, None].expand(-1, count, -1)
    turned: Tensor = attention.rotate(unit, torch.arange(first, first + count))
    return turned.double().mean(dim=1).T.numpy()
