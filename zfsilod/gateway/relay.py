"""Relays bytes between two ends of connections, in both directions.

Non-blocking sockets are used directly: asyncio's transports double the delay. A relay reads at most
CHUNK_BYTES at a time, and reads no more until its sink has sent them.
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
NOT_NOW = (BlockingIOError, InterruptedError)


def reason_of(error: OSError) -> str:
    """Return why a connection ends, in words; never an empty text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    return error.strerror or str(error) or type(error).__name__


class PlainEnd:
    """One end of a connection: a socket, and the bytes that it has not taken yet."""

    def __init__(self, own: socket.socket) -> None:
        own.settimeout(0)
        self.socket = own
        self.rest = b""
        self.drained: Callable[[], None] = lambda: None
        self.failed: Callable[[str], None] = lambda _why: None
        self._loop = asyncio.get_running_loop()

    def receive(self) -> bytes | None:
        """Return the next bytes; b"" at the end, None when there are none now. Raises OSError."""
        try:
            return self.socket.recv(CHUNK_BYTES)
        except NOT_NOW:
            return None

    def send(self, data: bytes) -> bool:
        """Send bytes; False: some have to wait, and `drained` is called after them."""
        if self.rest:
            self.rest += data
            return False
        try:
            sent = self.socket.send(data)
        except NOT_NOW:
            sent = 0
        if sent == len(data):
            return True
        self.rest = data[sent:]
        self._loop.add_writer(self.socket, self._write)
        return False

    def wait_s(self) -> float:
        """Return how long to wait before the next bytes are received."""
        return 0.0

    def carry_stream(self) -> None:
        """Take what follows for a stream, without calls."""

    def end(self) -> None:
        """Tell the other side that no more bytes follow."""
        with suppress(OSError):  # the other side has closed
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket, and drop the bytes that wait."""
        if self.rest:
            self._loop.remove_writer(self.socket)
        self.socket.close()

    def _write(self) -> None:
        try:
            sent = self.socket.send(self.rest)
        except NOT_NOW:
            return
        except OSError as error:
            self.failed(reason_of(error))
            return
        self.rest = self.rest[sent:]
        if not self.rest:
            self._loop.remove_writer(self.socket)
            self.drained()


class RelayedConnection:
    """Two ends, joined by two relays until both directions have ended."""

    def __init__(
        self, peer: Peer, client: PlainEnd, server: PlainEnd, *, closed: Callable[[str], None]
    ) -> None:
        """`closed` gets the reason; "": both sides have ended it."""
        self.peer = peer
        self._ends = (client, server)
        self._closed = closed
        self._open = True
        self._linger: asyncio.TimerHandle | None = None
        self._relays = (Relay(client, server, self), Relay(server, client, self))

    def begin(self, data: bytes) -> None:
        """Send what the gateway has read of the client already."""
        try:
            if data and not self._ends[1].send(data):
                self._relays[0].pause()
        except OSError as error:
            self.close(reason_of(error))

    @property
    def buffered_bytes(self) -> int:
        """The number of bytes that were read from one end and not yet sent to the other."""
        return sum(len(end.rest) for end in self._ends)

    def relay_ended(self) -> None:
        """Close the connection when both directions have ended, or LINGER_S after the first."""
        if all(relay.ended for relay in self._relays):
            self.close()
        elif self._linger is None:
            side = "the client" if self._relays[0].ended else "zfsilod"
            why = f"{side} has ended it, the other side has not within {LINGER_S} s"
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.close, why)

    def carry_stream(self) -> None:
        """Take what follows for a stream: its bytes have no pace."""
        for end in self._ends:
            end.carry_stream()

    def close(self, why: str = "") -> None:
        """Close both ends at once."""
        if not self._open:
            return
        self._open = False
        if self._linger is not None:
            self._linger.cancel()
        for relay in self._relays:
            relay.pause()
        for end in self._ends:
            end.close()
        self._closed(why)


class Relay:
    """Carries bytes from one end to another."""

    def __init__(self, source: PlainEnd, sink: PlainEnd, owner: RelayedConnection) -> None:
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._owner = owner
        self._due: asyncio.TimerHandle | None = None  # when a paced source may be read again
        sink.drained = self._resume
        sink.failed = owner.close
        self._loop.add_reader(source.socket, self._read)

    def pause(self) -> None:
        """Stop reading."""
        self._loop.remove_reader(self._source.socket)
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _read(self) -> None:
        try:
            if wait_s := self._source.wait_s():
                self.pause()
                self._due = self._loop.call_later(wait_s, self._resume)
                return
            data = self._source.receive()
            if data is None:
                return
            if not data:
                self._end()
            elif not self._sink.send(data):
                self.pause()
        except OSError as error:
            self._owner.close(reason_of(error))

    def _resume(self) -> None:
        if not self.ended:
            self._loop.add_reader(self._source.socket, self._read)

    def _end(self) -> None:
        self.ended = True
        self.pause()
        self._sink.end()
        self._owner.relay_ended()
