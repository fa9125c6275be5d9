"""Listening sockets, from systemd or created here, and the peers of accepted connections."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.identity import Peer

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.model.identity import PeerKind


BACKLOG = 128
KEEP_ALIVE = (  # seconds of silence, seconds between probes, probes without an answer
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
)
SO_PEERGROUPS = 59  # socket(7); Python has no name for it
MAX_GROUPS = 256  # of a peer; getsockopt in Python reads at most 1024 bytes


def inherited() -> list[tuple[socket.socket, str]]:
    """Return systemd's listening sockets, each with the name of its unit: sd_listen_fds(3)."""
    from systemd.daemon import listen_fds_with_names

    return [
        (socket.socket(fileno=descriptor), name)
        for descriptor, name in listen_fds_with_names().items()
    ]


def listen_unix(path: Path, *, mode: int = 0o660) -> socket.socket:
    """Create a listening unix socket; a stale one of that name is removed."""
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


def listen_tcp(host: str, port: int) -> socket.socket:
    """Create a listening TCP socket on an address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


async def receive_exactly(link: socket.socket, count: int) -> bytes:
    """Return so many bytes of a socket that does not block. Raises EOFError, and OSError."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < count:
        more = await loop.sock_recv(link, count - len(data))
        if not more:
            raise EOFError(f"the connection has ended after {len(data)} of {count} bytes")
        data += more
    return data


def peer_of(client: socket.socket, kind: PeerKind) -> Peer:
    """Return the peer of a connection: unix(7), SO_PEERCRED. Raises OSError when it is gone."""
    if kind == "tcp":
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(client)
        address = str(client.getpeername()[0])
        return Peer(kind="tcp", address=address.removeprefix("::ffff:"))
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", raw)
    return Peer(kind=kind, address=f"pid {pid}", uid=uid, groups=(gid, *_groups(client)))


def keep_alive(connection: socket.socket) -> None:
    """Let a connection end about a minute after its other host: tcp(7). The default is two hours.

    A stream whose sender lost its power would hold its replica that long.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _groups(client: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups of a unix peer; none when there are too many to read."""
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS * 4)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FailedPrecondition(f"{path} exists and is not a socket; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FailedPrecondition(f"another process listens on {path}; stop the other zfsilod")
