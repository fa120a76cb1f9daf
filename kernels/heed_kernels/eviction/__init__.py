"""Eviction: scores, decision, and the move of what survives, on every device."""

from heed_kernels.eviction.request import Eviction, Gather, Moved

__all__ = ["Eviction", "Gather", "Moved"]
