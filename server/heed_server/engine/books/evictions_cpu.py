"""Evictions on the CPU: its cache, and one call of the kernel for the column sums of several requests. No vLLM here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.columns import ColumnSums, StepColumns
from heed_kernels.cpu.layout import Layout
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
    """

    table: EditTable
    requests: Sequence[Summed]
    items: NDArray[np.int32]

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        self._columns.add(
            layer,
            inputs.query,
            inputs.kv_cache,
            inputs.block_table,
            inputs.scale,
            inputs.rope,
            inputs.layout,
        )

    @cached_property
    def _columns(self) -> StepColumns:
        rows = list(zip(self.requests, self.items.tolist(), strict=True))
        columns = {}
        for layer in range(self.table.layers):
            sums = [
                request.columns(layer, item[FIRST_POSITION], item[ROWS]) for request, item in rows
            ]
            columns[layer] = [each for each in sums if isinstance(each, ColumnSums)]
        return StepColumns(self.table, self.items, columns)


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
