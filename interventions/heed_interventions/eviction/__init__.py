"""Eviction methods, each in its file, and the budget that they have in common."""
