"""What the guard sees of a request: the same as of a call of gRPC."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilod.api.http.codec import request_of
from zfsilod.api.http.refusals import check_body_type
from zfsilod.api.rpc.call import OPERATION_METADATA
from zfsilod.model.deadlines import LONGEST_S
from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from google.protobuf.message import Message

    from zfsilod.api.http.connection import HttpConnection
    from zfsilod.api.http.routes import Route

STREAM_PROTOCOL = "zfsilo-stream"
TIMEOUT_HEADER = "zfsilo-timeout"
LARGE_BYTES = 8192  # parsed in a thread: protobuf's parser of JSON is Python


class HttpCaller:
    """Who makes a request: a connection and its headers."""

    def __init__(self, connection: HttpConnection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._headers = headers

    def peer(self) -> str:
        """Return the name of the connection."""
        return self._connection.peer

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Return the headers."""
        return list(self._headers.items())

    def time_remaining(self) -> float | None:
        """Return the time until the deadline; None: it has none."""
        return None


class HttpContext(HttpCaller):
    """One request to a method, and its deadline."""

    def __init__(
        self,
        connection: HttpConnection,
        headers: Mapping[str, str],
        route: Route,
        target: tuple[str, str],
        started: Callable[[str], Awaitable[None]],
    ) -> None:
        """`target`: path and query; `started` gets the name of the operation at once."""
        super().__init__(connection, headers)
        self.operation = ""
        self.timeout_s = timeout_in(headers)
        self._route = route
        self._target = target
        self._started = started
        self._begun = time.monotonic()

    def time_remaining(self) -> float | None:
        """Return the time until the deadline; None: it has none."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (time.monotonic() - self._begun))

    @property
    def hand_over(self) -> Callable[[], Awaitable[int]] | None:
        """What hands the connection over for a stream; None: the client has not asked for that."""
        if self._headers.get("upgrade", "").lower() != STREAM_PROTOCOL:
            return None
        return partial(self._connection.hand_over, STREAM_PROTOCOL)

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        """Take the name of the operation."""
        self.operation = dict(metadata)[OPERATION_METADATA]
        await self._started(self.operation)

    async def read(self) -> Message:
        """Return the request. Raises ZfsiloError."""
        body = await self._connection.body()
        if body:
            check_body_type(self._headers)
        parts: tuple[Any, ...] = (self._route, *self._target, body)
        if len(body) + len(self._target[1]) > LARGE_BYTES:
            return await asyncio.to_thread(request_of, *parts)
        return request_of(*parts)


def timeout_in(headers: Mapping[str, str]) -> float | None:
    """Return the deadline of a request in seconds; None: it has none. Raises InvalidArgument."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        raise InvalidArgument(
            f"invalid {TIMEOUT_HEADER} {text[:40]!r}: expected seconds, more than 0 and at most "
            f"{LONGEST_S:g}",
            reason="BAD_TIMEOUT",
        )
    return seconds
