"""Profiles: parameters found by calibration, kept in a directory each and bound to one model."""
