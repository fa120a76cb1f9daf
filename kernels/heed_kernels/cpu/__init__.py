"""Edited attention on the CPU, over vLLM's own paged CPU cache."""

from heed_kernels.cpu.attention import attend, warm_up
from heed_kernels.cpu.columns import ColumnSums, add_columns
from heed_kernels.cpu.layout import Layout, probe_layout
from heed_kernels.cpu.observation import Observed, find_keys, observe
from heed_kernels.cpu.search import KeySearch, LayerInputs, search_keys

__all__ = [
    "ColumnSums",
    "KeySearch",
    "LayerInputs",
    "Layout",
    "Observed",
    "add_columns",
    "attend",
    "find_keys",
    "observe",
    "probe_layout",
    "search_keys",
    "warm_up",
]
