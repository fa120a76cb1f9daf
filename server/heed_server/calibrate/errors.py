"""What ends a calibration besides its data and its server."""

from heed_server.scoring.errors import ScoringError


class CalibrationError(ScoringError):
    """An outcome, or a journal, that calibration cannot go on with."""
