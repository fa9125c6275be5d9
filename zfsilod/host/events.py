"""Waiting for the kernel: device events wake us up, and a deadline ends it."""

from __future__ import annotations

import select
import time
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

T = TypeVar("T")

NETLINK_KOBJECT_UEVENT = 15  # netlink(7)
KERNEL_EVENTS = 1  # sent by the kernel at once
UDEV_EVENTS = 2  # sent by udev when its rules have run: links and database are there then
HEARTBEAT_MS = 500  # some facts change without any event: the state of a session


def wait_for(find: Callable[[], T | None], timeout_s: float) -> T | None:
    """Return what `find` finds, as soon as it finds something; None when the time is up.

    What an event says does not matter, only that there was one: then `find` looks again.
    """
    if found := find():
        return found
    deadline = time.monotonic() + timeout_s
    with closing(_listen()) as events:
        poll = select.poll()
        poll.register(events, select.POLLIN)
        # Looked up again after listening began: what happened in between is not missed.
        while not (found := find()):
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0:
                return None
            if poll.poll(min(left_ms, HEARTBEAT_MS)):
                _drain(events)
    return found


def _listen() -> socket:
    import socket  # 5 ms that only waiting costs

    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    events = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
    events.bind((0, KERNEL_EVENTS | UDEV_EVENTS))
    return events


def _drain(events: socket) -> None:
    try:
        while events.recv(65536):
            pass
    except OSError:
        return  # empty; or (ENOBUFS) more came than fits, which is an event as well
