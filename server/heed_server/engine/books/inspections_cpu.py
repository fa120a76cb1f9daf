"""Inspections on the CPU. No vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heed_kernels.beside.recording import Recording
from heed_kernels.cpu.recording import RecordingOnCPU
from heed_kernels.inspection import Inspection
from heed_server.engine.books.evictions_cpu import SummedColumns


@dataclass(frozen=True)
class InspectingOnCPU(RecordingOnCPU):
    """See `inspected_requests.Inspecting`."""

    def enter(self, slot: int, inspection: Inspection) -> None:
        """See `inspected_requests.Inspecting`: there is always room."""

    def leave(self, slot: int) -> None:
        """See `inspected_requests.Inspecting`: nothing is held for a slot."""

    def observer(self, recordings: Sequence[Recording], items: NDArray[np.int32]) -> SummedColumns:
        """See `inspected_requests.Inspecting`."""
        return SummedColumns(self.table, recordings, items)
