"""Submits requests, waits for operations, reconciles facts with records."""
