"""Crash tests: every operation with a fault at every point, and a check of the state it leaves."""
