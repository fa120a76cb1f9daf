"""Edited attention on GPUs, in Triton, over any paged cache."""

from heed_kernels.triton.columns import MOST_BYTES, ColumnWork, DeviceSums, LayerInputs, Room
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.evicting import DeviceEvictions
from heed_kernels.triton.launch import attend, warm_up
from heed_kernels.triton.moving import Mover
from heed_kernels.triton.observing import FoundOnDevice, find_keys, observe
from heed_kernels.triton.pages import BlockRow, DevicePages, EvictedPages
from heed_kernels.triton.recording import DeviceRecordings
from heed_kernels.triton.searching import DeviceSearches
from heed_kernels.triton.step_work import StepWork

__all__ = [
    "MOST_BYTES",
    "BlockRow",
    "ColumnWork",
    "DeviceEvictions",
    "DevicePages",
    "DeviceRecordings",
    "DeviceSearches",
    "DeviceSums",
    "DeviceTable",
    "EvictedPages",
    "FoundOnDevice",
    "LayerInputs",
    "Mover",
    "Room",
    "StepWork",
    "attend",
    "find_keys",
    "observe",
    "warm_up",
]
