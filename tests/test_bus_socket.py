"""The socket of a connection to the bus while it is full, and descriptors of messages that wait."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from zfsilod.systemd.bus import PatientSocket, close_when_sent


def test_descriptors_go_with_the_first_byte_when_the_socket_is_full() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(os.devnull).open("rb") as file:
        ours.setblocking(False)
        patient = PatientSocket(ours)
        filled = 0
        while sent := patient.send(memoryview(bytes(65536))):
            filled += sent
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fileno().to_bytes(4, "little"))]
        message = memoryview(b"message")
        assert patient.sendmsg([message], ancillary) == 0
        assert patient.send(message) == 0
        while filled:
            filled -= len(theirs.recv(min(filled, 65536)))
        assert patient.send(message) == len(message)
        data, descriptors, _flags, _address = socket.recv_fds(theirs, 100, 4)
        assert (data, len(descriptors)) == (b"message", 1)
        os.close(descriptors[0])
        assert patient.send(memoryview(b"next")) == 4
        data, descriptors, _flags, _address = socket.recv_fds(theirs, 100, 4)
        assert (data, descriptors) == (b"next", [])


@pytest.mark.parametrize("connected", [True, False])
async def test_descriptors_stay_open_while_their_message_waits(connected: bool) -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    writer = SimpleNamespace(messages=queue, schedule_write=lambda: None)
    read_end, write_end = os.pipe()
    close_when_sent(cast("Any", SimpleNamespace(connected=connected, _writer=writer)), [write_end])
    if connected:
        os.fstat(write_end)
        raw, descriptors, sent = queue.get_nowait()
        assert (raw, descriptors) == (b"", [])
        sent.set_result(None)
        await asyncio.sleep(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_end)
    os.close(read_end)
