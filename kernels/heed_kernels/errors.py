"""What this package raises when edits cannot be carried out."""


class EditError(ValueError):
    """Edits that are malformed, do not fit the model, or do not fit the edit table."""
