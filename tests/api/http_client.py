"""A client of HTTP for tests: one connection, requests as bytes, responses parsed by h11."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import h11

from tests.api.tls_client import context_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.security.join_file import Access

DEADLINE_S = 20


class Response:
    """The response to one request."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of an error."""
        return str(self.json["details"][0]["reason"])


class HttpClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.token = ""

    async def send(self, raw: bytes, verb: str = "GET") -> Response:
        """Send bytes, and return the response to them."""
        self.writer.write(raw)
        return await self.response(verb)

    async def response(self, verb: str = "GET") -> Response:
        """Return the next response; raise ConnectionError when there is none."""
        protocol = h11.Connection(h11.CLIENT)
        protocol.send(h11.Request(method=verb, target="/", headers=[("host", "x")]))
        protocol.send(h11.EndOfMessage())
        head, body = None, b""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event = protocol.next_event()
                if event is h11.NEED_DATA:
                    protocol.receive_data(await self.reader.read(65536))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert head is not None
                    headers = {k.decode(): v.decode() for k, v in head.headers}
                    return Response(head.status_code, headers, body)
                elif isinstance(event, h11.ConnectionClosed):
                    raise ConnectionError("closed without a response")

    async def ask(self, verb: str, target: str, content: Any = None, **headers: str) -> Response:
        """Make a request; `content` becomes the body in JSON."""
        return await self.send(self.request(verb, target, content, **headers), verb)

    def request(self, verb: str, target: str, content: Any = None, **headers: str) -> bytes:
        """Return the bytes of a request."""
        named = {"host": "zfsilo"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if self.token:
            named["authorization"] = f"Bearer {self.token}"
        body = b""
        if content is not None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            named = {"content-type": "application/json"} | named
            named["content-length"] = str(len(body))
        lines = [f"{verb} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in named.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def local(path: Path) -> AsyncIterator[HttpClient]:
    """Connect to a unix socket."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield HttpClient(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def remote(
    front: Front,
    access: Access | None = None,
    token: str = "",
    alpn: tuple[str, ...] = ("http/1.1",),
) -> AsyncIterator[HttpClient]:
    """Connect over TLS, with a certificate or a token."""
    context = context_of(access, alpn)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=context)
    client = HttpClient(reader, writer)
    client.token = token
    try:
        yield client
    finally:
        writer.transport.abort()
