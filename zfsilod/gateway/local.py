"""Local connections: unix sockets of root, of the group zfsilo and of the CSI plugin.

They stay in the daemon's process, so that they work without the gateway. A connection to the CSI
socket has the role node, whatever its user.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.gateway.acceptor import Acceptor
from zfsilod.gateway.relay import PlainEnd, RelayedConnection
from zfsilod.gateway.settling import DaemonEnd
from zfsilod.gateway.sockets import peer_of

if TYPE_CHECKING:
    import socket

    from zfsilod.gateway.backend import GrpcSockets
    from zfsilod.model.identity import PeerKind

NODE_SOCKET = "zfsilod-csi.socket"  # systemd's name of the descriptors of that unit

log = logging.getLogger(__name__)


class LocalConnections:
    """Listeners on unix sockets, and their connections to grpc."""

    def __init__(self, backend: GrpcSockets) -> None:
        self._backend = backend
        self._acceptors: list[Acceptor] = []
        self._connections: dict[str, RelayedConnection] = {}

    def listen(self, listener: socket.socket, *, node: bool = False) -> None:
        """Accept connections of a listening socket."""
        self._acceptors.append(Acceptor(listener, partial(self._admit, "node" if node else "unix")))

    def stop_listening(self) -> None:
        """Close the listeners; accepted connections continue."""
        for acceptor in self._acceptors:
            acceptor.close()

    def close(self) -> None:
        """Close listeners and connections."""
        self.stop_listening()
        for connection in list(self._connections.values()):
            connection.close()

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that all connections buffer."""
        return sum(connection.buffered_bytes for connection in self._connections.values())

    def _admit(self, kind: PeerKind, client: socket.socket) -> None:
        try:
            peer = peer_of(client, kind)
            if self._backend.count.is_full(peer):
                log.warning("too many connections from %s: closed a new one", peer.quota_key)
                client.close()
                return
            name, server = self._backend.connect(
                peer, lambda why: self._connections[name].close(why)
            )
        except OSError as error:  # the peer is gone, or grpc does not accept
            log.warning("dropped a %s connection: %s", kind, error)
            client.close()
            return
        ends = PlainEnd(client), DaemonEnd(server)
        self._connections[name] = RelayedConnection(peer, *ends, closed=partial(self._closed, name))

    def _closed(self, name: str, why: str) -> None:
        connection = self._connections.pop(name)
        self._backend.forget(name)
        if why:
            log.info("closed a connection of %s: %s", connection.peer.address, why)
