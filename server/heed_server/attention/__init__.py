"""Diagnostics: what a prompt's attention looks like, with or without interventions."""
