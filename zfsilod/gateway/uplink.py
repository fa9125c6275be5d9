"""The gateway's side of the private connection to the daemon.

It is opened when a client comes, and again after the daemon was restarted. Connections of clients
end with it, since grpc is gone too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from zfsilod.gateway import packets
from zfsilod.gateway.limits import Limits
from zfsilod.model.errors import Unauthenticated, Unavailable, ZfsiloError
from zfsilod.security.tls import ServerTls

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from zfsilod.gateway.packets import Packet
    from zfsilod.model.identity import Peer

FRESH_S = 1.0  # how long certificates and limits are used without asking again

log = logging.getLogger(__name__)


class Uplink:
    """Asks the daemon for certificates, limits, and sockets to grpc."""

    def __init__(self, connect: Callable[[], socket.socket], fresh_s: float = FRESH_S) -> None:
        """`connect` returns a new connection to the daemon, or raises OSError."""
        self.tls = ServerTls()
        self.limits = Limits()
        self.close_client: Callable[[int, str], None] = lambda _number, _why: None
        self.carry_stream: Callable[[int], None] = lambda _number: None
        self.lost: Callable[[], None] = lambda: None
        self._connect = connect
        self._fresh_s = fresh_s
        self._link: socket.socket | None = None
        self._asked_at = 0.0
        self._settings: asyncio.Future[None] | None = None
        self._pending: dict[int, asyncio.Future[int]] = {}

    async def refresh(self) -> None:
        """Bring certificates and limits up to date. Raises OSError and Unavailable."""
        if self._settings is None:
            if self._link and time.monotonic() - self._asked_at < self._fresh_s:
                return
            self._settings = asyncio.get_running_loop().create_future()
            try:
                self._ask({"ask": "settings"})
            except OSError:
                self._settings = None
                raise
        await asyncio.shield(self._settings)

    async def connection(self, number: int, peer: Peer, digest: str, *, http: bool) -> int:
        """Return the descriptor of a socket to grpc or HTTP for a client; `digest`: of its token.

        Raises Unauthenticated when certificate or token are not valid, and Unavailable.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            asked = {"ask": "connection", "id": number, "digest": digest, "http": http}
            self._ask(asked | packets.of_peer(peer))
            return await answer
        finally:
            self._pending.pop(number, None)

    def refused(self, address: str, path: str, reason: str) -> None:
        """Tell the daemon, for its audit, that the gateway has refused a call."""
        if self._link is not None:
            self._ask({"ask": "refused", "address": address, "path": path, "reason": reason})

    def closed(self, number: int) -> None:
        """Tell the daemon that a client's connection is closed."""
        if self._link is not None:
            self._ask({"ask": "closed", "id": number})

    def close(self) -> None:
        """Close the connection to the daemon, and those of all clients."""
        if self._link is None:
            return
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        self._link = None
        gone = Unavailable("zfsilod has closed the connection of the gateway")
        if self._settings is not None and not self._settings.done():
            self._settings.set_exception(gone)
            self._settings.exception()  # retrieved: nobody may wait for it
        self._settings = None
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(gone)
                answer.exception()  # retrieved: nobody waits if the question could not be sent
        self.lost()

    def _ask(self, packet: Packet) -> None:
        if self._link is None:
            self._link = self._connect()
            self._link.settimeout(0)
            asyncio.get_running_loop().add_reader(self._link, self._read)
        try:
            packets.send(self._link, packet)
        except OSError:
            self.close()
            raise

    def _read(self) -> None:
        try:
            assert self._link is not None
            received = packets.receive(self._link)
            if received is None:
                self.close()
            else:
                self._told(*received)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError) as error:
            log.error("closed the connection to zfsilod: %r", error)
            self.close()

    def _told(self, packet: Packet, descriptor: int | None) -> None:
        match packet["tell"]:
            case "settings" if descriptor is not None:
                content = packets.from_file(descriptor)
                self.limits = Limits(**content["limits"])
                self.tls.use(content["tls"])
                self._are_fresh()
            case "unchanged":
                self._are_fresh()
            case "connection" if descriptor is not None:
                self._hand_over(int(packet["id"]), descriptor)
            case "refused":
                answer = self._pending.get(int(packet["id"]))
                if answer is not None and not answer.done():
                    answer.set_exception(_refusal(packet))
            case "stream":
                self.carry_stream(int(packet["id"]))
            case "close":
                self.close_client(int(packet["id"]), str(packet["why"]))
            case _:
                raise ValueError("unknown packet")

    def _are_fresh(self) -> None:
        self._asked_at = time.monotonic()
        if self._settings is not None:
            self._settings.set_result(None)
            self._settings = None

    def _hand_over(self, number: int, descriptor: int) -> None:
        answer = self._pending.get(number)
        if answer is None or answer.done():  # the client is gone
            os.close(descriptor)
            self.closed(number)
        else:
            answer.set_result(descriptor)


def _refusal(packet: Packet) -> ZfsiloError:
    if packet.get("reason"):
        return Unauthenticated(str(packet["why"]), reason=str(packet["reason"]))
    return Unavailable(f"zfsilod refused it: {packet['why']}")
