"""Edited attention on the CPU, over vLLM's own paged CPU cache."""

from heed_kernels.cpu.attention import attend, warm_up
from heed_kernels.cpu.layout import Layout, probe_layout

__all__ = ["Layout", "attend", "probe_layout", "warm_up"]
