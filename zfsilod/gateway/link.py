"""The daemon's side of the private connection to the gateway.

Only the gateway's user may connect. It is told the certificates, and gets a socket to grpc for each
connection whose identity, as it states it, is valid: a certificate that is not revoked, or a token
that the store has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.gateway import packets
from zfsilod.gateway.acceptor import Acceptor
from zfsilod.model.errors import Unauthenticated, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.gateway.backend import ApiSockets
    from zfsilod.gateway.packets import Packet
    from zfsilod.model.identity import Peer
    from zfsilod.security.tls import TlsFiles

USER = "zfsilo-gateway"
SOCKET = "zfsilod-relay.socket"  # systemd's name of the descriptors of that unit
AT_ONCE = 64  # packets in one turn of the loop

log = logging.getLogger(__name__)


class GatewayAdmission:
    """Decides on the peers that the gateway states; without a gRPC server it admits none."""

    def __init__(self) -> None:
        self.check: Callable[[Peer, str], None] = _not_yet  # peer, and the digest of its token
        self.refused: Callable[[str, str, str], None] = lambda _address, _path, _reason: None


def _not_yet(_peer: Peer, _digest: str) -> None:
    raise Unavailable("zfsilod is starting")


class GatewayLink:
    """Accepts the private connection; a new one takes the place of the previous one."""

    def __init__(self, backend: ApiSockets, tls: TlsFiles) -> None:
        self._backend = backend
        self._tls = tls
        self.admission = GatewayAdmission()
        self._acceptors: list[Acceptor] = []
        self._session: LinkSession | None = None

    def listen(self, listener: socket.socket) -> None:
        """Accept the connection of the gateway on a listening socket."""
        self._acceptors.append(Acceptor(listener, self._accepted))

    def attach(self, link: socket.socket) -> None:
        """Serve a gateway on a connected socket."""
        if self._session is not None:
            self._session.close()
        self._session = LinkSession(link, self._backend, self._tls, self.admission)

    def stop_listening(self) -> None:
        """Close the listeners; the connection continues."""
        for acceptor in self._acceptors:
            acceptor.close()

    def close(self) -> None:
        """Close listeners and connection, and with it those of the gateway's clients."""
        self.stop_listening()
        if self._session is not None:
            self._session.close()

    def _accepted(self, link: socket.socket) -> None:
        raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        uid = struct.unpack("iII", raw)[1]
        if uid == _uid_of_the_gateway():
            link.settimeout(0)
            self.attach(link)
        else:
            log.warning("refused uid %d at the socket of the gateway", uid)
            link.close()


class LinkSession:
    """One connection of a gateway."""

    def __init__(
        self, link: socket.socket, backend: ApiSockets, tls: TlsFiles, admission: GatewayAdmission
    ) -> None:
        self._link = link
        self._admission = admission
        self._backend = backend
        self._tls = tls
        self._stamps: object = None
        self._names: dict[int, str] = {}  # of connections to grpc, by the gateway's id
        self._open = True
        asyncio.get_running_loop().add_reader(link, self._read)

    def close(self) -> None:
        """Close the connection; the gateway then closes those of its clients."""
        if not self._open:
            return
        self._open = False
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        for name in self._names.values():
            self._backend.forget(name)
        self._names.clear()

    def _read(self) -> None:
        try:
            for _packet in range(AT_ONCE):
                received = packets.receive(self._link)
                if received is None:
                    self.close()
                    return
                packet, descriptor = received
                if descriptor is not None:
                    os.close(descriptor)
                self._answer(packet)
                if not self._open:
                    return
        except BlockingIOError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.error("closed the connection of the gateway: %r", error)
            self.close()

    def _answer(self, packet: Packet) -> None:
        match packet["ask"]:
            case "settings":
                self._tell_settings()
            case "connection":
                self._connect(int(packet["id"]), packet)
            case "refused":
                texts = (str(packet[name]) for name in ("address", "path", "reason"))
                self._admission.refused(*texts)
            case "closed":
                name = self._names.pop(int(packet["id"]), None)
                if name is not None:
                    self._backend.forget(name)
            case _:
                raise ValueError("unknown question")

    def _tell_settings(self) -> None:
        stamps = self._tls.stamps()
        if stamps == self._stamps:
            packets.send(self._link, {"tell": "unchanged"})
            return
        self._stamps = stamps
        limits = self._backend.count.limits
        content = {
            "tls": self._tls.material(),
            "limits": {name: getattr(limits, name) for name in limits.FIELDS},
        }
        descriptor = packets.to_file(content)
        try:
            packets.send(self._link, {"tell": "settings"}, descriptor)
        finally:
            os.close(descriptor)

    def _connect(self, number: int, packet: Packet) -> None:
        peer = packets.peer_of_packet(packet)
        if number in self._names:
            raise ValueError("a connection with this id exists")
        try:
            self._admission.check(peer, str(packet["digest"]))
        except (Unauthenticated, Unavailable) as error:
            reason = error.reason if isinstance(error, Unauthenticated) else ""
            refusal = {"tell": "refused", "id": number, "why": error.message, "reason": reason}
            packets.send(self._link, refusal)
            return
        if self._backend.count.is_full(peer):
            packets.send(self._link, {"tell": "refused", "id": number, "why": "too many"})
            return
        try:
            close = partial(self._tell_close, number)
            http, carry = bool(packet.get("http")), partial(self._tell, "stream", number)
            name, server = self._backend.connect(peer, close, http=http, carry=carry)
        except OSError as error:  # the server does not accept
            log.warning("cannot connect to the server: %s", error)
            packets.send(self._link, {"tell": "refused", "id": number, "why": "unavailable"})
            return
        self._names[number] = name
        with server:  # the gateway has the only descriptor
            packets.send(self._link, {"tell": "connection", "id": number}, server.fileno())

    def _tell_close(self, number: int, why: str) -> None:
        self._tell("close", number, why)

    def _tell(self, what: str, number: int, why: str = "") -> None:
        if self._open and number in self._names:
            try:
                packets.send(self._link, {"tell": what, "id": number, "why": why})
            except OSError:
                self.close()


def _uid_of_the_gateway() -> int:
    """Return the uid of the gateway's user; -1: it does not exist on this host."""
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return -1
