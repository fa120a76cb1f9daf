"""Eviction on the CPU: scores, decision, and the move of what survives."""

from heed_kernels.cpu.eviction.request import Eviction, Gather, Moved

__all__ = ["Eviction", "Gather", "Moved"]
