"""Items put to a server under interventions, their scores, and what a difference between settings is worth."""
