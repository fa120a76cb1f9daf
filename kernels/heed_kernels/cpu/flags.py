"""Where the CPU's kernel reads the keys that were flagged."""

from dataclasses import dataclass

import numpy as np
import torch

from heed_kernels.table import EditTable


@dataclass(frozen=True)
class FoundOnCPU:
    """See `flags.FoundTable`: in the edit table."""

    table: EditTable

    def reserve(self, slot: int) -> None:
        """See `flags.FoundTable`: the edit table has room for all slots."""

    def write(self, slot: int, layer: int, keys: torch.Tensor, count: torch.Tensor) -> None:
        """See `flags.FoundTable`."""
        table, held = self.table, keys[: int(count)].numpy()
        starts = table.range_start[slot, : table.range_count[slot]]
        table.found_keys[slot, layer, :, : len(held)] = held
        table.found_range[slot, layer, :, : len(held)] = (
            np.searchsorted(starts, held, side="right") - 1
        )
        table.found_count[slot, layer] = len(held)
