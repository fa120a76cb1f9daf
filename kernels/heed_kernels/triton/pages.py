"""Keys and values of a request by their places in a paged cache on a device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import Half
from heed_kernels.triton.device_table import sent


@dataclass(frozen=True)
class DevicePages:
    """The pages of one layer that a request has, see `device.Pages`.

    key_cache, value_cache: [all blocks, block_size, local_kv_heads, head_dim] with any strides; blocks: int32
    [blocks] on their device, the request's, in order.
    """

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    blocks: torch.Tensor

    def read(self, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """See `device.Pages`."""
        cache = self.key_cache if half == "key" else self.value_cache
        return cache[self._at(self.blocks, places)].transpose(0, 1)

    def move(self, kept: Sequence[NDArray[np.int64]], targets: NDArray[np.int32]) -> None:
        """See `device.Pages`. Memory: a copy of what survives, once for keys and once for values."""
        counts = [len(places) for places in kept]
        device = self.key_cache.device
        heads = sent(np.repeat(np.arange(len(kept)), counts), device)
        source = self._at(self.blocks, np.concatenate(kept))
        to = np.concatenate([np.arange(count) for count in counts])
        target = self._at(sent(targets, device), to)
        for cache in (self.key_cache, self.value_cache):
            # All is read before anything is written: both may be the same blocks.
            cache[*target, heads] = cache[*source, heads]

    def _at(
        self, blocks: torch.Tensor, places: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks of the cache, and tokens in them."""
        at, size = sent(places, self.key_cache.device), self.key_cache.shape[1]
        return blocks[at // size].long(), at % size
