"""All connections of a daemon: local ones, and those that the gateway relays."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from zfsilod.gateway.backend import ApiSockets
from zfsilod.gateway.link import GatewayLink
from zfsilod.gateway.listener import Gateway
from zfsilod.gateway.local import LocalConnections
from zfsilod.gateway.uplink import FRESH_S, Uplink

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.gateway.limits import Limits
    from zfsilod.gateway.link import GatewayAdmission
    from zfsilod.security.tls import TlsFiles


class Connections:
    """The front of the gRPC servers of one process."""

    def __init__(
        self,
        directory: Path,
        limits: Limits | None,
        tls: TlsFiles,
        *,
        fresh_s: float = FRESH_S,
    ) -> None:
        """`directory` is for private sockets; it is made with mode 0700."""
        self.backend = ApiSockets(directory, limits)
        self._local = LocalConnections(self.backend)
        self._link = GatewayLink(self.backend, tls)
        self._fresh_s = fresh_s
        self._gateway: Gateway | None = None

    def listen(self, listener: socket.socket, *, node: bool = False) -> None:
        """Accept connections of a listening socket, and close it with the others.

        A TCP socket is served by a gateway within this process: in a simulation and in tests.
        """
        if listener.family == socket.AF_UNIX:
            self._local.listen(listener, node=node)
            return
        if self._gateway is None:
            self._gateway = Gateway(Uplink(self._pair, self._fresh_s))
        self._gateway.listen(listener)

    def listen_to_gateway(self, listener: socket.socket) -> None:
        """Accept the private connection of a gateway that is another process."""
        self._link.listen(listener)

    def stop_listening(self) -> None:
        """Close the listeners; accepted connections continue."""
        self._local.stop_listening()
        self._link.stop_listening()
        if self._gateway is not None:
            self._gateway.stop_listening()

    def close(self) -> None:
        """Close listeners and connections."""
        self._local.close()
        if self._gateway is not None:
            self._gateway.close()
        self._link.close()

    @property
    def admission(self) -> GatewayAdmission:
        """What decides on the peers that the gateway states."""
        return self._link.admission

    @property
    def connections(self) -> int:
        """The number of connections, those included that are not admitted yet."""
        unadmitted = self._gateway.unadmitted if self._gateway else 0
        return self.backend.connections + self._local.silent + unadmitted

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that all connections within this process buffer."""
        remote = self._gateway.buffered_bytes if self._gateway else 0
        return self._local.buffered_bytes + remote

    def _pair(self) -> socket.socket:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.settimeout(0)
        self._link.attach(own)
        return other
