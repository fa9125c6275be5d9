"""Waits for a change on the host: woken by device events, up to a deadline."""

from __future__ import annotations

import select
import time

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import TypeVar

    T = TypeVar("T")

NETLINK_KOBJECT_UEVENT = 15  # netlink(7)
KERNEL_EVENTS = 1  # multicast group: the kernel sends the event at once
UDEV_EVENTS = 2  # multicast group: udev sends it when its rules have run and its links exist
HEARTBEAT_MS = 500  # for changes that send no event, such as the state of a session


def wait_for(find: Callable[[], T | None], timeout_s: float) -> T | None:
    """Call `find` until its result is true, and return that result; None after `timeout_s`.

    `find` is called at once, after each uevent of kernel or udev, and every 500 ms. The content of
    an event is not read.
    """
    if result := find():
        return result
    deadline = time.monotonic() + timeout_s
    events = uevents(KERNEL_EVENTS | UDEV_EVENTS)
    try:
        poll = select.poll()
        poll.register(events, select.POLLIN)
        # The first call after listening started covers a change before it.
        while not (result := find()):
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                return None
            if poll.poll(min(left_ms, HEARTBEAT_MS)):
                drain(events)
    finally:
        events.close()
    return result


def uevents(groups: int) -> socket:
    """Return a socket with the uevents of multicast groups. Raises OSError."""
    from zfsilod.model.lean import socket

    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    events = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, groups))
    except OSError:
        events.close()
        raise
    return events


def drain(events: socket) -> None:
    """Read and drop all events that a socket has."""
    try:
        while events.recv(65536):
            pass
    except OSError:
        return  # EAGAIN: empty; ENOBUFS: events were lost, which is an event as well
