"""What recordings take of the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from heed_kernels.cpu.summing import Summing
from heed_kernels.device import Found
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class RecordingOnCPU:
    """See `recording.RecordingDevice`."""

    table: EditTable
    device = torch.device("cpu")

    def summing(self, slot: int, heads: Sequence[int]) -> Summing:
        """See `recording.RecordingDevice`."""
        return Summing(self.table, slot, heads)

    def found(self, slot: int, layer: int) -> Found:
        """See `recording.RecordingDevice`."""
        counts, keys = self.table.found_count[slot, layer], self.table.found_keys[slot, layer]
        return [line[:count].tolist() for line, count in zip(keys, counts, strict=True)]
