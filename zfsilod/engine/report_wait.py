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
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        asking.settimeout(WAIT_S)
        asking.connect(f"{folder}/{SOCKET}")
        if peer_uid(asking) == os.geteuid():
            asking.sendall(operation_id.encode())
            asking.recv(1)
    except OSError:
        return  # no daemon runs, it was stopped, or it takes too long
    finally:
        asking.close()


def peer_uid(asking: socket.socket) -> int:
    """Return the user who listens: unix(7), SO_PEERCRED."""
    credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)  # pid, uid, gid
