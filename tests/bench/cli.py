"""Run times of zfsiloctl on a host with 1,000 volumes, from start to exit."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.api.running import GIB, front_of
from tests.bench.table import Figure, at_most
from zfsilod.model.records import Volume
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROJECT = Path(__file__).parents[2]
VOLUMES = 1000
ROUNDS = 9
TARGET_MS = 60
LINES = ("status", "volume show v0500", "volume probe v0500", "volume list", "volume list -q")
COMMANDS = {f"zfsiloctl {line}": ("-m", "zfsilod.ctl", *line.split()) for line in LINES}
START = "pass"


def figures() -> Iterator[Figure]:
    """Yield the time of each command, absolute and relative to the start of Python."""
    times = asyncio.run(measure())
    base = median(times.pop(START))
    yield Figure(f"python -c '{START}'", f"{base:.1f} ms (p50)")
    for line, taken in times.items():
        note = f" (p50; minimum {min(taken):.0f} ms; {median(taken) / base:.2f} times the start)"
        yield at_most(line, median(taken), TARGET_MS, " ms", note=note)


async def measure() -> dict[str, list[float]]:
    """Run every command in rounds beside a daemon with 1,000 volumes."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        async with front_of(Path(directory), store_bytes=1 << 30) as front:
            await front.fixture.do(CreateVolume(id="data", capacity_bytes=GIB))
            front.write(fill)
            environment = os.environ | {
                "PYTHONPATH": f"{PROJECT}:{PROJECT}/proto",
                "ZFSILO_SOCKET": str(front.path),
                "ZFSILO_SIMULATE": directory,
                # The package has byte code; here the first round compiles it.
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": f"{directory}/byte-code",
            }
            return await rounds(environment)


async def rounds(environment: dict[str, str]) -> dict[str, list[float]]:
    """Return the times of each command, and of the start of Python alone."""
    times: dict[str, list[float]] = {}
    for number in range(1 + ROUNDS):
        for line, argv in {START: ("-c", START), **COMMANDS}.items():
            taken = await run(argv, environment)
            if number:
                times.setdefault(line, []).append(taken)
    return times


def fill(txn: Any) -> None:
    """Put volumes into the store that the host does not have."""
    volume = txn.get(Volume, "data")
    for number in range(VOLUMES):
        name = f"v{number:04}"
        txn.put(volume.but(id=name, uid=f"{number:032x}", dataset=f"tank/zfsilo/{name}"))


async def run(argv: Sequence[str], environment: dict[str, str]) -> float:
    """Return the milliseconds that a command takes."""
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    await process.wait()
    return 1000 * (time.perf_counter() - start)
