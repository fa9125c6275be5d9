"""Paths and ports on a host; in a simulation (`zfsilod --simulate DIR`) below one directory."""

from __future__ import annotations

import os

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PORT = 9750  # zfsilod-tcp.socket


def socket() -> str:
    """Return the path of the local daemon's socket."""
    below = simulation()
    return os.environ.get("ZFSILO_SOCKET") or (
        f"{below}/run/zfsilod.sock" if below else "/run/zfsilo/zfsilod.sock"
    )


def etc() -> Path:
    """Return the configuration directory."""
    return _path(f"{simulation()}/etc" if simulation() else "/etc/zfsilo")


def state() -> Path:
    """Return the state directory, which has the store."""
    return _path(simulation() or "/var/lib/zfsilo")


def initiator() -> Path:
    """Return open-iscsi's file with the initiator name."""
    return _path("/etc/iscsi/initiatorname.iscsi")


def with_port(address: str, port: int) -> str:
    """Return an address with a port; a bare IPv6 address gets its brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"
    has_port = address.rpartition(":")[2].isdecimal() and not address.endswith("]")
    return address if has_port else f"{address}:{port}"


def simulation() -> str:
    """Return the directory of the selected simulation, or ""."""
    return os.environ.get("ZFSILO_SIMULATE", "")


def _path(text: str) -> Path:
    from pathlib import Path  # `volume list` does not need it, and it costs 5 ms

    return Path(text)
