"""Transient units: how they are described, sandboxed and started."""
