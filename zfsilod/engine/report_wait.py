"""The wait of a worker for a report to a server, which its daemon performs.

The socket is in the folder of the lock files, which is open to the user of the daemon only. The
worker writes the id of its operation, and waits until the daemon closes the connection. Nothing
else is said: what became of the report is in the store.
"""

from __future__ import annotations

import os
import sys

from zfsilod.model.lean import socket

SOCKET = "daemon.sock"
WAIT_S = 45  # a report is a call of at most 30 seconds
ID_BYTES = 26  # a ULID


def ask_daemon(folder: str, operation_id: str) -> None:
    """Return when the daemon has answered, or when no answer is to be expected."""
    try:
        asking = connect(f"{folder}/{SOCKET}", operation_id, WAIT_S)
    except OSError:
        return  # no daemon runs
    try:
        asking.recv(1)
    except OSError:
        return  # it was stopped, or it takes too long
    finally:
        asking.close()


def connect(path: str, name: str, timeout_s: float) -> socket.socket:
    """Connect to a socket of the daemon, and say what it is about: a ULID.

    Raises OSError, also when the daemon of another user listens.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout_s)
        link.connect(path)
        if _peer_uid(link) != os.geteuid():
            raise ConnectionRefusedError(f"{path} is of another user")
        link.sendall(name.encode())
    except OSError:
        link.close()
        raise
    return link


def _peer_uid(link: socket.socket) -> int:
    """Return the user who listens: unix(7), SO_PEERCRED."""
    credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)  # pid, uid, gid
