"""The private sockets of gRPC and HTTP, and the peers of the connections to them.

grpc for Python cannot serve on an accepted socket, and knows a peer only by the name of its socket.
So a connection to grpc comes from a socket that is bound to a new path in the directory of the
private sockets, which only this user can enter. grpc reports the path as the peer of a call, and
`ApiSockets.peer` returns the real one. The path is removed at once: its name alone is used.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from typing import TYPE_CHECKING, get_args

from zfsilod.gateway.limits import ConnectionCount, Limits
from zfsilod.model.identity import PeerKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zfsilod.model.identity import Peer

    Close = Callable[[str], None]  # closes a connection, for a reason

ANSWER_S = 0.2  # for the answer that says why a connection is closed
PREFIX = "unix:"  # of peers, as grpc names them


class ApiSockets:
    """Connections to the servers of gRPC and HTTP of this process."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        """Create `directory` with mode 0700 for the private sockets."""
        self.directory = directory
        self.count = ConnectionCount(limits or Limits())
        self._instance = secrets.token_hex(8)
        self._last = 0
        self._peers: dict[str, tuple[Peer, Close]] = {}
        self._carry: dict[str, Callable[[], None]] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for stale in directory.iterdir():
            stale.unlink()

    def socket_of(self, kind: PeerKind) -> Path:
        """Return the private socket of the server for one kind of peers."""
        assert kind in get_args(PeerKind)
        return self.directory / f"{kind}.sock"

    @property
    def http_socket(self) -> Path:
        """The private socket of the HTTP server."""
        return self.directory / "http.sock"

    def connect(
        self,
        peer: Peer,
        close: Close,
        *,
        http: bool,
        carry: Callable[[], None] = lambda: None,
    ) -> tuple[str, socket.socket]:
        """Connect to a server; `close` closes the connection. Raises OSError; it never waits.

        `carry` says that the connection has no more calls, but a stream.

        Returns the name of the connection, for `forget`, and the socket.
        """
        self._last += 1
        path = self.directory / f"{self._instance}-{self._last}"
        name = os.fspath(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.settimeout(0)
            server.bind(name)
            path.unlink()
            server.connect(os.fspath(self.http_socket if http else self.socket_of(peer.kind)))
        except OSError:
            server.close()
            raise
        self.count.add(peer)
        self._peers[name] = (peer, close)
        self._carry[name] = carry
        return name, server

    def forget(self, name: str) -> None:
        """Forget a connection that is closed."""
        entry = self._peers.pop(name, None)
        self._carry.pop(name, None)
        if entry is not None:
            self.count.remove(entry[0])

    def peer(self, name: str) -> Peer | None:
        """Return the peer for its name in grpc; None: the connection bypassed the gateway."""
        entry = self._peers.get(name.removeprefix(PREFIX))
        return entry[0] if entry else None

    def remote(self) -> list[tuple[str, Peer]]:
        """Return the names and peers of the connections over TCP."""
        return [(name, peer) for name, (peer, _) in self._peers.items() if peer.kind == "tcp"]

    def carry_stream(self, name: str) -> None:
        """Say that a connection carries a stream from now on, whose bytes have no pace."""
        if carry := self._carry.get(name.removeprefix(PREFIX)):
            carry()

    def disconnect(self, name: str, why: str) -> None:
        """Close a connection that is no longer allowed, after its answer is sent."""
        entry = self._peers.get(name.removeprefix(PREFIX))
        if entry is not None:
            asyncio.get_running_loop().call_later(ANSWER_S, entry[1], why)

    @property
    def connections(self) -> int:
        """The number of connections."""
        return len(self._peers)
