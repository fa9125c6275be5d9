"""Names of volumes, snapshots and nodes: what the orchestrator sees, and what zfsilod does.

    volume, snapshot, group     <backend>/<id>
    node                        the host id

The id of what the plugin made is csi- and 26 base32 characters of SHA-256 of its CSI name.

A text of another form is nobody's: unknown, never malformed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

from zfsilo_csi.errors import CsiError, invalid, not_found

BACKEND = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
MAX_NAME_BYTES = 128
MAX_ID_BYTES = 128
LENGTH = 26
PREFIX = "csi-"
NAME_LABEL = "csi.zfsilo.io/name"


class Handle(NamedTuple):
    """Something on a storage host: the host's name in our configuration, and the id there."""

    backend: str
    id: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.id}"


def parse(text: str) -> Handle | None:
    """Return what an id of ours names, or None: nothing that we ever made."""
    backend, slash, name = text.partition("/")
    if slash and len(text) <= MAX_ID_BYTES and BACKEND.fullmatch(backend) and ID.fullmatch(name):
        return Handle(backend, name)
    return None


def need_handle(text: str, what: str) -> Handle:
    """Return what an id names, else raise INVALID_ARGUMENT (none) or NOT_FOUND (not ours)."""
    if not text:
        raise invalid(f"the {what} id is missing")
    found = parse(text)
    if found is None:
        raise unknown(text, what)
    return found


def unknown(text: str, what: str) -> CsiError:
    """Return the error for an id that nobody knows."""
    return not_found(f"there is no {what} {text[:140]}")


def check_name(name: str) -> str:
    """Return a name that the orchestrator chose, else raise INVALID_ARGUMENT."""
    if not name:
        raise invalid("the name is missing")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise invalid(f"the name is longer than {MAX_NAME_BYTES} bytes")
    return name


def id_of(name: str) -> str:
    """Return the id of what has a CSI name: fixed length, whatever the name is."""
    return PREFIX + _digest(name)


def local_name(volume: Handle) -> str:
    """Return what a volume is called on the node that uses it.

    The ids of volumes made by us are unique among all backends; others may not be.
    """
    if volume.id.startswith(PREFIX):
        return volume.id
    return PREFIX + _digest(str(volume))


def host_of(name: str) -> str:
    """Return the node id behind a host's resource name."""
    return name.removeprefix("hosts/")


def _digest(text: str) -> str:
    whole = base64.b32encode(hashlib.sha256(text.encode()).digest())
    return whole.decode().lower()[:LENGTH]
