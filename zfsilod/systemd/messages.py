"""Messages of a D-Bus connection, bounded and judged by their headers before a body is unpacked.

Any local user may send to any connection of the system bus, and dbus-next unpacks whatever comes:
31 MB in one message, or a signal to this connection alone. Here only the header is read, with a
limit; the body of a method call is unpacked when its caller has been authorized, and of other
messages only when this connection has asked for them. The format: "Message Protocol" of the D-Bus
specification.
"""

from __future__ import annotations

import asyncio
import io
import logging
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from dbus_next import DBusError, ErrorType, MessageFlag, MessageType
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.signature import SignatureTree

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbus_next import Message
    from dbus_next.aio import MessageBus

MAX_HEADER_BYTES = 4096  # of the header fields: a path with the longest id has 500 bytes
MAX_BODY_BYTES = 64 << 10  # of calls and signals
MAX_MESSAGE_BYTES = 128 << 20  # of the protocol; replies to own calls may be as large
RECEIVED_AT_ONCE = 256 << 10
TURN_S = 0.0005  # until other work of the event loop has its turn: a local call needs ten
PAUSE_S = 0.001  # after a whole turn: a flood on the bus has a third of the event loop
MAX_SIGNATURES = 1024  # that dbus-next keeps parsed, else for ever
BUS = "org.freedesktop.DBus"

FIXED = 16  # bytes before the header fields
CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 5, 6, 7, 8

MALFORMED = (ValueError, TypeError, LookupError, EOFError, RecursionError, struct.error)
"""What dbus-next raises for a message that cannot be unpacked."""

log = logging.getLogger(__name__)


class Header(NamedTuple):
    """The header of a message, and the lengths that it states."""

    kind: int
    flags: int
    serial: int
    body_bytes: int
    total_bytes: int
    fields: dict[int, Any]


class IncomingCall:
    """A method call; its body is unpacked at the first access."""

    message_type = MessageType.METHOD_CALL

    def __init__(self, header: Header, raw: bytes | None) -> None:
        """`raw`: the message; None: it was too large and is gone."""
        fields = header.fields
        self.sender: str = fields.get(SENDER, "")
        self.path: str = fields.get(PATH, "")
        self.interface: str | None = fields.get(INTERFACE)
        self.member: str = fields.get(MEMBER, "")
        self.signature: str = fields.get(SIGNATURE, "")
        self.flags = MessageFlag(header.flags & 7)  # others are for later versions
        self.serial = header.serial
        self.is_too_large = raw is None
        self.uid = -1  # of the sender; the bus has to be asked for it
        self._raw = raw or b""
        self._body: list[Any] | None = None

    @property
    def wants_reply(self) -> bool:
        """Whether its caller waits for a reply."""
        return not self.flags & MessageFlag.NO_REPLY_EXPECTED

    @property
    def body(self) -> list[Any]:
        """The arguments. Raises DBusError when they are malformed."""
        if self._body is None:
            message = unpack(self._raw)
            if message is None:
                raise DBusError(ErrorType.INVALID_ARGS, f"malformed arguments of {self.member}")
            self._body = list(message.body)
        return self._body


class MessageReader:
    """Reads the messages of one connection, in place of the reader of dbus-next."""

    def __init__(self, bus: MessageBus) -> None:
        self.on_call: Callable[[IncomingCall], None] | None = None
        self.on_reply: dict[int, Callable[[Header, bytes], None]] = {}  # by the serial of a call
        self.on_name_lost: Callable[[str], None] | None = None
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._missing = FIXED  # bytes of the next message, as far as its length is known
        self._skipped = 0  # bytes of a message that is not wanted, still to come
        self._pauses = False

    def read(self) -> None:
        """Read and dispatch messages for TURN_S; the event loop calls it when there are more."""
        if self._pauses:
            return
        until = time.monotonic() + TURN_S
        try:
            while time.monotonic() < until:
                if not self._next_message() and not self._receive():
                    return
        except (OSError, EOFError) as error:
            self._bus._finalize(error)
            return
        self._pauses = True
        self._loop.remove_reader(self._bus._fd)
        self._loop.call_later(PAUSE_S, self._continue)

    def _continue(self) -> None:
        self._pauses = False
        if not self._bus._disconnected:
            self._loop.add_reader(self._bus._fd, self.read)
            self.read()

    def _receive(self) -> bool:
        """Receive more bytes; False: there are none now."""
        wanted = max(FIXED, self._skipped, self._missing - len(self._buffer))
        try:
            chunk = self._bus._sock.recv(min(max(wanted, 4096), RECEIVED_AT_ONCE))
        except BlockingIOError:
            return False
        if not chunk:
            raise EOFError("the bus closed the connection")
        skipped = min(self._skipped, len(chunk))
        self._skipped -= skipped
        self._buffer += chunk[skipped:] if skipped else chunk
        return True

    def _next_message(self) -> bool:
        """Dispatch the first message of the buffer; False: it is not complete."""
        buffer = self._buffer
        if self._skipped or len(buffer) < self._missing or len(buffer) < FIXED:
            return False
        head = head_bytes(buffer)
        if head > FIXED + MAX_HEADER_BYTES:
            self._drop(total_bytes(buffer))
            return True
        self._missing = head
        if len(buffer) < head:
            return False
        header = parse_header(buffer, head)
        if header is None or not self._wanted(header):
            self._drop(total_bytes(buffer))
        elif header.kind == CALL and header.body_bytes > MAX_BODY_BYTES:
            self._drop(header.total_bytes)
            self._dispatch(header, None)
        else:
            self._missing = header.total_bytes
            if len(buffer) < header.total_bytes:
                return False
            raw = bytes(buffer[: header.total_bytes])
            self._drop(header.total_bytes)
            self._dispatch(header, raw)
        return True

    def _drop(self, count: int) -> None:
        """Remove a message from the buffer, and skip what has not come yet."""
        self._skipped = max(0, count - len(self._buffer))
        del self._buffer[:count]
        self._missing = FIXED

    def _wanted(self, header: Header) -> bool:
        """Tell whether this connection takes a message, by its header alone."""
        if header.kind == CALL:
            return self.on_call is not None and SENDER in header.fields
        if header.kind in (RETURN, ERROR):
            serial = header.fields.get(REPLY_SERIAL)
            return serial in self.on_reply or serial in self._bus._method_return_handlers
        if header.kind != SIGNAL or header.body_bytes > MAX_BODY_BYTES:
            return False
        # Match rules bind the sender of a broadcast. Anybody may send to one connection.
        return header.fields.get(SENDER) == BUS or DESTINATION not in header.fields

    def _dispatch(self, header: Header, raw: bytes | None) -> None:
        if header.kind == CALL:
            assert self.on_call is not None, "unwanted calls are dropped"
            self.on_call(IncomingCall(header, raw))
            return
        own = self.on_reply.pop(header.fields.get(REPLY_SERIAL, 0), None)
        if own is not None:
            own(header, raw or b"")
            return
        if self.on_name_lost is not None and _is_name_lost(header):
            self.on_name_lost(_first_string(raw or b""))
            return
        message = unpack(raw or b"")
        if message is not None:
            self._bus._on_message(message)
        else:
            log.warning("dropped a malformed message from %s", header.fields.get(SENDER))


