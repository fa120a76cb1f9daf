"""What is taken from attention weights, tile by tile, where they are: slices, masses, entropies, distances.

Symbols: a_qk is the weight of row q on key k <= q, T the length, W `LOCAL_WINDOW`, [lo, hi] `AHEAD`,
R the rows of the response.

    weights    a_qk of the chosen rows, 0 for k > q
    mass       sum of a_qk over each set of keys, of the chosen rows
    entropy    - sum_k a_qk ln a_qk, of the chosen rows
    columns    sum over all q of a_qk
    dormancy   first sum over q >= 1 of entropy_q / ln(q + 1); then per key sum over q of a_qk ln a_qk
    distance   sum_k a_qk (q - k) and sum_k a_qk min(q - k, W), of the rows in R
    ahead      sum over q in R with k + lo <= q <= k + hi of a_qk

Sums within a tile are taken in float32, over tiles in float64.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.inspection import AHEAD, LOCAL_WINDOW, Inspection


class HeadMeasures:
    """The quantities of one inspection that come from weights, for some heads; 0 for the others. They stay on
    the device."""

    def __init__(self, inspection: Inspection, heads: int, device: torch.device) -> None:
        self._asked = inspection
        self._rows = np.array(inspection.rows, np.int64)
        self._arrays: dict[str, torch.Tensor] = {}
        for quantity in inspection.quantities:
            dtype = torch.float32 if quantity == "weights" else torch.float64
            shape = (len(inspection.layers), heads, *inspection.shape(quantity))
            self._arrays[quantity] = torch.zeros(shape, dtype=dtype, device=device)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """float32 [layers, heads, …] by quantity. Waits for the device."""
        return {name: array.float().cpu().numpy() for name, array in self._arrays.items()}

    def add(self, layer: int, heads: slice, first: int, weights: torch.Tensor) -> None:
        """Take in all weights of the rows from `first` on: float32 [heads, rows, first + rows].

        layer, heads: places in the arrays. Rows that a quantity is not of do not count for it.
        """
        rows, keys = weights.shape[1:]
        low, high = np.searchsorted(self._rows, [first, first + rows])
        logs = weights
        if "entropy" in self._arrays or "dormancy" in self._arrays:
            logs = torch.xlogy(weights, weights)
        if low < high:
            chosen = torch.from_numpy(self._rows[low:high] - first)
            chosen = chosen.to(weights.device, non_blocking=True)
            at = slice(int(low), int(high))
            self._add_chosen(layer, heads, at, weights[:, chosen], logs[:, chosen])
        if "columns" in self._arrays:
            self._arrays["columns"][layer, heads, :keys] += _sum(weights, 1)
        if "dormancy" in self._arrays:
            self._add_dormancy(layer, heads, first, logs)
        begin = max(self._asked.response - first, 0)
        if begin < rows:
            self._add_response(layer, heads, first + begin, weights[:, begin:])

    def _add_chosen(
        self,
        layer: int,
        heads: slice,
        at: slice,
        weights: torch.Tensor,
        logs: torch.Tensor,
    ) -> None:
        """logs: of the same rows a_qk ln a_qk, where entropies are wanted."""
        keys = weights.shape[2]
        if "weights" in self._arrays:
            self._arrays["weights"][layer, heads, at, :keys] = weights
        if "mass" in self._arrays:
            for index, ranges in enumerate(self._asked.key_sets):
                mass = sum(_sum(weights[:, :, start:end], 2) for start, end in ranges)
                self._arrays["mass"][layer, heads, at, index] = mass
        if "entropy" in self._arrays:
            self._arrays["entropy"][layer, heads, at] = -_sum(logs, 2)

    def _add_dormancy(self, layer: int, heads: slice, first: int, logs: torch.Tensor) -> None:
        rows, keys = logs.shape[1:]
        sums = self._arrays["dormancy"]
        sums[layer, heads, 1 : 1 + keys] += _sum(logs, 1)
        begin = 1 if first == 0 else 0  # the entropy of row 0, with one key, says nothing
        ends = torch.arange(first + begin, first + rows, device=logs.device) + 1
        normalised = -_sum(logs, 2)[:, begin:] / ends.double().log()
        sums[layer, heads, 0] += normalised.sum(dim=1)

    def _add_response(self, layer: int, heads: slice, first: int, weights: torch.Tensor) -> None:
        rows, keys = weights.shape[1:]
        position = torch.arange(first + rows, device=weights.device)
        distance = position[first:, None] - position[:keys]
        if "distance" in self._arrays:
            at = slice(first - self._asked.response, first - self._asked.response + rows)
            array = self._arrays["distance"]
            array[layer, heads, at, 0] = _sum(weights * distance, 2)
            array[layer, heads, at, 1] = _sum(weights * distance.clamp(max=LOCAL_WINDOW), 2)
        if "ahead" in self._arrays:
            least, most = AHEAD
            inside = (distance >= least) & (distance <= most)
            self._arrays["ahead"][layer, heads, :keys] += _sum(weights * inside, 1)


def _sum(values: torch.Tensor, axis: int) -> torch.Tensor:
    """float64."""
    return values.sum(dim=axis).double()
