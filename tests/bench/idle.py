"""Latency of an administrator's calls beside 1,000 idle connections and 200 slow handshakes."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import create, front_of
from tests.bench.table import Figure, at_most
from tests.channel import unix_channel_aio
from zfsilod.gateway.limits import Limits
from zfsilod.security.join_file import make_join, parse_join
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE, SLOW = 1000, 200
CALLS = 500  # of each kind
P99_MS = 100
AT_ONCE = 50  # handshakes
# The preface of HTTP/2 and nothing more: grpc keeps such a connection.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
DRIBBLE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)  # the start of a TLS hello
REQUEST = pb.GetVolumeRequest(name="volumes/data")


async def serve() -> None:
    """Serve, print the addresses, and wait for the end of stdin; no limit for an address."""
    with tempfile.TemporaryDirectory() as directory:
        limits = Limits(unix=2000, tcp=2000, per_peer=2000)
        async with front_of(Path(directory), limits=limits) as front:
            await front.root().volumes.CreateVolume(create())
            join = make_join(front.certified("admin", "ops"))
            print(json.dumps({"unix": str(front.path), "join": join}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


class IdleConnections:
    """Connections that make no calls, and handshakes of a byte a second."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2"])
        self.idle: list[asyncio.StreamWriter] = []
        self._slow: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Open all connections."""
        await asyncio.gather(*(self._idle() for _connection in range(IDLE)))
        self._slow = [asyncio.create_task(self._dribble()) for _connection in range(SLOW)]
        await asyncio.sleep(1)  # until each has sent its first byte

    async def close(self) -> None:
        """Close all connections."""
        for task in self._slow:
            task.cancel()
        await asyncio.gather(*self._slow, return_exceptions=True)
        for writer in self.idle:
            writer.transport.abort()

    async def _idle(self) -> None:
        async with self._gate:
            _reader, writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context
            )
        writer.write(HELLO)
        self.idle.append(writer)

    async def _dribble(self) -> None:
        """Send a byte a second; connect again when the gateway closes the connection."""
        while True:
            _reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            with suppress(ConnectionError):
                for byte in DRIBBLE:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            writer.transport.abort()


async def measure(where: dict[str, str]) -> dict[str, list[float]]:
    """Return the times of an administrator's calls beside the connections, in ms, sorted."""
    access = parse_join(where["join"])
    connections = IdleConnections(int(access.address.rpartition(":")[2]))
    await connections.open()
    times = {}
    for name, channel in (
        ("unix", unix_channel_aio(Path(where["unix"]))),
        ("mutual TLS", tls_channel_aio(access)),
    ):
        api = Api(channel)
        times[name] = sorted([await _timed(api) for _call in range(CALLS)])
        await channel.close()
    alive = sum(not writer.is_closing() for writer in connections.idle)
    await connections.close()
    assert alive == IDLE, f"only {alive} of {IDLE} idle connections stayed open"
    return times


async def _timed(api: Any) -> float:
    start = time.perf_counter()
    await api.volumes.GetVolume(REQUEST, timeout=30)
    return (time.perf_counter() - start) * 1e3


async def run() -> dict[str, list[float]]:
    """Start a server in another process, and measure."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((*sys.path, "proto"))}
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.idle",
        "serve",
        env=environment,
        limit=1 << 20,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        return await measure(json.loads(await server.stdout.readline()))
    finally:
        server.stdin.close()
        await server.wait()


def figures() -> Iterator[Figure]:
    """Measure, and compare with the target."""
    for name, times in asyncio.run(run()).items():
        note = f" (p50 {times[CALLS // 2]:.1f} ms)"
        figure_name = f"a call over {name} beside {IDLE} idle and {SLOW} slow connections, p99"
        yield at_most(figure_name, times[CALLS * 99 // 100], P99_MS, " ms", note=note)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        for figure in figures():
            print(figure)
