"""The first call of a connection: its protocol, its token, and the answer when it is refused."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilod.gateway.opening import SETTINGS, Opening, first_bytes, frame, is_http
from zfsilod.gateway.refusal import refusal

if TYPE_CHECKING:
    from zfsilod.gateway.http_opening import HttpOpening
    from zfsilod.gateway.tls import TlsEnd
    from zfsilod.model.errors import Unauthenticated

BODY_S = 0.2  # for the request after its headers
FAREWELL_S = 0.5  # for a client to read the answer and close the connection


class FirstCall:
    """What the gateway reads of a client before the daemon does."""

    def __init__(self, end: TlsEnd) -> None:
        self.end = end
        self.http = False
        self._first = b""  # bytes that were read to learn the protocol
        self._opening: Opening | HttpOpening | None = None  # None: nothing more is read

    async def learn_protocol(self) -> None:
        """Tell HTTP/1.1 from gRPC: by ALPN, else by the first bytes. Raises OSError."""
        if self.end.application is None:
            self._first = await first_bytes(self.end.read)
            self.http = is_http(self._first)
        else:
            self.http = self.end.application == "http/1.1"
        if self.http:
            self.end.expect_http()

    async def authorization(self) -> str:
        """Return the header with the token; "": there is none. Raises OSError."""
        headers = (await self._read()).headers or {}
        return headers.get(b"authorization", b"").decode(errors="replace")

    async def path(self) -> str:
        """Return the method of the first call; of HTTP verb and target. Raises OSError."""
        headers = (await self._read()).headers or {}
        return headers.get(b":path", b"").decode(errors="replace")

    async def refuse(self, error: Unauthenticated) -> None:
        """Answer the first call with an error, and wait until the client has read it."""
        opening = await self._read()
        if not opening.has_body:  # a client that is sending it takes an early answer for a failure
            with suppress(TimeoutError):
                async with asyncio.timeout(BODY_S):
                    await self.end.read()
        if isinstance(opening, Opening):
            await self.end.write(refusal(opening.stream, error))
        else:
            await self.end.write(opening.refusal(error))
            self.end.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while await self.end.read():
                    pass

    def data(self) -> bytes:
        """Return what has been read, for the daemon."""
        return bytes(self._opening.data) if self._opening else self._first + self.end.pending()

    async def _read(self) -> Opening | HttpOpening:
        """Read the first call once. Raises OSError."""
        if self._opening is not None and self._opening.complete:
            return self._opening
        if self.http:
            from zfsilod.gateway.http_opening import HttpOpening  # h11 for those who need it

            self._opening = HttpOpening()
        else:
            self._opening = Opening()
            await self.end.write(frame(SETTINGS))
        if self._first:
            self._opening.follow(self._first)
        while not self._opening.complete:
            data = await self.end.read()
            if not data:
                raise ConnectionAbortedError("the peer ended the connection before its first call")
            self._opening.follow(data)
        return self._opening
