"""Accepts connections on systemd's sockets and relays them to the gRPC server's private socket.

grpc for Python cannot serve on an inherited socket. The gateway accepts a connection, notes its
peer (the user of a unix peer; address and certificate of a TCP peer after the handshake), and
connects to grpc from a socket bound to an abstract name, the tag. grpc reports the tag as the peer
of a call, and `Gateway.peer` returns the real one. The private socket is in a directory that only
this user can enter. A connection to the CSI socket has the role node, whatever its user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING

from zfsilod.gateway.limits import ConnectionCount, Limits
from zfsilod.gateway.relay import RelayedConnection
from zfsilod.gateway.sockets import peer_of
from zfsilod.gateway.tls import TlsHandshake
from zfsilod.model.errors import Unauthenticated

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from zfsilod.model.identity import Peer, PeerKind
    from zfsilod.security.tls import ServerTls

ACCEPT_AT_ONCE = 16
ACCEPT_PAUSE_S = 1  # when the process has no descriptors left
ANSWER_S = 0.2  # for the answer that says why a connection is closed
NODE_SOCKET = "zfsilod-csi.socket"  # systemd's name of the descriptors of that unit
PREFIX = "unix-abstract:"  # of peers, as grpc names them

log = logging.getLogger(__name__)


class Gateway:
    """Listeners, their connections, and the tags of these."""

    def __init__(
        self, directory: Path, limits: Limits | None = None, tls: ServerTls | None = None
    ) -> None:
        """Create `directory` with mode 0700 for the private socket.

        TCP connections are refused without `tls`, and while it has no certificate.
        """
        self.private_socket = directory / "plain.sock"
        self._tls = tls
        self.count = ConnectionCount(limits or Limits())
        self._handshakes: set[TlsHandshake] = set()
        self._instance = secrets.token_hex(8)
        self._last_tag = 0
        self._listeners: dict[socket.socket, PeerKind] = {}
        self._connections: dict[str, RelayedConnection] = {}
        _make_private(directory)

    def listen(self, listener: socket.socket, *, node: bool = False) -> None:
        """Accept connections of a listening socket, and close it with the gateway."""
        kind: PeerKind = "tcp"
        if listener.family == socket.AF_UNIX:
            kind = "node" if node else "unix"
        listener.settimeout(0)
        self._listeners[listener] = kind
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, kind)

    def stop_listening(self) -> None:
        """Close the listeners; accepted connections continue."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Close listeners and connections."""
        self.stop_listening()
        for handshake in list(self._handshakes):
            handshake.close()
        for connection in list(self._connections.values()):
            connection.close()

    def peer(self, name: str) -> Peer | None:
        """Return the peer for its name in grpc; None: the connection bypassed the gateway."""
        connection = self._connections.get(name.removeprefix(PREFIX))
        return connection.peer if connection else None

    @property
    def connections(self) -> int:
        """The number of connections, those in a TLS handshake included."""
        return len(self._connections) + len(self._handshakes)

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that all connections buffer."""
        return sum(connection.buffered_bytes for connection in self._connections.values())

    def disconnect(self, name: str) -> None:
        """Close a connection whose identity is no longer valid, after its answer is sent."""
        connection = self._connections.get(name.removeprefix(PREFIX))
        if connection is not None:
            asyncio.get_running_loop().call_later(ANSWER_S, connection.close)

    def _accept(self, listener: socket.socket, kind: PeerKind) -> None:
        for _attempt in range(ACCEPT_AT_ONCE):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("cannot accept connections, retrying in %d s: %s", ACCEPT_PAUSE_S, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_S, self._resume, listener, kind)
                return
            self._admit(client, kind)

    def _resume(self, listener: socket.socket, kind: PeerKind) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener, kind)

    def _admit(self, client: socket.socket, kind: PeerKind) -> None:
        try:
            peer = peer_of(client, kind)
            if self.count.is_full(peer):
                log.warning("too many connections from %s: closed a new one", peer.quota_key)
                client.close()
            elif kind == "tcp":
                self._start_tls(peer, client)
            else:
                self._connect(peer, client)
        except OSError as error:  # the peer is gone, or grpc does not accept
            log.warning("dropped a %s connection: %s", kind, error)
            client.close()

    def _start_tls(self, peer: Peer, client: socket.socket) -> None:
        """Complete the handshake before any byte of a TCP peer reaches grpc."""
        context = self._tls.context() if self._tls else None
        if context is None:
            log.warning(
                "refused %s: this host has no certificate; run zfsiloctl pki init", peer.address
            )
            client.close()
            return

        def ended(secured: ssl.SSLSocket | None) -> None:
            self._handshakes.discard(handshake)
            self.count.remove(peer)
            if secured is not None:
                self._identify(peer, secured)

        self.count.add(peer)
        handshake = TlsHandshake(client, context, ended)
        self._handshakes.add(handshake)
        handshake.step()

    def _identify(self, peer: Peer, secured: ssl.SSLSocket) -> None:
        der = secured.getpeercert(binary_form=True)
        try:
            assert self._tls is not None
            certified = self._tls.identify(der) if der else None
            self._connect(peer.but(certificate=certified), secured)
        except Unauthenticated as error:
            log.warning("refused %s: %s", peer.address, error.message)
            secured.close()
        except OSError as error:
            log.warning("dropped a connection from %s: %s", peer.address, error)
            secured.close()

    def _connect(self, peer: Peer, client: socket.socket) -> None:
        """Join a client with a new connection to grpc."""
        tag, server = self._reach_grpc()

        def closed() -> None:
            del self._connections[tag]
            self.count.remove(peer)

        self.count.add(peer)
        self._connections[tag] = RelayedConnection(peer, client, server, closed=closed)

    def _reach_grpc(self) -> tuple[str, socket.socket]:
        """Connect to grpc under a new tag; on a unix socket connect(2) never waits."""
        self._last_tag += 1
        tag = f"zfsilo/{self._instance}/{self._last_tag}"
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.settimeout(0)
            server.bind(f"\0{tag}")
            server.connect(os.fspath(self.private_socket))
        except OSError:
            server.close()
            raise
        return tag, server


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    for stale in directory.glob("*.sock"):
        stale.unlink()
