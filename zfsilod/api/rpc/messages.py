"""Messages of calls as they arrive: parsed, in time, and named for the audit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from zfsilod.model.errors import DeadlineExceeded, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

FIRST_MESSAGE_S = 10.0  # from the headers of a call to its request
# The fields that name the subject of a request, in this order, and what an id in them is of.
SUBJECTS = {
    "name": "",
    "local_name": "volumes",
    "volume_id": "volumes",
    "host_id": "hosts",
    "volume": "volumes",
}
MALFORMED = object()  # in place of a request that cannot be parsed


def parser_of(kind: Any) -> Callable[[bytes], Any]:
    """Return a parser; the guard refuses what it cannot parse, where grpc would send INTERNAL."""

    def parse(raw: bytes) -> Any:
        try:
            return kind.FromString(raw)
        except DecodeError:
            return MALFORMED

    return parse


def parsed(message: Any) -> Any:
    """Return a message, unless it is malformed. Raises InvalidArgument."""
    if message is MALFORMED:
        raise InvalidArgument("malformed request message", reason="MALFORMED")
    return message


async def stream_of(messages: Any) -> AsyncGenerator[Any, None]:
    """Yield the messages of a stream, each checked."""
    async for message in messages:
        yield parsed(message)


async def first_of(context: Any) -> Any:
    """Return the request of a call. Raises InvalidArgument and DeadlineExceeded."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            message = await context.read()
    except TimeoutError:
        raise DeadlineExceeded(
            f"no request message within {FIRST_MESSAGE_S:g} s of the headers of the call"
        ) from None
    if message is grpc.aio.EOF:
        raise InvalidArgument("the call has no request message", reason="MALFORMED")
    return message


def subject_of(message: Any) -> str:
    """Return the name of the resource that a request names; a field with an id gets its prefix."""
    for field, collection in SUBJECTS.items():
        value = getattr(message, field, "")
        if isinstance(value, str) and value:
            return value if "/" in value or not collection else f"{collection}/{value}"
    return ""
