"""Metrics and their exporter."""
