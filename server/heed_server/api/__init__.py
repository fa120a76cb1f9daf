"""The HTTP side: typed requests, the engine's door, reports, catalogue, and refusals."""
