"""Inspections on a GPU. No vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.recording import Recording
from heed_kernels.device import Found, Summing
from heed_kernels.inspection import Inspection
from heed_server.engine.books.evictions_cuda import SummedColumns

if TYPE_CHECKING:  # Triton is not on every machine that serves
    from heed_kernels.triton import DeviceRecordings


@dataclass(frozen=True)
class InspectingOnCUDA:
    """See `inspected_requests.Inspecting`."""

    recordings: "DeviceRecordings"

    @property
    def device(self) -> torch.device:
        """See `recording.RecordingDevice`."""
        return self.recordings.device

    def enter(self, slot: int, inspection: Inspection) -> None:
        """See `inspected_requests.Inspecting`."""
        self.recordings.enter(slot, inspection)

    def leave(self, slot: int) -> None:
        """See `inspected_requests.Inspecting`."""
        self.recordings.leave(slot)

    def summing(self, slot: int, heads: Sequence[int]) -> Summing:
        """See `recording.RecordingDevice`."""
        return self.recordings.summing(slot, heads)

    def found(self, slot: int, layer: int) -> Found:
        """See `recording.RecordingDevice`."""
        return self.recordings.found(slot, layer)

    def observer(self, recordings: Sequence[Recording], items: NDArray[np.int32]) -> SummedColumns:
        """See `inspected_requests.Inspecting`."""
        return SummedColumns(self.recordings, recordings, items)
