"""Where things lie on a host; in a simulation (`zfsilod --simulate DIR`) below one directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PORT = 9750  # zfsilod-tcp.socket


def socket() -> str:
    """Return the local daemon's socket, as the text that grpc takes."""
    below = simulation()
    return os.environ.get("ZFSILO_SOCKET") or (
        f"{below}/run/zfsilod.sock" if below else "/run/zfsilo/zfsilod.sock"
    )


def etc() -> Path:
    """Return the directory of the configuration."""
    return _path(f"{simulation()}/etc" if simulation() else "/etc/zfsilo")


def state() -> Path:
    """Return the directory of the store."""
    return _path(simulation() or "/var/lib/zfsilo")


def initiator() -> Path:
    """Return the file in which open-iscsi keeps the initiator's name."""
    return _path("/etc/iscsi/initiatorname.iscsi")


def with_port(address: str, port: int) -> str:
    """Return an address with a port; a bare IPv6 address gets its brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"
    has_port = address.rpartition(":")[2].isdecimal() and not address.endswith("]")
    return address if has_port else f"{address}:{port}"


def simulation() -> str:
    """Return the directory of the simulation that is meant, or ""."""
    return os.environ.get("ZFSILO_SIMULATE", "")


def _path(text: str) -> Path:
    from pathlib import Path  # `volume list` needs none, and it costs 5 ms

    return Path(text)
