"""Keys and values of a request by their places in its cache, in any layout."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.cpu.layout import Layout

Half = Literal["key", "value"]


@dataclass(frozen=True)
class Pages:
    """The pages of one layer that a request has.

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

    def read(self, head: int, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """A copy of a KV head's keys or values, [places, head_dim] in the cache's dtype."""
        return self._elements()[self._index(head, places, half)]

    def write(self, head: int, places: NDArray[np.int64], half: Half, values: torch.Tensor) -> None:
        """Put `values` [places, head_dim] there."""
        self._elements()[self._index(head, places, half)] = values

    def _elements(self) -> torch.Tensor:
        return self.kv_cache.view(*self.kv_cache.shape[:2], -1)

    def _index(
        self, head: int, places: NDArray[np.int64], half: Half
    ) -> tuple[torch.Tensor, int, torch.Tensor]:
        size = self.layout.block_size
        offset = self.layout.key_offset if half == "key" else self.layout.value_offset
        block = torch.from_numpy(self.blocks[places // size].astype(np.int64))
        return block[:, None], head, torch.from_numpy(offset[places % size].astype(np.int64))
