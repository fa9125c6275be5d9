"""Latency and throughput of D-Bus: `python -m tests.bench.dbus [VOLUMES]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.api.dbus_fixture import GIB, BusClient, BusFixture, connect, on_private_bus, options
from zfsilod.api.dbus.contract import OBJECT_MANAGER, PEER, ROOT, path_of
from zfsilod.model.records import Volume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 1000
AT_ONCE = 32


async def main() -> None:
    """Serve so many volumes (default 100,000); a client in another process measures."""
    volumes = int(sys.argv[1]) if sys.argv[1:] else 100_000
    with tempfile.TemporaryDirectory() as directory:
        async with on_private_bus(Path(directory)) as fixture:
            for count in (4000, volumes):
                fill(fixture, count)
                print(f"\n{count} volumes")
                stall = asyncio.create_task(longest_stall())
                client = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.bench.dbus", "client", fixture.address, str(count)
                )
                assert await client.wait() == 0
                stall.cancel()
                print(f"longest stall of the event loop {await stall:8.1f} ms")


def fill(fixture: BusFixture, count: int) -> None:
    """Put volumes into the store."""
    with fixture.store.write() as txn:
        for number in range(count):
            name = f"volume-{number:06}"
            txn.put(
                Volume(
                    id=name,
                    uid=f"{number:032x}",
                    dataset=f"tank/{name}",
                    capacity_bytes=GIB,
                    thin=True,
                    mode="FILESYSTEM",
                    volblocksize=16384,
                    state="CREATED",
                    labels=(("app", "db"),),
                )
            )


async def longest_stall() -> float:
    """Return the longest delay of the event loop in milliseconds, when cancelled."""
    longest = 0.0
    try:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - start - 0.001)
    except asyncio.CancelledError:
        return longest * 1000


async def measure(address: str, volumes: int) -> None:
    """Measure as a client."""
    client = BusClient(await connect(address))
    name = f"volume-{volumes // 2:06}"
    path = path_of("volume", name)
    page = options(page_size=("u", 100), page_token=("s", name))
    await report("Ping", lambda: client.call(ROOT, PEER, "Ping"))
    await report("GetVolume", lambda: client.manager("GetVolume", "s", name))
    await report("property Get", lambda: client.get(path, "State"))
    await report("ListVolumes, 100", lambda: client.manager("ListVolumes", "a{sv}", page), 50)
    start = time.perf_counter()
    reply = await client.try_call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    took = time.perf_counter() - start
    print(f"{'GetManagedObjects':24} {took * 1000:8.1f} ms {reply.error or len(reply.body[0])}")


async def report(name: str, call: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> None:
    """Print the median time of a call, and the rate of several clients at once."""
    times = []
    for _round in range(rounds):
        start = time.perf_counter()
        await call()
        times.append(time.perf_counter() - start)

    async def some() -> None:
        for _round in range(rounds // AT_ONCE + 1):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(some() for _client in range(AT_ONCE)))
    rate = AT_ONCE * (rounds // AT_ONCE + 1) / (time.perf_counter() - start)
    print(f"{name:24} p50 {median(times) * 1000:6.2f} ms {rate:8.0f} a second, {AT_ONCE} at once")


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(measure(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(main())
