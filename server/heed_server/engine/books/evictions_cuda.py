"""Evictions on a GPU: its cache, and the column sums of several requests. No vLLM here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import OwnPages, Summed, Summing
from heed_kernels.evict import Evict
from heed_kernels.eviction import Eviction
from heed_kernels.plan import Plan

if TYPE_CHECKING:  # Triton is not on every machine that serves
    from heed_kernels.triton import DeviceEvictions, LayerInputs
    from heed_kernels.triton.columns import ColumnAdder

Halves = tuple[torch.Tensor, torch.Tensor]
"""Key and value cache of a layer, [blocks, block_size, kv_heads, head_dim] each."""


@dataclass(frozen=True)
class SummedColumns:
    """Rows of a step that add to the column sums of several requests: an observer of the step, see
    `device_edits.DeviceObserver`.

    items: int32 [requests, 5], as in `plan.Pattern.items`, one for each of `requests`.
    """

    device: "ColumnAdder"
    requests: Sequence[Summed]
    items: NDArray[np.int32]

    def load(self, plan: Plan) -> None:
        """See `device_edits.DeviceObserver`."""
        self.device.load(plan, self.items)

    def before_edits(self, layer: int, inputs: "LayerInputs") -> None:
        """See `step.Observer`."""
        self.device.observe(layer, inputs, self.requests, self.items)


@dataclass(frozen=True)
class EvictingOnCUDA:
    """See `evicting_requests.Evicting`. caches: by layer."""

    device: "DeviceEvictions"
    caches: Mapping[int, Halves]

    @property
    def block_size(self) -> int:
        """See `evicting_requests.Evicting`."""
        return self.caches[0][0].shape[1]

    def enter(self, slot: int, evict: Evict, rows: int) -> Summing:
        """See `evicting_requests.Evicting`."""
        return self.device.enter(slot, evict, self.caches[0][0].shape[3], rows)

    def leave(self, slot: int) -> None:
        """See `evicting_requests.Evicting`."""
        self.device.leave(slot)

    def observer(self, evictions: Sequence[Eviction], items: NDArray[np.int32]) -> SummedColumns:
        """See `evicting_requests.Evicting`."""
        return SummedColumns(self.device, evictions, items)

    def pages(self, block_row: NDArray[np.int32]) -> list[OwnPages]:
        """See `evicting_requests.Evicting`."""
        return self.device.pages(self.caches, block_row)

    def moved(self, slot: int) -> None:
        """See `evicting_requests.Evicting`."""
        self.device.moved(slot)
