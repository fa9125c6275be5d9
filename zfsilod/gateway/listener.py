"""Accepts TCP connections, finishes TLS, and relays them to the daemon.

A connection that has not shown an identity counts as unadmitted: it is closed after ADMISSION_S,
and the oldest of them makes room for a new one. The identity is a certificate, or the token of the
first call, which is read here. The daemon admits it when both are valid; before that it sees
nothing of what the peer sends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilod.gateway import limits
from zfsilod.gateway.acceptor import Acceptor
from zfsilod.gateway.first_call import FirstCall
from zfsilod.gateway.limits import ConnectionCount, Pace
from zfsilod.gateway.relay import PlainEnd, RelayedConnection, reason_of
from zfsilod.gateway.settling import DaemonEnd
from zfsilod.gateway.sockets import peer_of
from zfsilod.gateway.tls import TlsEnd
from zfsilod.model.errors import Unauthenticated, Unavailable
from zfsilod.security.authentication import parse_token

if TYPE_CHECKING:
    from zfsilod.gateway.uplink import Uplink
    from zfsilod.model.identity import Peer

ADMISSION_S = 10  # from accept(2) until the peer is admitted

HANDSHAKE = "handshake"  # the limit of connections that are not admitted
LINES, LINES_S = 20, 60.0  # about strangers: so many in so many seconds

log = logging.getLogger(__name__)


class FewLines(logging.LoggerAdapter[logging.Logger]):
    """A log whose lines strangers cause: only LINES in LINES_S, then their number."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, None)
        self._since = time.monotonic()
        self._written = self._dropped = 0

    def log(self, level: int, msg: object, *args: Any, **_kwargs: Any) -> None:
        """Write a line, or count it."""
        if self.has_place():
            self.logger.log(level, msg, *args)

    def has_place(self) -> bool:
        """Take the place of a line, and tell whether there was one."""
        if time.monotonic() - self._since > LINES_S:
            if self._dropped:
                self.logger.warning("%d more lines about strangers were dropped", self._dropped)
            self._since, self._written, self._dropped = time.monotonic(), 0, 0
        if self._written < LINES:
            self._written += 1
            return True
        self._dropped += 1
        return False


