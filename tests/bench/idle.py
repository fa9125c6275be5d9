"""An administrator's calls while a thousand connections idle and two hundred dawdle."""

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
# A client of HTTP/2 that says hello, and nothing more: grpc keeps it.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
DRIBBLE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)  # the start of a TLS hello
REQUEST = pb.GetVolumeRequest(name="volumes/data")


async def serve() -> None:
    """Serve, and say where, until stdin ends. One address may hold them all: the worst case."""
    with tempfile.TemporaryDirectory() as directory:
        limits = Limits(unix=2000, tcp=2000, per_peer=2000)
        async with front_of(Path(directory), limits=limits) as front:
            await front.root().volumes.CreateVolume(create())
            join = make_join(front.certified("admin", "ops"))
            print(json.dumps({"unix": str(front.path), "join": join}), flush=True)
            await asyncio.to_thread(sys.stdin.read)


class Crowd:
    """Connections that are of no use to anybody."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.set_alpn_protocols(["h2"])
        self.idle: list[asyncio.StreamWriter] = []
        self._slow: list[asyncio.Task[None]] = []

    async def gather(self) -> None:
        """Come together."""
        await asyncio.gather(*(self._idle() for _each in range(IDLE)))
        self._slow = [asyncio.create_task(self._dribble()) for _each in range(SLOW)]
        await asyncio.sleep(1)  # so that each has begun to dawdle

    async def disperse(self) -> None:
        """Go away."""
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
        """Send a byte a second; who is thrown out comes again."""
        while True:
            _reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            with suppress(ConnectionError):
                for byte in DRIBBLE:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            writer.transport.abort()


async def measure(where: dict[str, str]) -> dict[str, list[float]]:
    """Return how long an administrator's calls take in the crowd, in ms, sorted."""
    access = parse_join(where["join"])
    crowd = Crowd(int(access.address.rpartition(":")[2]))
    await crowd.gather()
    times = {}
    for name, channel in (
        ("unix", unix_channel_aio(Path(where["unix"]))),
        ("mutual TLS", tls_channel_aio(access)),
    ):
        api = Api(channel)
        times[name] = sorted([await _timed(api) for _each in range(CALLS)])
        await channel.close()
    alive = sum(not writer.is_closing() for writer in crowd.idle)
    await crowd.disperse()
    assert alive == IDLE, f"only {alive} of {IDLE} were idle to the end"
    return times


async def _timed(api: Any) -> float:
    begun = time.perf_counter()
    await api.volumes.GetVolume(REQUEST, timeout=30)
    return (time.perf_counter() - begun) * 1e3


async def run() -> dict[str, list[float]]:
    """Start a server of its own and measure."""
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
    """Hold it against what is promised."""
    for name, times in asyncio.run(run()).items():
        note = f" (p50 {times[CALLS // 2]:.1f} ms)"
        what = f"a call over {name} beside {IDLE} idle and {SLOW} slow connections, p99"
        yield at_most(what, times[CALLS * 99 // 100], P99_MS, " ms", note=note)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        for figure in figures():
            print(figure)
