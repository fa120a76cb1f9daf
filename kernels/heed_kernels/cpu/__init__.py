"""Edited attention on the CPU, over vLLM's own paged CPU cache."""

from heed_kernels.cpu.attention import attend, warm_up
from heed_kernels.cpu.layout import Layout, probe_layout
from heed_kernels.cpu.observation import ColumnSums, Observed, find_keys, observe

__all__ = [
    "ColumnSums",
    "Layout",
    "Observed",
    "attend",
    "find_keys",
    "observe",
    "probe_layout",
    "warm_up",
]
