"""The one exception that ends a calibration with words for the person who started it."""


class CalibrationError(Exception):
    """Data, a server or an outcome that calibration cannot go on with."""
