"""TCP connections: listening, TLS, admission, relay."""
