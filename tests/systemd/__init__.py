"""Tier 2: the daemon under a real systemd, D-Bus and polkit."""
