"""The answer to a call that the gateway refuses: the status of gRPC, in frames of HTTP/2."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote

from zfsilod.gateway.frames import HEADERS
from zfsilod.gateway.opening import END_HEADERS, END_STREAM, GOAWAY, frame

if TYPE_CHECKING:
    from zfsilod.model.errors import Unauthenticated

UNAUTHENTICATED = 16  # google.rpc.Code
DOMAIN = "zfsilo.org"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
MAX_MESSAGE_CHARACTERS = 1024


def refusal(stream: int, error: Unauthenticated) -> bytes:
    """Return the frames that end a call, and the connection after it."""
    message = error.message[:MAX_MESSAGE_CHARACTERS]
    details = base64.b64encode(_status(message, error.reason)).rstrip(b"=")
    block = b"".join(
        _header(name, value)
        for name, value in (
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % UNAUTHENTICATED),
            (b"grpc-message", quote(message, safe=" /:;,()").encode()),
            (b"grpc-status-details-bin", details),
        )
    )
    answer = frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
    return answer + frame(GOAWAY, content=stream.to_bytes(4) + bytes(4))


def _header(name: bytes, value: bytes) -> bytes:
    """Return a header as a literal of HPACK that is not indexed."""
    return b"\0" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def _integer(number: int, prefix: int) -> bytes:
    mask = (1 << prefix) - 1
    return bytes([number]) if number < mask else bytes([mask]) + _varint(number - mask)


def _status(message: str, reason: str) -> bytes:
    """Return google.rpc.Status with an ErrorInfo, as zfsilod sends it."""
    info = _field(1, reason.encode()) + _field(2, DOMAIN.encode())
    detail = _field(1, ERROR_INFO.encode()) + _field(2, info)
    return bytes([1 << 3, UNAUTHENTICATED]) + _field(2, message.encode()) + _field(3, detail)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
