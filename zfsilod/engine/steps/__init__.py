"""All steps by area; importing the package gives the store the class of every tag."""

from __future__ import annotations

from zfsilod.engine.steps import (
    access,
    export,
    filesystem,
    mount,
    ownership,
    session,
    snapshot,
    users,
    zfs,
    zvol_name,
)

__all__ = [
    "access",
    "export",
    "filesystem",
    "mount",
    "ownership",
    "session",
    "snapshot",
    "users",
    "zfs",
    "zvol_name",
]
