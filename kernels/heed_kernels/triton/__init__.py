"""Edited attention on GPUs, in Triton, over any paged cache."""

from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.launch import attend, warm_up
from heed_kernels.triton.observing import find_keys, observe
from heed_kernels.triton.searching import DeviceSearches, LayerInputs
from heed_kernels.triton.step_work import StepWork

__all__ = [
    "DeviceSearches",
    "DeviceTable",
    "LayerInputs",
    "StepWork",
    "attend",
    "find_keys",
    "observe",
    "warm_up",
]
