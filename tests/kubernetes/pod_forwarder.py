"""Makes the network of a pod, in which its ports are: a namespace with a loopback of its own.

pod_forwarder.py API_SERVER SERVICE PORT

The API server has its address there, and the port of a Service leads to a port of the pod. The
first line of output is "network N", for `nsenter --net=/proc/PID/fd/N`.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Connected = Callable[[], socket.socket]

LOOPBACK = "127.0.0.1"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET of unshare(2)
SET_FLAGS, UP = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP of netdevice(7)
CHUNK = 1 << 16


class Networks:
    """The network of the machine, and that of the pod; this process is in one of them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._outer = self._current()
        self._check(self._libc.unshare(NEW_NETWORK))
        self.inner = self._current()
        with socket.socket() as probe:
            fcntl.ioctl(probe, SET_FLAGS, struct.pack("16sh", b"lo", UP))

    def socket(self, *, of_pod: bool) -> socket.socket:
        """Return a socket of a network, in which it stays."""
        self._check(self._libc.setns(self.inner if of_pod else self._outer, NEW_NETWORK))
        created = socket.socket()
        created.setblocking(False)
        return created

    def _current(self) -> int:
        return os.open("/proc/self/ns/net", os.O_RDONLY)

    def _check(self, result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


async def forward(networks: Networks, port: int, target: int, *, of_pod: bool) -> None:
    """Connect a port of the pod with a port of one of the networks."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected = networks.socket(of_pod=of_pod)
        with suppress(OSError):  # each end learns of the other's by its connection
            await asyncio.get_running_loop().sock_connect(connected, (LOOPBACK, target))
            back, forth = await asyncio.open_connection(sock=connected)
            await asyncio.gather(copy(reader, forth), copy(back, writer))
        connected.close()
        writer.close()

    listener = networks.socket(of_pod=True)
    listener.bind((LOOPBACK, port))
    await asyncio.start_server(relay, sock=listener)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy a direction of a connection until its end."""
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(api_server: int, service: int, port: int) -> None:
    """Forward until a signal."""
    networks = Networks()
    await forward(networks, api_server, api_server, of_pod=False)
    await forward(networks, service, port, of_pod=True)
    print(f"network {networks.inner}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
