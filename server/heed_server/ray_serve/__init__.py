"""Heed under Ray Serve: an engine in each replica, behind a front that says what a request's cache blocks depend on."""
