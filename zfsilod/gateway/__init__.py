"""Connections: listeners, TLS handshakes, limits and the relay to the daemon."""