def _is_name_lost(header: Header) -> bool:
    """Tell whether a signal says that a connection has ended: the match rule selects these."""
    fields = header.fields
    return fields.get(SENDER) == BUS and fields.get(MEMBER) == "NameOwnerChanged"


def _first_string(raw: bytes) -> str:
    """Return the first argument of a message that the bus has made, which is a string."""
    start = head_bytes(raw)
    (size,) = struct.unpack_from(byte_order(raw) + "I", raw, start)
    return raw[start + 4 : start + 4 + size].decode()


def unpack(raw: bytes) -> Message | None:
    """Return a whole message unpacked, or None when it is malformed."""
    if parsed_signatures() > MAX_SIGNATURES:
        SignatureTree._cache.clear()
    try:
        return Unmarshaller(io.BytesIO(raw)).unmarshall()
    except MALFORMED:
        return None


def parsed_signatures() -> int:
    """Return the number of signatures that dbus-next keeps parsed."""
    return len(SignatureTree._cache)


def head_bytes(buffer: bytes | bytearray) -> int:
    """Return the length of the header with its padding."""
    (fields_bytes,) = struct.unpack_from(byte_order(buffer) + "I", buffer, 12)
    return FIXED + (int(fields_bytes) + 7 & ~7)


def total_bytes(buffer: bytearray) -> int:
    """Return the length of a message. Raises EOFError for one that the protocol does not allow."""
    (body_bytes,) = struct.unpack_from(byte_order(buffer) + "I", buffer, 4)
    total = head_bytes(buffer) + int(body_bytes)
    if total > MAX_MESSAGE_BYTES:
        raise EOFError(f"the bus sent a message of {total} bytes")
    return total


def byte_order(buffer: bytes | bytearray) -> str:
    """Return the byte order of a message, as struct has it."""
    if buffer[0] not in b"lB":
        raise EOFError("the bus sent a message without a byte order")
    return "<" if buffer[0] == ord("l") else ">"


def parse_header(buffer: bytearray, head: int) -> Header | None:
    """Return the header at the start of a buffer, or None when it is malformed."""
    order = byte_order(buffer)
    body_bytes, serial, fields_bytes = struct.unpack_from(order + "III", buffer, 4)
    raw = bytes(buffer[:head])
    try:
        fields = dict(_fields(raw, FIXED + fields_bytes, order))
    except MALFORMED:
        return None
    return Header(raw[1], raw[2], serial, body_bytes, total_bytes(buffer), fields)


def _fields(raw: bytes, end: int, order: str) -> list[tuple[int, Any]]:
    """Return the header fields, an array of (byte, variant of one of four simple types)."""
    fields: list[tuple[int, Any]] = []
    at = FIXED
    while at < end:
        code, kind = raw[at], raw[at + 1 : at + 4]
        at += 4  # the code, and a signature of one character
        if kind == b"\x01u\x00":
            fields.append((code, struct.unpack_from(order + "I", raw, at)[0]))
            at += 4
        elif kind == b"\x01g\x00":
            fields.append((code, raw[at + 1 : at + 1 + raw[at]].decode()))
            at += raw[at] + 2
        elif kind in (b"\x01s\x00", b"\x01o\x00"):
            (size,) = struct.unpack_from(order + "I", raw, at)
            fields.append((code, raw[at + 4 : at + 4 + size].decode()))
            at += size + 5
        else:
            raise ValueError("a header field of an unknown type")
        at = at + 7 & ~7
    return fields
