"""Time of a scrape of 10,000 volumes over the unix socket of the metrics.

The fake host has no zvols; a scrape waits at most 100 ms for the host in any case.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.api.running import GIB, front_of
from tests.bench.table import Figure, at_most
from zfsilod.gateway.sockets import listen_unix
from zfsilod.model.records import Volume
from zfsilod.monitoring.exporter import Scrape
from zfsilod.monitoring.metrics import Metrics
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VOLUMES = 10_000
ROUNDS = 15
TARGET_MS = 250


def figures() -> Iterator[Figure]:
    """Yield the longest scrape of each kind, with its target."""
    for kind, times in asyncio.run(measure()).items():
        note = f" (maximum; p50 {median(times):.0f} ms)"
        name = f"scrape of {VOLUMES:,} volumes, {kind}"
        yield at_most(name, max(times), TARGET_MS, " ms", note=note)


async def measure() -> dict[str, list[float]]:
    """Scrape in rounds, with and without a change in between."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        async with front_of(Path(directory), store_bytes=1 << 30) as front:
            await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
            front.write(fill)
            path = Path(directory) / "metrics.sock"
            metrics = Metrics(front.service, most=1000, expiries=dict)
            server = Scrape(metrics.text)
            await server.open(listen_unix(path))
            first = [await scrape(path)]
            still = [await scrape(path) for _round in range(ROUNDS)]
            changed = partial(front.write, touch)
            times = {
                "the first": first,
                "nothing changed": still,
                "one changed": [await scrape(path, changed) for _round in range(ROUNDS)],
            }
            await metrics.close()
            await server.close()
            return times


def fill(txn: Any) -> None:
    """Put very many volumes into the store, without a host that has them."""
    made = txn.get(Volume, "data")
    for number in range(VOLUMES):
        name = f"v{number:05}"
        txn.put(made.but(id=name, uid=f"{number:032x}", dataset=f"tank/zfsilo/{name}"))


def touch(txn: Any) -> None:
    """Change one record, so that all are counted again."""
    txn.put(txn.get(Volume, "data"))


async def scrape(path: Path, before: Callable[[], object] = int) -> float:
    """Return how many milliseconds one scrape takes."""
    before()
    start = time.perf_counter()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: zfsilo\r\n\r\n")
    answer = await reader.read()
    took = time.perf_counter() - start
    writer.close()
    assert b"200 OK" in answer[:20]
    assert b"zfsilo_volumes{" in answer
    return took * 1000
