"""A connection to the bus: its beginning, its end, and what dbus-next gets wrong in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dbus_next import AuthError, BusType, DBusError
from dbus_next.aio import MessageBus

from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from socket import socket

CONNECT_DEADLINE_S = 10


async def connect(bus_address: str | None) -> MessageBus:
    """Connect to a bus (None: the system bus). Raises Unavailable."""
    where = bus_address or "the system bus"
    try:
        bus = MessageBus(bus_address=bus_address, bus_type=BusType.SYSTEM)
    except (OSError, ValueError) as error:
        raise Unavailable(f"{where} cannot be reached: {error}; does dbus run?") from error
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            await bus.connect()
    except (OSError, EOFError, AuthError, DBusError) as error:
        close_socket(bus)
        raise Unavailable(f"{where} does not let us in: {error!r}") from error
    wait_while_full(bus)
    return bus


def wait_while_full(bus: MessageBus) -> None:
    """Keep a connection open when its socket is full: dbus-next would close it."""
    bus._writer.sock = PatientSocket(bus._sock)


class PatientSocket:
    """Sends nothing while the socket is full.

    The library (0.2.3) would take that for the end of the connection; told of 0 bytes, it waits.
    """

    def __init__(self, sock: socket) -> None:
        self._socket = sock

    def send(self, data: memoryview) -> int:
        """Send what fits, and return how much did."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0


def close_socket(bus: MessageBus) -> None:
    """Close what the library leaves open when a connection has ended."""
    bus._stream.close()
    bus._sock.close()
