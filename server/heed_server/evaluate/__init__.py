"""`heed eval`: what interventions do to the answers to questions, beside the plain answers."""
