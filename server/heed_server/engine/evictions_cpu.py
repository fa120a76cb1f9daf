"""Evictions on the CPU: its cache, and one call of the kernel for the column sums of several requests. No vLLM here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation import ColumnSums, add_columns
from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.cpu.summing import Summing
from heed_kernels.device import Summed
from heed_kernels.evict import Evict
from heed_kernels.eviction import Eviction
from heed_kernels.plan import FIRST_POSITION, ROWS
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class SummedColumns:
    """Rows of a step that add to the column sums of several requests: an observer of the step.

    items: int32 [requests, 5], as in `plan.Pattern.items`, one for each of `requests`.
    calls: what the step's layers have in common, see `add_columns`.
    """

    table: EditTable
    requests: Sequence[Summed]
    items: NDArray[np.int32]
    calls: dict[object, Any] = field(default_factory=dict)

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        columns = [
            request.columns(layer, int(item[FIRST_POSITION]), int(item[ROWS]))
            for request, item in zip(self.requests, self.items, strict=True)
        ]
        wanted = [place for place, sums in enumerate(columns) if sums is not None]
        if not wanted:
            return
        add_columns(
            inputs.query,
            inputs.kv_cache,
            inputs.block_table,
            self.table,
            self.items[wanted],
            layer,
            inputs.scale,
            inputs.rope,
            inputs.layout,
            [sums for sums in columns if isinstance(sums, ColumnSums)],
            self.calls,
        )


@dataclass(frozen=True)
class EvictingOnCPU:
    """See `evicting_requests.Evicting`.

    caches: pages by layer, as vLLM holds them.
    """

    table: EditTable
    caches: Mapping[int, torch.Tensor]
    layout: Layout
    block_size: int

    def enter(self, slot: int, evict: Evict, rows: int) -> Summing:
        """See `evicting_requests.Evicting`."""
        return Summing(self.table, slot)

    def leave(self, slot: int) -> None:
        """See `evicting_requests.Evicting`: nothing is held for a slot."""

    def observer(self, evictions: Sequence[Eviction], items: NDArray[np.int32]) -> SummedColumns:
        """See `evicting_requests.Evicting`."""
        return SummedColumns(self.table, evictions, items)

    def pages(self, block_row: NDArray[np.int32]) -> list[Pages]:
        """See `evicting_requests.Evicting`."""
        layers = range(self.table.layers)
        return [Pages.of(self.caches[layer], block_row, self.layout) for layer in layers]

    def moved(self, slot: int) -> None:
        """See `evicting_requests.Evicting`: the kernel reads the edit table itself."""
