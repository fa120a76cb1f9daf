"""Where vLLM's CPU cache keeps each element of a page."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

Writer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""write(key, value, key_cache, value_cache, slot_mapping): key and value [tokens, kv_heads, head_dim];
the caches [blocks, kv_heads, block_size, head_dim], halves of a page; slot_mapping int64 [tokens].
vLLM's is `cpu_attn_reshape_and_cache` with the instruction set filled in."""

_BASE = 128
"""Numbers below it are exact in bfloat16, with room to spare."""


@dataclass(frozen=True)
class Layout:
    """The inside of a page's [2 * block_size * head_dim] elements of one KV head, K then V.

    key_offset, value_offset: int32 [block_size, head_dim], element of (token, dimension).
    key_row: elements from a dimension to the next where the tokens of a dimension are contiguous,
    else 0. value_row: elements from a token to the next where the dimensions of a token are
    contiguous, else 0. Both are set in the "vec" layouts, which the kernel reads in place.
    """

    block_size: int
    head_dim: int
    dtype: torch.dtype
    key_offset: NDArray[np.int32]
    value_offset: NDArray[np.int32]
    key_row: int
    value_row: int

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """int64 [block_size, 2 * head_dim], elements of a token's key and value."""
        return np.concatenate([self.key_offset, self.value_offset], axis=1).astype(np.int64)


def probe_layout(write: Writer, dtype: torch.dtype, block_size: int, head_dim: int) -> Layout:
    """Find the layout by writing numbered tokens and dimensions through `write`.

    dtype: of cache, float32, bfloat16 or float16. Raises `ValueError` where the elements of a page
    are no permutation of tokens and dimensions (quantised caches), or are cut in a way that the
    kernel has no code for.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"a cache of {dtype} cannot be read")
    if block_size % 16 or head_dim % 16:
        raise ValueError(
            f"block size {block_size} and head dimension {head_dim} must be multiples of 16"
        )
    token = np.broadcast_to(np.arange(block_size)[:, None], (block_size, head_dim))
    dimension = np.broadcast_to(np.arange(head_dim)[None, :], (block_size, head_dim))
    stored_token = _written(write, token, dtype)
    stored_dimension = _written(write, dimension, dtype)
    offsets = []
    for half in range(2):
        found = np.full((block_size, head_dim), -1, np.int64)
        at = np.arange(block_size * head_dim)
        inside = (stored_token[half] < block_size) & (stored_dimension[half] < head_dim)
        if not inside.all():
            raise ValueError("the cache does not hold keys and values as they were written")
        found[stored_token[half], stored_dimension[half]] = at + half * block_size * head_dim
        if (found < 0).any():
            raise ValueError("the cache does not hold every key and value once")
        offsets.append(found.astype(np.int32))
    key, value = offsets
    return Layout(
        block_size, head_dim, dtype, key, value, _row(key.T), _row(value - block_size * head_dim)
    )


def _written(write: Writer, numbers: NDArray[np.int64], dtype: torch.dtype) -> NDArray[np.int64]:
    """[2, block_size * head_dim]: what lies in K and V of a page after `numbers` were written."""
    tokens, head_dim = numbers.shape
    result = np.zeros((2, tokens * head_dim), np.int64)
    for factor, digits in ((1, numbers % _BASE), (_BASE, numbers // _BASE)):
        page = torch.zeros(1, 1, 2 * tokens, head_dim, dtype=dtype)
        key_cache, value_cache = page.chunk(2, dim=2)
        given = torch.from_numpy(digits.astype(np.float32)).to(dtype)[:, None, :].contiguous()
        write(given, given.clone(), key_cache, value_cache, torch.arange(tokens))
        result += page.float().round().long().reshape(2, -1).numpy() * factor
    return result


def _row(offset: NDArray[np.int32]) -> int:
    """Stride of the first axis where the second is contiguous and the whole starts at 0, else 0."""
    row = int(offset[1, 0] - offset[0, 0])
    expected = np.arange(offset.shape[0])[:, None] * row + np.arange(offset.shape[1])
    return row if row > 0 and np.array_equal(offset, expected) else 0
