"""Prometheus metrics and the socket that serves them."""
