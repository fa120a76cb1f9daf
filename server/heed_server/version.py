"""The one place that says which version of Heed this is."""

__version__ = "0.1.0"
