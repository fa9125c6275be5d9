"""Floods of strangers and of callers with few rights, against a real systemd: `make siege`."""
