"""The one exception that ends a calibration or an evaluation with words for the person who started it."""


class ScoringError(Exception):
    """Data, or a server, that cannot be gone on with."""
