"""Follows what a client sends, HTTP/2 or HTTP/1.1, without reading its content.

gRPC parses every CONTINUATION frame of a block of headers, however long: some kilobytes of them
delay the calls of others. A block of the allowed size needs MAX_CONTINUATIONS at most.
"""

from __future__ import annotations

PREFACE_BYTES = 24
HEAD_BYTES = 9
HEADERS, CONTINUATION = 1, 9
MAX_CONTINUATIONS = 16
CALL_COST = 256  # that a call has beside the bytes of its headers


class Frames:
    """The position within the frames of one connection."""

    def __init__(self) -> None:
        self._skip = PREFACE_BYTES  # bytes until the next head
        self._head = b""
        self._continuations = 0
        self._cost = 0

    def cost(self) -> int:
        """Return the cost of the headers that have come since the last time."""
        cost, self._cost = self._cost, 0
        return cost

    def follow(self, data: bytes) -> None:
        """Follow further bytes. Raises ConnectionAbortedError for too many continuations."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            part = data[at : at + HEAD_BYTES - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) == HEAD_BYTES:
                self._begin(self._head)
                self._head = b""

    def _begin(self, head: bytes) -> None:
        self._skip = int.from_bytes(head[:3])
        if head[3] in (HEADERS, CONTINUATION):
            self._cost += self._skip + (CALL_COST if head[3] == HEADERS else HEAD_BYTES)
        self._continuations = self._continuations + 1 if head[3] == CONTINUATION else 0
        if self._continuations > MAX_CONTINUATIONS:
            raise ConnectionAbortedError("too many CONTINUATION frames")


class Requests:
    """The bytes of HTTP/1.1: all of them cost, and what ends like a head costs as a call does."""

    def __init__(self) -> None:
        self._cost = 0

    def cost(self) -> int:
        """Return the cost of what has come since the last time."""
        cost, self._cost = self._cost, 0
        return cost

    def follow(self, data: bytes) -> None:
        """Follow further bytes."""
        self._cost += len(data) + CALL_COST * data.count(b"\n\r\n")


class Stream:
    """The bytes of a stream that follows a call: they are for a worker, not for the daemon."""

    def cost(self) -> int:
        """Return the cost of what has come since the last time: none."""
        return 0

    def follow(self, _data: bytes) -> None:
        """Follow further bytes."""
