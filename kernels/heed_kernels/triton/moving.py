"""Tokens of a paged cache that move to earlier places, in place: no memory is asked for while they move.

A move that stopped half-way would leave keys where no table looks for them, and tensor-parallel ranks
apart. So everything that it needs is there from the start: one buffer of token numbers, used again for
each part of a move.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from heed_kernels.triton import shapes
from heed_kernels.triton.move import move_tokens

NUMBERS = 1 << 17
"""Token numbers that are on the device at once, 1 MiB: where a layer's tokens come from and go to."""


class Mover:
    """Moves tokens of caches on a device, on the current stream. One for all of them, since moves that
    follow each other on a stream may share its buffer."""

    def __init__(self, device: torch.device, numbers: int = NUMBERS) -> None:
        self._numbers = torch.zeros(numbers, dtype=torch.int64, device=device)

    def move(
        self,
        caches: Sequence[torch.Tensor],
        sources: Sequence[NDArray[np.int64]],
        targets: NDArray[np.int64],
    ) -> None:
        """The i-th of `sources[g]` goes to `targets[i]`, for each KV head g.

        caches: [blocks, block_size, heads, vector], any strides but the last, which is 1; heads is a multiple of
            the KV heads, of which each has as many in turn.
        sources, targets: tokens, block * block_size + place in it; a target for each of the longest of `sources`.
            Nobody's source may be the target of an earlier one of the same head.
        """
        part = len(self._numbers) // (len(sources) + 1)
        for start in range(0, max(map(len, sources), default=0), part):
            count = min(len(targets) - start, part)
            staging = torch.full(
                (len(sources) + 1, count), -1, dtype=torch.int64, pin_memory=self._numbers.is_cuda
            )
            host = staging.numpy()
            for line, source in zip(host, sources, strict=False):
                here = source[start : start + count]
                line[: len(here)] = here
            host[-1] = targets[start : start + count]
            # The caching allocator gives pinned memory out again when the copy from it is done.
            self._numbers[: staging.numel()].copy_(staging.view(-1), non_blocking=True)
            for cache in caches:
                self._launch(cache, len(sources), count)

    def _launch(self, cache: torch.Tensor, kv_heads: int, count: int) -> None:
        _, block_size, heads, vector = cache.shape
        dims, shape = min(triton.next_power_of_2(vector), shapes.MOVED_DIMENSIONS), shapes.MOVE
        block, token, head, _ = cache.stride()
        move_tokens[(heads, triton.cdiv(vector, dims))](
            cache, self._numbers, kv_heads, count, block_size, block, token, head, vector,
            GROUP=heads // kv_heads, DIMS=dims, TOKENS=shape.tile,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
