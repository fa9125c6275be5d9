"""Relays bytes between two sockets, in both directions.

Non-blocking sockets are used directly: asyncio's transports double the delay. A relay keeps at most
one chunk that its sink has not taken, and reads no more until that is sent.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.identity import Peer

CHUNK_BYTES = 65536
LINGER_S = 5  # how long one direction of a connection outlives the other
# The socket would block. TLS may have to read before it can write, and the reverse.
NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class RelayedConnection:
    """A client and grpc, joined by two relays until both directions have ended."""

    def __init__(
        self,
        peer: Peer,
        client: socket.socket,
        server: socket.socket,
        *,
        closed: Callable[[], None],
    ) -> None:
        self.peer = peer
        self._sockets = (client, server)
        self._closed = closed
        self._open = True
        self._linger: asyncio.TimerHandle | None = None
        client.settimeout(0)
        self._relays = (Relay(client, server, self), Relay(server, client, self))

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that were read from one end and not yet sent to the other."""
        return sum(len(relay.rest) for relay in self._relays)

    def relay_ended(self) -> None:
        """Close the connection when both directions have ended, or LINGER_S after the first."""
        if all(relay.ended for relay in self._relays):
            self.close()
        elif self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.close)

    def close(self) -> None:
        """Close both ends at once."""
        if not self._open:
            return
        self._open = False
        if self._linger is not None:
            self._linger.cancel()
        for relay in self._relays:
            relay.stop()
        for end in self._sockets:
            end.close()
        self._closed()


class Relay:
    """Carries bytes from one socket to another."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, owner: RelayedConnection
    ) -> None:
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._owner = owner
        self.rest = b""  # bytes that the sink has not taken; nothing is read meanwhile
        self._loop.add_reader(source, self._read)

    def stop(self) -> None:
        """Stop reading and writing."""
        self._loop.remove_reader(self._source)
        if self.rest:
            self._loop.remove_writer(self._sink)

    def _read(self) -> None:
        try:
            data = self._source.recv(CHUNK_BYTES)
            if data:
                self._send(data)
            else:
                self._end()
        except NOT_NOW:
            return
        except OSError:
            self._owner.close()

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sink.send(data)
        except NOT_NOW:
            sent = 0
        if sent < len(data):
            self.rest = data[sent:]
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._write)

    def _write(self) -> None:
        try:
            sent = self._sink.send(self.rest)
        except NOT_NOW:
            return
        except OSError:
            self._owner.close()
            return
        self.rest = self.rest[sent:]
        if not self.rest:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._read)

    def _end(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._source)
        if isinstance(self._sink, ssl.SSLSocket):
            with suppress(OSError):  # sends close_notify, and would wait for the peer's
                self._sink.unwrap()
        else:
            self._sink.shutdown(socket.SHUT_WR)
        self._owner.relay_ended()
