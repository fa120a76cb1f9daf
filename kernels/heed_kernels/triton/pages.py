"""Keys and values of a request by their places in a paged cache on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import Half
from heed_kernels.triton.device_table import sent
from heed_kernels.triton.moving import Mover


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
        at, size = sent(places, cache.device), cache.shape[1]
        return cache[self.blocks[at // size].long(), at % size].transpose(0, 1)


@dataclass
class BlockRow:
    """The blocks of a request, int32, as the host knows them."""

    blocks: NDArray[np.int32]
    device: torch.device

    @cached_property
    def on_device(self) -> torch.Tensor:
        """Copied when first asked for: a device without memory must not stop who needs no copy."""
        return sent(self.blocks, self.device)

    def tokens(self, places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Block * size + place in it."""
        return self.blocks[places // size].astype(np.int64) * size + places % size


@dataclass(frozen=True)
class EvictedPages:
    """The pages of one layer of a request that lets keys go, see `device.OwnPages`. Caches as in `DevicePages`."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    row: BlockRow
    mover: Mover

    def read(self, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """See `device.Pages`."""
        return DevicePages(self.key_cache, self.value_cache, self.row.on_device).read(places, half)

    def move(self, kept: Sequence[NDArray[np.int64]], targets: NDArray[np.int32]) -> None:
        """See `device.OwnPages`."""
        size, most = self.key_cache.shape[1], max(map(len, kept))
        into = BlockRow(targets, self.row.device).tokens(np.arange(most), size)
        sources = [self.row.tokens(places, size) for places in kept]
        self.mover.move((self.key_cache, self.value_cache), sources, into)
