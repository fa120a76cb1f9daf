"""What code that is the same on every device needs of one: a layer's queries, keys and values, and sums of weights."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.evict import ExpectedScore
from heed_kernels.rope import Rope

Half = Literal["key", "value"]

Found = Sequence[Sequence[int]]
"""Found keys of a layer: one ascending list per query head."""


class Pages(Protocol):
    """The pages of one layer that a request has: place k is token k % block_size of its k // block_size th block."""

    def read(self, places: NDArray[np.int64], half: Half) -> torch.Tensor:
        """A copy of all KV heads' keys or values, [local_kv_heads, places, head_dim] in the cache's dtype.

        places: ascending.
        """
        ...


class OwnPages(Pages, Protocol):
    """Those that a request writes to."""

    def move(self, kept: Sequence[NDArray[np.int64]], targets: NDArray[np.int32]) -> None:
        """Keys and values of each KV head at its places `kept`, ascending, go to the first places of the blocks
        `targets`. Each of these is the request's block at that place, or not the request's at all; so no key
        is overwritten before it is read. A device asks for no memory here: half a move would be worse
        than none."""
        ...


class LayerInputs(Protocol):
    """What a layer's attention reads; the step's keys are in the cache."""

    @property
    def query(self) -> torch.Tensor:
        """[tokens, local_query_heads, head_dim] of the whole batch."""
        ...

    @property
    def scale(self) -> float:
        """On the logits."""
        ...

    @property
    def rope(self) -> Rope | None:
        """The layer's rotary embedding."""
        ...

    def pages(self, row: int) -> Pages:
        """The layer's, of the request in that row of the block table."""
        ...


class Sums(Protocol):
    """Sums of weights by query head and place, to which the device adds while rows come in. heads: those of this
    rank that are summed, ascending."""

    def grow(self, keys: int) -> None:
        """Make room for at least so many places."""
        ...

    def weights_at(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """[heads, places], in units of weight."""
        ...

    def keep(self, heads: slice, places: NDArray[np.int64]) -> None:
        """What some heads have at `places` moves to their first places; nobody asks for the others any more."""
        ...


class Moments(Protocol):
    """Running sums of a layer's queries before rotation, for an `ExpectedScore`; chunks change no bit of them."""

    def add(self, query: torch.Tensor, first: int, rope: Rope) -> None:
        """query: [rows, query_heads, head_dim], as rotated, of the rows from `first` on; rows must come
        in order, but those below the score's first do not count."""
        ...

    def moments(self, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """float64 mean [heads, head_dim] and covariance [heads, head_dim, head_dim] (no
        elements without covariance) of all rows so far; zeros where there is none."""
        ...


class Summing(Protocol):
    """Makes the sums of one request."""

    def __call__(self, layer: int, capacity: int) -> Sums:
        """Of the weights in a layer, for so many places."""
        ...

    def moments(self, score: ExpectedScore, heads: int, head_dim: int) -> Moments:
        """Of a layer's queries: so many heads of this rank."""
        ...


class Summed(Protocol):
    """A request whose rows are added to sums."""

    def columns(self, layer: int, first: int, rows: int) -> Sums | None:
        """Where the next rows of a layer, from `first` on, are added, with room for their keys; None for
        nowhere."""
        ...
