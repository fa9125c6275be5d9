"""Transient systemd units of workers: their properties, their sandbox, their start."""
