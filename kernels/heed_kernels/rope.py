"""Rotary position embedding, as far as rolling positions need it: turning a query back."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rope:
    """How the model rotates queries and keys.

    inv_freq: float64 [rotary_dim / 2], radians per position; rotary_dim may be below head_dim, the
    dimensions after it do not rotate. A factor on cos and sin (YaRN) needs no mention: it is
    already in the query.
    interleaved: pairs are (2i, 2i + 1) as in GPT-J; otherwise (i, i + rotary_dim / 2) as in NeoX.
    """

    inv_freq: NDArray[np.float64]
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        """Number of dimensions of a head that rotate."""
        return 2 * len(self.inv_freq)

    def rotate(self, vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Turn each vector forward by its number of positions (negative: back).

        vectors: [..., head_dim], floating; positions: integers that broadcast against the leading
        axes. Angles are taken in float64. Returns a new tensor of the vectors' shape and dtype.
        """
        return self.turn(vectors, *self.angles(positions))

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float64 [..., rotary_dim / 2] each."""
        angle = positions.double()[..., None] * torch.from_numpy(self.inv_freq).to(positions.device)
        return angle.cos(), angle.sin()

    def turn(self, vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `rotate`, by given cosines and sines, in which it is linear."""
        rotating, rest = vectors[..., : self.rotary_dim], vectors[..., self.rotary_dim :]
        if self.interleaved:
            first, second = rotating[..., 0::2].double(), rotating[..., 1::2].double()
        else:
            first, second = (half.double() for half in rotating.chunk(2, dim=-1))
        turned = (first * cos - second * sin, second * cos + first * sin)
        joined = (
            torch.stack(turned, dim=-1).flatten(-2)
            if self.interleaved
            else torch.cat(turned, dim=-1)
        )
        return torch.cat([joined.to(vectors.dtype), rest], dim=-1)