class Gateway:
    """Listeners on TCP ports, and the connections of their clients."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        uplink.close_client = self._close_client
        uplink.carry_stream = self._carry_stream
        uplink.lost = partial(self._close_clients, "zfsilod has ended or restarted")
        self.count = ConnectionCount(uplink.limits)
        self._acceptors: list[Acceptor] = []
        self._unadmitted: dict[asyncio.Task[None], Peer] = {}
        self._clients: dict[int, RelayedConnection] = {}
        self._last = 0
        self._log = FewLines(log)
        self._pace = Pace()
        self._header_pace = Pace(limits.HEADER_BURST, limits.HEADERS_PER_S)

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of a listening socket."""
        self._acceptors.append(Acceptor(listener, self._accepted))

    def stop_listening(self) -> None:
        """Close the listeners; accepted connections continue."""
        for acceptor in self._acceptors:
            acceptor.close()

    def close(self) -> None:
        """Close listeners and connections, and the connection to the daemon."""
        self.stop_listening()
        for task in list(self._unadmitted):
            task.cancel()
        self._close_clients()
        self._uplink.close()

    @property
    def unadmitted(self) -> int:
        """The number of connections that are not admitted."""
        return len(self._unadmitted)

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that all connections buffer."""
        return sum(client.buffered_bytes for client in self._clients.values())

    def _accepted(self, client: socket.socket) -> None:
        self.count.limits = self._uplink.limits
        try:
            peer = peer_of(client, "tcp")
        except OSError as error:  # the peer is gone
            self._log.info("dropped a connection: %s", reason_of(error))
            client.close()
            return
        if self.count.is_full(peer, HANDSHAKE) and not self._make_room(peer):
            self._log.warning("too many connections from %s: closed a new one", peer.quota_key)
            client.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(client, peer))
        self._count_unadmitted(task, peer)
        task.add_done_callback(self._admission_ended)

    def _make_room(self, peer: Peer) -> bool:
        """Close the oldest unadmitted connection, unless this peer has too many itself."""
        if self.count.by_peer[peer.quota_key] >= self._uplink.limits.per_peer:
            return False
        oldest = next(iter(self._unadmitted), None)
        if oldest is None:
            return False
        newer = "closed to make room for newer ones"
        self._log.info("dropped a connection from %s: %s", self._unadmitted[oldest].address, newer)
        oldest.cancel()
        self._admission_ended(oldest)
        return True

    def _count_unadmitted(self, task: asyncio.Task[None], peer: Peer) -> None:
        if task not in self._unadmitted:
            self._unadmitted[task] = peer
            self.count.add(peer, HANDSHAKE)

    def _admission_ended(self, task: asyncio.Task[None] | None) -> None:
        """Count a connection no more as unadmitted: it is admitted, or closed."""
        peer = self._unadmitted.pop(task, None) if task else None
        if peer is not None:
            self.count.remove(peer, HANDSHAKE)

    async def _serve(self, client: socket.socket, peer: Peer) -> None:
        client.settimeout(0)
        handed_over = False
        try:
            async with asyncio.timeout(ADMISSION_S):
                handed_over = await self._admit(client, peer)
        except OSError as error:  # not TLS, an unknown authority, silence
            late = isinstance(error, TimeoutError) and not error.strerror
            why = f"not admitted within {ADMISSION_S} s" if late else reason_of(error)
            self._log.info("dropped a connection from %s: %s", peer.address, why)
        except Unavailable as error:
            self._log.warning("refused %s: %s", peer.address, error.message)
        finally:
            if not handed_over:
                client.close()

    async def _admit(self, client: socket.socket, peer: Peer) -> bool:
        await self._uplink.refresh()
        context = self._uplink.tls.context
        if context is None:
            raise Unavailable("this host has no certificate; run zfsiloctl pki init")
        end = TlsEnd(client, context)
        await end.handshake()
        first = FirstCall(end)
        await first.learn_protocol()
        try:
            await self._hand_over(peer, first)
        except Unauthenticated as error:
            task: Any = asyncio.current_task()
            self._count_unadmitted(task, peer)
            if self._log.has_place():
                log.warning("refused %s: %s", peer.address, error.message)
                self._uplink.refused(peer.address, await first.path(), error.reason)
            await first.refuse(error)
            return False
        return True

    async def _hand_over(self, peer: Peer, first: FirstCall) -> None:
        """Give a connection with a valid identity to the daemon."""
        der, authorization, digest = first.end.certificate, "", ""
        admitted = peer
        if der:
            admitted = peer.but(certificate=self._uplink.tls.identify(der))
        else:
            authorization = await first.authorization()
        # A connection costs the daemon more than its calls: one peer opens few in a second.
        await asyncio.sleep(self._pace.wait_s(admitted.quota_key, time.monotonic()))
        if not der:
            token, digest = parse_token(authorization)
            admitted = peer.but(token=token)
        self._admission_ended(asyncio.current_task())
        if self.count.is_full(admitted):
            raise Unavailable(f"too many connections of {admitted.quota_key}")
        self._last += 1
        number = self._last
        self.count.add(admitted)
        try:
            descriptor = await self._uplink.connection(number, admitted, digest, http=first.http)
        except BaseException:
            self.count.remove(admitted)
            raise
        self._relay(number, admitted, first, socket.socket(fileno=descriptor))

    def _relay(self, number: int, peer: Peer, first: FirstCall, server: socket.socket) -> None:
        def closed(why: str) -> None:
            if why:
                self._log.info("closed a connection from %s: %s", peer.address, why)
            del self._clients[number]
            self.count.remove(peer)
            with suppress(OSError):  # zfsilod is gone
                self._uplink.closed(number)

        first.end.pace = lambda cost: self._header_pace.wait_s(
            peer.caller_key, time.monotonic(), cost
        )
        daemon = PlainEnd(server) if first.http else DaemonEnd(server)
        connection = RelayedConnection(peer, first.end, daemon, closed=closed)
        self._clients[number] = connection
        connection.begin(first.data())

    def _close_client(self, number: int, why: str) -> None:
        client = self._clients.get(number)
        if client is not None:
            client.close(why)

    def _carry_stream(self, number: int) -> None:
        client = self._clients.get(number)
        if client is not None:
            client.carry_stream()

    def _close_clients(self, why: str = "") -> None:
        for client in list(self._clients.values()):
            client.close(why)
