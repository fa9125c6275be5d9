"""Local connections: unix sockets of root, of the group zfsilo and of the CSI plugin.

They stay in the daemon's process, so that they work without the gateway. A connection to the CSI
socket has the role node, whatever its user.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.gateway.acceptor import Acceptor
from zfsilod.gateway.opening import first_bytes, is_http
from zfsilod.gateway.relay import PlainEnd, RelayedConnection, reason_of
from zfsilod.gateway.settling import DaemonEnd
from zfsilod.gateway.sockets import peer_of

if TYPE_CHECKING:
    import socket

    from zfsilod.gateway.backend import ApiSockets
    from zfsilod.model.identity import Peer, PeerKind

NODE_SOCKET = "zfsilod-csi.socket"  # systemd's name of the descriptors of that unit

GREETING_S = 10  # from accept(2) to the first bytes, which tell the protocol
GREETING_BYTES = 4096

log = logging.getLogger(__name__)


class LocalConnections:
    """Listeners on unix sockets, and their connections to grpc or HTTP."""

    def __init__(self, backend: ApiSockets) -> None:
        self._backend = backend
        self._acceptors: list[Acceptor] = []
        self._connections: dict[str, RelayedConnection] = {}
        self._silent: set[asyncio.Task[None]] = set()  # of connections without any bytes so far

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
        for task in list(self._silent):
            task.cancel()
        for connection in list(self._connections.values()):
            connection.close()

    @property
    def silent(self) -> int:
        """The number of connections without any bytes so far."""
        return len(self._silent)

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that all connections buffer."""
        return sum(connection.buffered_bytes for connection in self._connections.values())

    def _admit(self, kind: PeerKind, client: socket.socket) -> None:
        try:
            peer = peer_of(client, kind)
        except OSError as error:  # the peer is gone
            log.warning("dropped a %s connection: %s", kind, error)
            client.close()
            return
        if self._backend.count.is_full(peer):
            log.warning("too many connections from %s: closed a new one", peer.quota_key)
            client.close()
            return
        self._backend.count.add(peer)
        task = asyncio.get_running_loop().create_task(self._greet(client, peer))
        self._silent.add(task)
        task.add_done_callback(partial(self._greeted, peer, client))

    async def _greet(self, client: socket.socket, peer: Peer) -> None:
        """Read the first bytes of a connection, and connect it to the server of its protocol."""
        client.settimeout(0)
        receive = partial(asyncio.get_running_loop().sock_recv, client, GREETING_BYTES)
        async with asyncio.timeout(GREETING_S):
            first = await first_bytes(receive)
        http = is_http(first)
        name, server = self._backend.connect(
            peer, lambda why: self._connections[name].close(why), http=http
        )
        ends = PlainEnd(client), PlainEnd(server) if http else DaemonEnd(server)
        connection = RelayedConnection(peer, *ends, closed=partial(self._closed, name))
        self._connections[name] = connection
        connection.begin(first)

    def _greeted(self, peer: Peer, client: socket.socket, task: asyncio.Task[None]) -> None:
        """Count a connection no more as silent, and close it if it said nothing."""
        self._silent.discard(task)
        self._backend.count.remove(peer)
        if task.cancelled() or (error := task.exception()) is None:
            if task.cancelled():
                client.close()
            return
        client.close()
        if isinstance(error, OSError):  # the peer is gone or silent, or the server does not accept
            log.info("dropped a connection of %s: %s", peer.address, reason_of(error))
            return
        raise error

    def _closed(self, name: str, why: str) -> None:
        connection = self._connections.pop(name)
        self._backend.forget(name)
        if why:
            log.info("closed a connection of %s: %s", connection.peer.address, why)
