"""The first request of a connection of HTTP/1.1 without a certificate, up to its body.

The gateway reads it to find the token, and gives it to the daemon unchanged when the token is
valid.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

from zfsilod.gateway.opening import MAX_BLOCK_BYTES, joined
from zfsilod.gateway.refusal import DOMAIN, ERROR_INFO, MAX_MESSAGE_CHARACTERS, UNAUTHENTICATED

if TYPE_CHECKING:
    from zfsilod.model.errors import Unauthenticated

MAX_BYTES = 64 << 10  # the head and what came with it


class HttpOpening:
    """What a client has sent so far."""

    def __init__(self) -> None:
        self.data = bytearray()  # for the daemon
        self.headers: dict[bytes, bytes] | None = None
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_BLOCK_BYTES)

    @property
    def has_body(self) -> bool:
        """Tell whether nothing more of the request has to be awaited before it is refused."""
        try:
            return self._protocol.next_event() is not h11.NEED_DATA
        except h11.RemoteProtocolError:  # of the body, which is not read
            return True

    @property
    def complete(self) -> bool:
        """Tell whether the rest of the connection may go to the daemon as it is."""
        return self.headers is not None

    def follow(self, data: bytes) -> None:
        """Follow further bytes. Raises ConnectionAbortedError for what is not HTTP."""
        self.data += data
        if len(self.data) > MAX_BYTES:
            raise ConnectionAbortedError("too much data before the first request")
        try:
            self._protocol.receive_data(data)
            request = self._protocol.next_event()
        except h11.RemoteProtocolError as error:
            raise ConnectionAbortedError(f"not HTTP: {error}") from None
        if isinstance(request, h11.Request):
            path = request.method + b" " + request.target
            self.headers = {b":path": path} | joined(request.headers)

    def refusal(self, error: Unauthenticated) -> bytes:
        """Return the response that ends the connection: google.rpc.Status as JSON."""
        info = {"@type": ERROR_INFO, "reason": error.reason, "domain": DOMAIN, "metadata": {}}
        message = error.message[:MAX_MESSAGE_CHARACTERS]
        content = {"code": UNAUTHENTICATED, "message": message, "details": [info]}
        body = json.dumps(content).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("www-authenticate", "Bearer"),
            ("connection", "close"),
        ]
        code = HTTPStatus.UNAUTHORIZED
        head = self._protocol.send(h11.Response(status_code=code, headers=headers))
        sent = self._protocol.send(h11.Data(data=body)) or b""
        return (head or b"") + sent + (self._protocol.send(h11.EndOfMessage()) or b"")
