"""The first call of a connection: its token, and the answer when it is refused."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilod.gateway.opening import SETTINGS, Opening, frame
from zfsilod.gateway.refusal import refusal

if TYPE_CHECKING:
    from zfsilod.gateway.tls import TlsEnd
    from zfsilod.model.errors import Unauthenticated

BODY_S = 0.2  # for the request after its headers
FAREWELL_S = 0.5  # for a client to read the answer and close the connection


class FirstCall:
    """What the gateway reads of a client before the daemon does."""

    def __init__(self, end: TlsEnd) -> None:
        self.end = end
        self._opening: Opening | None = None  # None: nothing is read

    async def authorization(self) -> str:
        """Return the header with the token; "": there is none. Raises OSError."""
        headers = (await self._read()).headers or {}
        return headers.get(b"authorization", b"").decode(errors="replace")

    async def path(self) -> str:
        """Return the method of the first call. Raises OSError."""
        headers = (await self._read()).headers or {}
        return headers.get(b":path", b"").decode(errors="replace")

    async def refuse(self, error: Unauthenticated) -> None:
        """Answer the first call with an error, and wait until the client has read it."""
        opening = await self._read()
        if not opening.has_body:  # a client that is sending it takes an early answer for a failure
            with suppress(TimeoutError):
                async with asyncio.timeout(BODY_S):
                    await self.end.read()
        await self.end.write(refusal(opening.stream, error))
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while await self.end.read():
                    pass

    def data(self) -> bytes:
        """Return what has been read, for the daemon."""
        return bytes(self._opening.data) if self._opening else self.end.pending()

    async def _read(self) -> Opening:
        """Read the first call once. Raises OSError."""
        if self._opening is not None and self._opening.complete:
            return self._opening
        self._opening = Opening()
        await self.end.write(frame(SETTINGS))
        while not self._opening.complete:
            data = await self.end.read()
            if not data:
                raise ConnectionAbortedError("the peer ended the connection before its first call")
            self._opening.follow(data)
        return self._opening
