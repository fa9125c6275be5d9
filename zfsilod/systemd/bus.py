"""Connections to the bus, with corrections of dbus-next 0.2.3."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from dbus_next import AuthError, BusType, DBusError, Variant
from dbus_next.aio import MessageBus

from zfsilod.model.errors import InvalidArgument, Unavailable
from zfsilod.systemd.messages import MessageReader

if TYPE_CHECKING:
    from socket import socket

CONNECT_DEADLINE_S = 10
MAX_TEXT = 128 << 10  # MAX_ARG_STRLEN of Linux, with the NUL: execve(2)


async def connect(bus_address: str | None, *, descriptors: bool = False) -> MessageBus:
    """Connect to a bus (None: the system bus). Raises Unavailable.

    `descriptors`: messages may carry some; those that come are dropped.
    """
    where = bus_address or "the system bus"
    try:
        bus = MessageBus(
            bus_address=bus_address, bus_type=BusType.SYSTEM, negotiate_unix_fd=descriptors
        )
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot reach {where}: {error}; is dbus running?") from error
    bus._message_reader = MessageReader(bus).read  # before the first message
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            await bus.connect()
    except (OSError, EOFError, AuthError, DBusError) as error:
        close_socket(bus)
        raise Unavailable(f"{where} refused the connection: {error!r}") from error
    wait_while_full(bus)
    return bus


def reader(bus: MessageBus) -> MessageReader:
    """Return the reader of a connection that `connect` made."""
    own: MessageReader = bus._message_reader.__self__
    return own


def send_raw(bus: MessageBus, raw: bytes) -> None:
    """Send a message that is marshalled."""
    bus._writer.messages.put_nowait((raw, [], None))
    bus._writer.schedule_write()


def check_texts(value: Any) -> None:
    """Raise InvalidArgument for a text that a message, or an argument of a process, cannot have.

    dbus-daemon ends the connection of the sender of a NUL, and execve(2) takes 128 KiB a word.
    """
    match value:
        case str():
            if "\0" in value or not _is_sendable(value):
                raise InvalidArgument(
                    f"the text {value[:40]!r} cannot be sent to systemd", reason="MALFORMED"
                )
        case list() | tuple():
            for one in value:
                check_texts(one)
        case Variant():
            check_texts(value.value)


def _is_sendable(text: str) -> bool:
    try:
        return len(text.encode()) < MAX_TEXT
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def wait_while_full(bus: MessageBus) -> None:
    """Keep a connection open when its socket is full: dbus-next would close it."""
    bus._writer.sock = PatientSocket(bus._sock)


class PatientSocket:
    """A socket that sends 0 bytes while it is full.

    dbus-next takes the BlockingIOError of a full socket for the end of the connection. Of a message
    with descriptors it forgets these after the first try, so they are kept here.
    """

    def __init__(self, sock: socket) -> None:
        self._socket = sock
        self._ancillary: list[Any] = []  # of the message whose first byte was not sent

    def send(self, data: memoryview) -> int:
        """Send as much as fits, and return the number of bytes."""
        try:
            if not self._ancillary:
                return self._socket.send(data)
            sent = self._socket.sendmsg([data], self._ancillary)
        except BlockingIOError:
            return 0
        self._ancillary = []
        return sent

    def sendmsg(self, parts: list[memoryview], ancillary: list[Any]) -> int:
        """Send as much as fits, with descriptors."""
        try:
            return self._socket.sendmsg(parts, ancillary)
        except BlockingIOError:
            self._ancillary = ancillary
            return 0


def close_when_sent(bus: MessageBus, descriptors: list[int]) -> None:
    """Close descriptors when no message waits that has them: a call may end before it is sent."""

    def close(_sent: object = None) -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    if not bus.connected:
        close()
        return
    sent = asyncio.get_running_loop().create_future()
    sent.add_done_callback(close)
    bus._writer.messages.put_nowait((b"", [], sent))  # no bytes: it follows the others only
    bus._writer.schedule_write()


def close_socket(bus: MessageBus) -> None:
    """Close the socket of a bus, which dbus-next leaves open."""
    bus._stream.close()
    bus._sock.close()
