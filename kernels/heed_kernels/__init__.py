"""Paged attention that carries out edits: what the edits are, what they mean, and how they run."""
