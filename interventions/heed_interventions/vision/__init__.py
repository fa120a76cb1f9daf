"""Methods for images, each in its file."""
