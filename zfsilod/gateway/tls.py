"""TLS of one connection over memory, so that the work of every turn of the loop has a bound.

`ssl` reads from a socket until it has data for the caller: a peer that sends records without any,
such as updates of its key, would hold the loop for as long as it sends. Here a turn takes
READ_BYTES from the socket, and a peer that sends more than BARREN_BYTES without data is
disconnected.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilod.gateway.frames import Frames, Requests, Stream
from zfsilod.gateway.relay import NOT_NOW, PlainEnd

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

READ_BYTES, STREAM_READ_BYTES = 16384, 262144
BARREN_BYTES = 40_000  # a whole record has 16.6 kB
HANDSHAKE_BYTES = 65536  # certificates of a client included


class TlsEnd(PlainEnd):
    """The end of a connection whose bytes are TLS records."""

    def __init__(self, own: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(own)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._frames: Frames | Requests | Stream = Frames()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._barren = 0
        self._read_bytes = READ_BYTES
        self.pace: Callable[[int], float] = lambda _cost: 0.0  # the wait after headers of a cost

    async def handshake(self) -> None:
        """Complete the handshake, else raise OSError; the caller has a deadline."""
        received = 0
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.flush()
            except ssl.SSLError:
                with suppress(*NOT_NOW):  # the alert; it need not arrive
                    self.socket.send(self._outgoing.read())
                raise
            data = await self._loop.sock_recv(self.socket, READ_BYTES)
            received += len(data)
            if not data:
                raise ConnectionAbortedError("it ended before the TLS handshake was complete")
            if received > HANDSHAKE_BYTES:
                raise ConnectionAbortedError(
                    f"a TLS handshake of more than {HANDSHAKE_BYTES} bytes"
                )
            self._incoming.write(data)
        await self.flush()

    @property
    def certificate(self) -> bytes | None:
        """The certificate of the peer in DER, which TLS has verified."""
        return self._tls.getpeercert(binary_form=True)

    @property
    def application(self) -> str | None:
        """The protocol that client and server have agreed on by ALPN; None: the client has none."""
        return self._tls.selected_alpn_protocol()

    def expect_http(self) -> None:
        """Take what follows for HTTP/1.1, not HTTP/2."""
        self._frames = Requests()

    def carry_stream(self) -> None:
        """Take what follows for a stream: it is read in larger pieces, and has no pace."""
        self._frames = Stream()
        self._read_bytes = STREAM_READ_BYTES
        self.pace = lambda _cost: 0.0

    async def read(self) -> bytes:
        """Return the next data, b"" at the end, before the connection is relayed."""
        data = self.pending()
        while not data:
            raw = await self._loop.sock_recv(self.socket, READ_BYTES)
            if not raw:
                return b""
            data = self._decrypt(raw) or b""
        return data

    def pending(self) -> bytes:
        """Return the data that came together with the end of the handshake."""
        return (self._decrypt(b"") or b"") if self._incoming.pending else b""

    async def write(self, data: bytes) -> None:
        """Send data, before the connection is relayed."""
        self._tls.write(data)
        await self.flush()

    async def flush(self) -> None:
        """Send what waits, before the connection is relayed."""
        if self._outgoing.pending:
            await self._loop.sock_sendall(self.socket, self._outgoing.read())

    def wait_s(self) -> float:
        """Return how long to wait before more is received: headers have a pace."""
        return self.pace(0)

    def receive(self) -> bytes | None:
        """Return the data of the next records. Raises OSError."""
        try:
            raw = self.socket.recv(self._read_bytes)
        except NOT_NOW:
            return None
        if not raw:
            return b""
        data = self._decrypt(raw)
        self.pace(self._frames.cost())  # at once: other connections of the peer have the same pace
        return data

    def send(self, data: bytes) -> bool:
        """Encrypt and send bytes."""
        self._tls.write(data)
        return super().send(self._outgoing.read())

    def end(self) -> None:
        """Send close_notify; the peer may still send."""
        with suppress(ssl.SSLError):  # it waits for the peer's
            self._tls.unwrap()
        with suppress(OSError):
            super().send(self._outgoing.read())
            if not self.rest:
                super().end()

    def _decrypt(self, raw: bytes) -> bytes | None:
        self._incoming.write(raw)
        parts = []
        ended = False
        try:
            while part := self._tls.read(READ_BYTES):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        if self._outgoing.pending:  # the answer to an update of the key
            super().send(self._outgoing.read())
        if parts:
            self._barren = 0
            data = b"".join(parts)
            self._frames.follow(data)
            return data
        if ended:
            return b""
        self.barren(len(raw))
        return None

    def barren(self, count: int) -> None:
        """Count bytes that had no data. Raises ConnectionAbortedError when there are too many."""
        self._barren += count
        if self._barren > BARREN_BYTES:
            raise ConnectionAbortedError("too many TLS records without data")
