"""The connection by which a process gets the descriptor of a stream from its daemon.

The process writes the id of its operation, or its ticket, and gets a byte with a descriptor: see
service/stream_socket.py.
"""

from __future__ import annotations

import sys

from zfsilod.engine.report_wait import connect
from zfsilod.model.lean import socket

SOCKET = "streams.sock"
GIVEN = b"S"
WAIT_S = 60  # for a peer that is asked to send
DESCRIPTOR_BYTES = 4


def ask(folder: str, name: str) -> socket.socket:
    """Ask the daemon for the stream of this operation or ticket. Raises OSError."""
    return connect(f"{folder}/{SOCKET}", name, WAIT_S)


def take(link: socket.socket) -> int:
    """Return the descriptor that the daemon gives; -1: it has none. Raises OSError."""
    size = socket.CMSG_SPACE(DESCRIPTOR_BYTES)
    marker, ancillary, _flags, _address = link.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
    link.settimeout(None)
    for level, kind, numbers in ancillary:
        if marker == GIVEN and (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int.from_bytes(numbers[:DESCRIPTOR_BYTES], sys.byteorder, signed=True)
    return -1


def stream_of(folder: str, operation: str) -> int:
    """Return the descriptor of the stream that an operation receives; -1: there is none."""
    try:
        link = ask(folder, operation)
    except OSError:
        return -1  # no daemon runs
    try:
        return take(link)
    except OSError:
        return -1  # it was stopped, or the peer is gone
    finally:
        link.close()
