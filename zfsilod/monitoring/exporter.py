"""Serves /metrics on zfsilod-metrics.socket, with the part of HTTP that Prometheus needs.

systemd listens: on a unix socket, unless the administrator configures a port. There is no other
path, and at most AT_ONCE clients are served at a time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SOCKET = "zfsilod-metrics.socket"  # systemd's name of the descriptors of that unit
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEADLINE_S = 10.0
HEAD_BYTES = 8192
AT_ONCE = 8

log = logging.getLogger(__name__)


class Scrape:
    """Answers scrapes on listening sockets with the result of `text`."""

    def __init__(self, text: Callable[[], Awaitable[bytes]]) -> None:
        self._text = text
        self._servers: list[asyncio.Server] = []
        self._clients = 0

    async def open(self, listener: socket.socket) -> None:
        """Answer on a further listener."""
        unix = listener.family == socket.AF_UNIX
        start: Any = asyncio.start_unix_server if unix else asyncio.start_server
        self._servers.append(await start(self._serve, sock=listener, limit=HEAD_BYTES))

    async def close(self) -> None:
        """Close the listeners."""
        for server in self._servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= AT_ONCE:
                async with asyncio.timeout(DEADLINE_S):
                    writer.write(await self._answer(reader))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            log.debug("scrape aborted: %s", error)
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET and HEAD only\n")
        if words[1].partition(b"?")[0] == b"/metrics":
            answer = _response("200 OK", await self._text())
        else:
            answer = _response("404 Not Found", b"/metrics\n")
        return answer if words[0] == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
