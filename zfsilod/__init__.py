"""zfsilod: network block storage for ZFS, one daemon on every host."""

__version__ = "0.1.0"
