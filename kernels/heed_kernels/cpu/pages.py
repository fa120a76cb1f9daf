"""Keys and values of a request by their places in its cache, in any layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.cpu.layout import Layout
from heed_kernels.device import Half


@dataclass(frozen=True)
class Pages:
    """The pages of one layer that a request has, see `device.Pages`.

    kv_cache: all pages of the layer, [blocks, local_kv_heads, block_size, 2 * head_dim] in `layout`;
    blocks: int32, the request's, in order; place k is token k % block_size of blocks[k // block_size].
    """

    kv_cache: torch.Tensor
    blocks: NDArray[np.int32]
    layout: Layout

    @classmethod
    def of(cls, kv_cache: torch.Tensor, blocks: ArrayLike, layout: Layout) -> "Pages":
        """With the blocks of a list, an array or a tensor on the CPU."""
        return cls(kv_cache, np.asarray(blocks, np.int32), layout)

    def read(self, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """See `device.Pages`. Blocks without any of the places are not read."""
        size, head_dim = self.layout.block_size, self.layout.head_dim
        block, token = places // size, places % size
        begins = np.diff(block, prepend=-1) > 0
        pages = torch.from_numpy(self.blocks[block[begins]].astype(np.int64))
        heads = self.kv_cache.shape[1]
        halves = self.kv_cache.view(*self.kv_cache.shape[:2], 2, size * head_dim)
        stored = halves[:, :, int(half == "value")].index_select(0, pages)
        by_head = self._in_order(stored, half).transpose(0, 1)
        rows = by_head.reshape(heads, len(pages) * size, head_dim)
        if len(places) and places[-1] + 1 == len(places):
            return rows[:, : len(places)]
        at = (np.cumsum(begins) - 1) * size + token
        return rows.index_select(1, torch.from_numpy(at))

    def _in_order(self, stored: torch.Tensor, half: Half) -> torch.Tensor:
        """[pages, local_kv_heads, block_size, head_dim] of what lies in pages' halves, [pages, local_kv_heads,
        block_size * head_dim]."""
        layout = self.layout
        size, head_dim = layout.block_size, layout.head_dim
        in_order = (*stored.shape[:2], size, head_dim)
        if half == "key" and layout.key_row == size:
            return stored.view(*stored.shape[:2], head_dim, size).transpose(2, 3)
        if half == "value" and layout.value_row == head_dim:
            return stored.view(in_order)
        offset = layout.key_offset if half == "key" else layout.value_offset
        inside = torch.from_numpy(offset.ravel() % (size * head_dim)).long()
        return stored.gather(2, inside.expand_as(stored)).view(in_order)

    def move(self, kept: Sequence[NDArray[np.int64]], targets: NDArray[np.int32]) -> None:
        """See `device.Pages`."""
        target = Pages(self.kv_cache, targets, self.layout)
        for head, places in enumerate(kept):
            to = np.arange(len(places))
            # All is read before anything is written: both may be the same blocks.
            moved = torch.take(self.kv_cache, self._elements(head, places))
            self.kv_cache.put_(target._elements(head, to), moved)

    def _elements(self, head: int, places: NDArray[np.int64]) -> torch.Tensor:
        """Where the elements lie among those of `kv_cache`, int64 [places, 2 * head_dim]."""
        size = self.layout.block_size
        page = self.kv_cache.shape[2] * self.kv_cache.shape[3]
        block = self.blocks[places // size].astype(np.int64)
        start = (block * self.kv_cache.shape[1] + head) * page
        return torch.from_numpy(start[:, None] + self.layout.offset[places % size])
