"""Latency of gRPC: `python -m tests.bench.gateway [ROUNDS]`; the server is another process.

GetVolume through the gateway beside an echo of the same size: a bare one of grpc over TCP, and one
behind the same relay, plain (unix socket) and with TLS. The ratios count; they are taken within
each round, since the machine has other work too.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import grpc
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import GIB, Front, front_of, made, write_pki
from tests.bench.table import Figure, at_most
from tests.channel import unix_channel_aio
from zfsilod.gateway.connections import Connections
from zfsilod.gateway.sockets import listen_tcp, listen_unix
from zfsilod.model.records import Volume
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.security.join_file import make_join, parse_join
from zfsilod.security.tls import TlsFiles
from zfsilod.wire.channel import tls_channel_aio
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ECHO = "/bench.Echo/Echo"
CALLS = 200  # of a kind in a round
VOLUMES = 100_000
PAGE = 100
DATA = "volumes/data"
GET = "GetVolume, gateway unix"
TO_BARE, TO_BARE_TLS, TO_RELAY, PAGE_TO_GET = 1.6, 1.4, 1.2, 10

Times = dict[str, list[list[float]]]


async def serve() -> None:
    """Serve zfsilod and the echoes, print their addresses, and wait for the end of stdin."""
    with tempfile.TemporaryDirectory() as directory:
        async with AsyncExitStack() as stack:
            front = await stack.enter_async_context(front_of(Path(directory), store_bytes=1 << 30))
            await fill(front)
            where = await echoes(front, stack)
            where |= {
                "unix": str(front.path),
                "tcp": front.address,
                "join": make_join(front.certified("admin", "x")),
            }
            print(json.dumps(where), flush=True)
            await asyncio.to_thread(sys.stdin.read)


async def fill(front: Front) -> None:
    """Make a published volume, and many records of others."""
    await front.fixture.do(
        CreateVolume(id="data", capacity_bytes=GIB, labels=(("app", "db"),), hosts=("take",)),
        Publish(volume="data", host="take"),
    )

    def put(txn: Any) -> None:
        volume = txn.get(Volume, "data")
        for number in range(VOLUMES):
            name = f"v{number:06}"
            txn.put(volume.but(id=name, uid=f"{number:032x}", dataset=f"tank/zfsilo/{name}"))

    front.write(put)


async def echoes(front: Front, stack: AsyncExitStack) -> dict[str, str]:
    """Serve the echo bare and behind a relay of its own, plain and with TLS."""
    pair, authority = (made("give").key_pem, made("give").certificate_pem), made("ca")
    mutual = grpc.ssl_server_credentials(
        [pair], root_certificates=authority.certificate_pem, require_client_auth=True
    )
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    own = TlsFiles(directory / "tls")
    write_pki(own.files)
    gateway = Connections(directory / "private", None, own)
    gateway.admission.check = lambda _peer, _digest: None  # as zfsilod does for a valid certificate
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
    )
    plain = server.add_insecure_port("127.0.0.1:0")
    tls = server.add_secure_port("127.0.0.1:0", mutual)
    server.add_insecure_port(f"unix:{gateway.backend.socket_of('tcp')}")
    server.add_insecure_port(f"unix:{gateway.backend.socket_of('unix')}")
    await server.start()
    stack.push_async_callback(server.stop, 0.1)
    stack.callback(gateway.close)
    gateway.listen(listen_unix(directory / "echo.sock"))
    relayed = listen_tcp("127.0.0.1", 0)
    gateway.listen(relayed)
    return {
        "bare": f"127.0.0.1:{plain}",
        "bare_tls": f"127.0.0.1:{tls}",
        "relay": str(directory / "echo.sock"),
        "relay_tls": f"127.0.0.1:{relayed.getsockname()[1]}",
    }


async def echo(request: bytes, _context: Any) -> bytes:
    """Return the request."""
    return request


async def measure(where: dict[str, str], rounds: int) -> Times:
    """Return the times of all calls, sorted within each round."""
    calls, channels = await prepare(where)
    times: Times = {name: [] for name in calls}
    for _round in range(rounds):
        for name, call in calls.items():
            times[name].append(sorted([await timed(call) for _call in range(CALLS)]))
    for channel in channels:
        await channel.close()
    return times


def figures(rounds: int = 3) -> Iterator[Figure]:
    """Measure in other processes, and compare with the targets."""
    measured = asyncio.run(compare(rounds))
    unix, bare, relay = (measured[name] for name in (GET, "echo, bare tcp", "echo, relay unix"))
    note = " ({:.2f} to {:.2f} ms".format(*(of(times, 50) for times in (unix, bare)))
    note += "; p99 {:.2f} to {:.2f} ms)".format(*(of(times, 99) for times in (unix, bare)))
    yield at_most("GetVolume to a bare echo, p50", ratio(unix, bare), TO_BARE, " times", note=note)
    name = "GetVolume to an echo behind the relay, p50"
    yield at_most(name, ratio(unix, relay), TO_RELAY, " times")
    tls = ratio(measured[GET.replace("unix", "TLS")], measured["echo, bare tcp TLS"])
    yield at_most("GetVolume to a bare echo, both mutual TLS", tls, TO_BARE_TLS, " times")
    page = ratio(measured[GET.replace("GetVolume", f"ListVolumes {PAGE}")], unix)
    name = f"ListVolumes, {PAGE} of {VOLUMES}, to GetVolume"
    yield at_most(name, page, PAGE_TO_GET, " times")


def show(times: Times, rounds: int) -> None:
    """Print the table."""
    print(f"{VOLUMES} volumes are in the store; {rounds} rounds of {CALLS} calls; ms\n")
    print(f"{'':34}{'p50':>7}{'p99':>7}{'to bare':>9}{'to relay':>9}")
    for name in times:
        line = f"{name:34}{of(times[name], 50):7.3f}{of(times[name], 99):7.3f}"
        base = " TLS" if "TLS" in name else ""
        for other in (f"echo, bare tcp{base}", f"echo, relay {'TLS' if base else 'unix'}"):
            line += f"{ratio(times[name], times[other]):9.2f}"
        print(line)


async def prepare(
    where: dict[str, str],
) -> tuple[dict[str, Callable[[], Awaitable[Any]]], list[Any]]:
    """Return the calls to compare by name, warmed up, and the channels to close."""
    unix = unix_channel_aio(Path(where["unix"]))
    tls = mutual_tls(where, "tcp")
    echoing = {
        "echo, bare tcp": grpc.aio.insecure_channel(where["bare"]),
        "echo, relay unix": unix_channel_aio(Path(where["relay"])),
        "echo, bare tcp TLS": mutual_tls(where, "bare_tls"),
        "echo, relay TLS": mutual_tls(where, "relay_tls"),
    }
    request = pb.GetVolumeRequest(name=DATA)
    size = (await Api(unix).volumes.GetVolume(request)).ByteSize()
    payload = b"x" * size
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        name: partial(channel.unary_unary(ECHO), payload) for name, channel in echoing.items()
    }
    page = pb.ListVolumesRequest(page_size=PAGE)
    for name, channel in (("unix", unix), ("TLS", tls)):
        api = Api(channel)
        calls[f"GetVolume, gateway {name}"] = lambda api=api: api.volumes.GetVolume(request)  # type: ignore[misc]
        calls[f"ListVolumes {PAGE}, gateway {name}"] = lambda api=api: api.volumes.ListVolumes(page)  # type: ignore[misc]
    for call in calls.values():
        for _call in range(CALLS):
            await call()
    return calls, [*echoing.values(), unix, tls]


def mutual_tls(where: dict[str, str], name: str) -> Any:
    """Return a channel with the certificate of an administrator to one of these addresses."""
    access = parse_join(where["join"])
    access.address = where[name]
    return tls_channel_aio(access)


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """Return the milliseconds that a call takes."""
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1e3


def of(rounds: list[list[float]], percent: int) -> float:
    """Return the median over the rounds of their percentiles."""
    return median(times[len(times) * percent // 100] for times in rounds)


def ratio(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Return the median over the rounds of the ratios of their medians."""
    return median(median(a) / median(b) for a, b in zip(ours, theirs, strict=True))


async def compare(rounds: int) -> Times:
    """Start the server and measure."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((*sys.path, "proto"))}
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.gateway",
        "serve",
        env=environment,
        limit=1 << 20,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        return await measure(json.loads(await server.stdout.readline()), rounds)
    finally:
        server.stdin.close()
        await server.wait()


def main() -> None:
    """Measure, and print a table of all calls."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 15
    show(asyncio.run(compare(rounds)), rounds)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main()
