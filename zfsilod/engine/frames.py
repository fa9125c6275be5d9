"""The frames that a process writes to its daemon: what `zfs send` gives it, or how far it is.

A frame is a byte that says what comes, 4 bytes with the length of the rest, and the rest. The last
one is DONE or FAILED: without one, the process was stopped.
"""

from __future__ import annotations

import struct

from zfsilod.model.errors import revive
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Failure, failure_of
from zfsilod.storage import record_json

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.lean import socket

HEAD = struct.Struct(">cI")
DONE, FAILED = b"D", b"F"


def send_frame(link: socket.socket, kind: bytes, content: bytes = b"") -> None:
    """Write a frame. Raises OSError."""
    link.sendall(HEAD.pack(kind, len(content)) + content)


def send_failure(link: socket.socket, error: ZfsiloError, step: str) -> None:
    """Write the frame of an error, the last one. Raises OSError."""
    failure = failure_of(error, step)
    stored = {name: getattr(failure, name) for name in Failure.FIELDS}
    send_frame(link, FAILED, record_json.dumps(stored))


def error_in(content: bytes) -> ZfsiloError:
    """Return the error of a frame FAILED."""
    stored = record_json.loads(content)
    return revive(stored["name"], stored["message"], stored["reason"], dict(stored["facts"]))
