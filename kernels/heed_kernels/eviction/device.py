"""What eviction needs of a device: a request's keys and values by place, and sums of weights."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Half = Literal["key", "value"]


class Pages(Protocol):
    """The pages of one layer that a request has: place k is token k % block_size of its k // block_size th block."""

    def read(self, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """A copy of all KV heads' keys or values, [local_kv_heads, places, head_dim] in the cache's dtype.

        places: ascending.
        """
        ...

    def move(self, kept: Sequence[NDArray[np.int64]], targets: NDArray[np.int32]) -> None:
        """Keys and values of each KV head at its places `kept` go to the first places of the blocks `targets`,
        which may be the request's own."""
        ...


class Sums(Protocol):
    """Sums of weights by local query head and place, to which the device adds while rows come in."""

    def grow(self, keys: int) -> None:
        """Make room for at least so many places."""
        ...

    def weights_at(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """[local_query_heads, places], in units of weight."""
        ...

    def keep(self, heads: slice, places: NDArray[np.int64]) -> None:
        """What some heads have at `places` moves to their first places; nobody asks for the others any more."""
        ...


class Summing(Protocol):
    """Makes the sums of one request."""

    def __call__(self, layer: int, capacity: int) -> Sums:
        """For every local query head of a layer."""
        ...
