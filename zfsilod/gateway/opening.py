"""The beginning of a connection without a certificate: the frames up to its first call.

The gateway reads them to find the token of the call, and gives them to the daemon unchanged when
the token is valid. A client sends no call before it has the settings of a server, so the gateway
sends some: the daemon's follow. Only the answer to these first ones is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.gateway import hpack
from zfsilod.gateway.frames import CONTINUATION, HEAD_BYTES, HEADERS, PREFACE_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2 = PREFACE[:3]  # no method of HTTP/1.1 begins so
MAX_BYTES = 128 << 10  # the first window of a client's data has 64 KiB
MAX_BLOCK_BYTES = 8192  # of headers: gRPC refuses more metadata by default, too
MAX_LIST_BYTES = 16384  # of decoded headers, each with 32 more: RFC 9113, section 6.5.2
MAX_FRAME_BYTES = 16384  # what a client may send to a server that does not allow more

SETTINGS, GOAWAY = 4, 7
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITY = 4, 8, 32
PRIORITY_BYTES = 5


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return b"".join((len(content).to_bytes(3), bytes((kind, flags)), stream.to_bytes(4), content))


async def first_bytes(receive: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return the first bytes of a connection, enough for `is_http`. Raises OSError."""
    data = b""
    while len(data) < len(HTTP2) and HTTP2.startswith(data):
        more = await receive()
        if not more:
            raise ConnectionAbortedError("the peer ended the connection before its first call")
        data += more
    return data


def is_http(first: bytes) -> bool:
    """Tell whether a connection that begins so is one of HTTP/1.1, not of gRPC (HTTP/2)."""
    return not first.startswith(HTTP2)


class WholeFrames:
    """Cuts what a client sends into the preface and whole frames."""

    def __init__(self) -> None:
        self.rest = bytearray()  # what is not cut off
        self.begun = False  # the preface is cut off

    @property
    def length(self) -> int:
        """The length of the next frame's content, 0 while it is not known."""
        return int.from_bytes(self.rest[:3]) if len(self.rest) >= HEAD_BYTES else 0

    def preface(self) -> bytes:
        """Cut the preface off, once; b"": it is not complete, or was cut off."""
        if self.begun or len(self.rest) < PREFACE_BYTES:
            return b""
        self.begun = True
        return self._cut(PREFACE_BYTES)

    def frame(self) -> bytes:
        """Cut the next frame off; b"": it is not complete."""
        size = HEAD_BYTES + self.length
        return self._cut(size) if self.begun and len(self.rest) >= size else b""

    def all(self) -> bytes:
        """Cut everything off."""
        return self._cut(len(self.rest))

    def _cut(self, count: int) -> bytes:
        first = bytes(self.rest[:count])
        del self.rest[:count]
        return first


class Headers:
    """The headers of the first call of a connection, which gRPC would decode without a bound."""

    def __init__(self) -> None:
        self.decoded: list[tuple[bytes, bytes]] | None = None  # None: they are not complete
        self.stream = 0  # of the call; 0: it has not begun
        self._block = b""

    def take(self, whole: bytes) -> None:
        """Take a frame HEADERS or CONTINUATION. Raises ConnectionAbortedError for too many."""
        flags, content = whole[4], whole[HEAD_BYTES:]
        if whole[3] == HEADERS:
            self.stream = int.from_bytes(whole[5:9])
            self._block = _unpadded(flags, content)
        else:
            self._block += content
        if len(self._block) > MAX_BLOCK_BYTES:
            raise ConnectionAbortedError("too many headers")
        if flags & END_HEADERS:
            headers = hpack.decode(self._block)
            if hpack.list_bytes(headers) > MAX_LIST_BYTES:
                raise ConnectionAbortedError("too many headers")
            self.decoded = headers


class Opening:
    """What a client has sent so far."""

    def __init__(self) -> None:
        self.data = bytearray()  # for the daemon
        self.headers: dict[bytes, bytes] | None = None  # of the first call, when they are complete
        self._frames = WholeFrames()
        self._first = Headers()
        self._headers_end = 0
        self._acknowledged = False

    @property
    def stream(self) -> int:
        """The stream of the first call; 0: it has not begun."""
        return self._first.stream

    @property
    def has_body(self) -> bool:
        """Tell whether more than the headers of the first call has come."""
        return len(self.data) > self._headers_end

    @property
    def complete(self) -> bool:
        """Tell whether the rest of the connection may go to the daemon as it is."""
        return self.headers is not None and self._acknowledged

    def follow(self, data: bytes) -> None:
        """Follow further bytes. Raises ConnectionAbortedError for what is not HTTP/2."""
        frames = self._frames
        frames.rest += data
        if not frames.begun:
            if not PREFACE.startswith(frames.rest[:PREFACE_BYTES]):
                raise ConnectionAbortedError("not HTTP/2")
            self.data += frames.preface()
        while frames.begun and not self.complete:
            if frames.length > MAX_FRAME_BYTES:
                raise ConnectionAbortedError("too large a frame")
            whole = frames.frame()
            if not whole:
                break
            self._take(whole)
        if self.complete:
            self.data += frames.all()
        if len(self.data) + len(frames.rest) > MAX_BYTES:
            raise ConnectionAbortedError("too much data before the first call")

    def _take(self, whole: bytes) -> None:
        kind, flags = whole[3], whole[4]
        if kind == SETTINGS and flags & ACK and not self._acknowledged:
            self._acknowledged = True
            return
        self.data += whole
        if kind in (HEADERS, CONTINUATION) and self.headers is None:
            self._first.take(whole)
            if self._first.decoded is not None:
                self.headers = joined(self._first.decoded)
                self._headers_end = len(self.data)


def _unpadded(flags: int, content: bytes) -> bytes:
    padding = 0
    if flags & PADDED:
        padding, content = (content[0] if content else 0), content[1:]
    if flags & PRIORITY:
        content = content[PRIORITY_BYTES:]
    return content[: max(0, len(content) - padding)]


def joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name; two of one name do not form a valid token."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b" " + value if name in joined else value
    return joined
