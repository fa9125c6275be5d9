"""CSI ids of volumes, snapshots and nodes, and the ids that zfsilod has for them.

    volume, snapshot, group     BACKEND/ID
    node                        id of the host

ID of what the plugin creates: "csi-" and 26 base32 characters of SHA-256 of the CSI name. A text of
another form is an unknown id, not a malformed one: the CSI specification defines no syntax.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

from zfsilo_csi.errors import CsiError, invalid, need, not_found

BACKEND = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
MAX_NAME_BYTES = 128
MAX_ID_BYTES = 128
LENGTH = 26
PREFIX = "csi-"
NAME_LABEL = "csi.zfsilo.io/name"


class Handle(NamedTuple):
    """A volume, snapshot or group: the backend that stores it, and its id there."""

    backend: str
    id: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.id}"


def parse(text: str) -> Handle | None:
    """Parse a CSI id; None if the plugin cannot have made it."""
    backend, slash, name = text.partition("/")
    if slash and len(text) <= MAX_ID_BYTES and BACKEND.fullmatch(backend) and ID.fullmatch(name):
        return Handle(backend, name)
    return None


def need_handle(text: str, kind: str) -> Handle:
    """Parse a required CSI id, else raise INVALID_ARGUMENT (missing) or NOT_FOUND (unknown)."""
    handle = parse(need(text, f"{kind.replace(' ', '_')}_id"))
    if handle is None:
        raise unknown(text, kind)
    return handle


def unknown(text: str, kind: str) -> CsiError:
    """Return the error for an id that does not exist."""
    return not_found(f"{kind} {text[:140]} does not exist")


def check_name(name: str) -> str:
    """Return a CSI name, else raise INVALID_ARGUMENT."""
    if len(need(name, "name").encode()) > MAX_NAME_BYTES:
        raise invalid(f"name is longer than {MAX_NAME_BYTES} bytes; use a shorter one")
    return name


def id_of(name: str) -> str:
    """Return the id for a CSI name: of fixed length, whatever the name contains."""
    whole = base64.b32encode(hashlib.sha256(name.encode()).digest())
    return PREFIX + whole.decode().lower()[:LENGTH]


def local_name(volume: Handle) -> str:
    """Return the id of a volume on the node that attaches it.

    Ids made by the plugin are unique among all backends. Others are not, so they are hashed
    together with the name of the backend.
    """
    return volume.id if volume.id.startswith(PREFIX) else id_of(str(volume))


def host_of(name: str) -> str:
    """Return the node id in the resource name of a host."""
    return name.removeprefix("hosts/")
