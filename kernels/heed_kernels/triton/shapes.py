"""Launch shapes: what is fixed when a kernel is compiled, by head dimension, dtype and architecture.

Reasons, checked by tests/kernels/triton/gate.py:

- 64 query rows times heads. With head_dim up to 64 the accumulator leaves room for tiles of 64 keys at 4
  warps, and two programs fit on a multiprocessor (at most 255 registers a thread).
- Before sm_90 matrix products take operands from registers: 32 query rows times heads, and 8 warps. Of 64 at 128
  dimensions 1,324 B were spilled, of 32 it is 92 B, and nothing without transfers; at 64 dimensions 188 B and nothing.
- Of generated rows ptxas fits three programs by spilling: 356 B on sm_80, 396 B on sm_90 at 64 dimensions, and 156 B,
  for four programs, where they are observed. Told that it may have 255 registers it takes 166 to 248, spills nothing,
  and two fit.
- Wider heads take tiles of 32 keys and 8 warps, one program: as many warps as two programs of 4, and half
  the accumulator per thread. At 4 warps the second walk of partial transfers spilled 264 B (sm_90).
- float32 operands take twice the registers and shared memory, and their products no tensor cores: one program, which
  spills. In three parts of TF32 they spill a tenth of that; whether that is right and faster a GPU has to tell.
- Stages: as many tiles in flight as shared memory holds for two programs (227 KiB on sm_90 and sm_100,
  163 KiB on sm_80, where 86 and 89 have 99).
- Generated rows are limited by memory, not by products: smaller tiles, more programs.

How the keys are cut into tiles is part of the result's last bits, so it depends on dtype and head_dim
alone, never on a step or on what is edited.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """tile: keys of a tile; programs: to fit on a multiprocessor at once, by registers and memory; registers:
    so many a thread may have, where ptxas would stop before; None for its own choice."""

    tile: int
    warps: int
    stages: int
    programs: int
    registers: int | None = None


@cache
def machine(device: torch.device) -> tuple[int, int]:
    """Multiprocessors and compute capability (90 for 9.0) of a device."""
    if device.type != "cuda":
        return 4, 90
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, 10 * properties.major + properties.minor


def tile_heads(capability: int) -> int:
    """Query rows times query heads per KV head that a tile computes together (one row at least)."""
    return 64 if capability >= 90 else 32


def padded(head_dim: int) -> int:
    """head_dim rounded up to a power of two."""
    return max(16, 1 << (head_dim - 1).bit_length())


def tile_shape(head_dim: int, dtype: torch.dtype, capability: int) -> Shape:
    """Prompt rows. capability: 80 for sm_80 and so on."""
    dims, wide = padded(head_dim), dtype == torch.float32
    if wide:
        return Shape(16 if dims > 128 else 32, 8 if dims > 128 else 4, 2, 1)
    if dims > 64:
        return Shape(32, 8, 2, 1)
    return Shape(64, 4, 3, 2) if capability >= 90 else Shape(64, 8, 2, 1)


def split_shape(head_dim: int, dtype: torch.dtype) -> Shape:
    """Generated rows."""
    wide = dtype == torch.float32
    tile = 32 if wide or padded(head_dim) > 128 else 64
    return Shape(tile, 4, 2 if wide else 3, 2, 255)


MERGE = Shape(0, 4, 1, 2)
SCORE = Shape(0, 4, 1, 2)
MOVE = Shape(128, 4, 1, 2)
"""Tokens that are read before any of them is written."""
MOVED_DIMENSIONS = 32
"""Of a token's vector that one program moves, at most: with 128 tokens 32 elements per thread."""


PROGRAMS = 8
"""Programs per multiprocessor in a grid: more than fit at once, so that short units even out."""
