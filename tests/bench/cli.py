"""What zfsiloctl takes on a host with 1,000 volumes, from its start to its end."""

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
TARGET_MS = 150
LINES = ("status", "volume show v0500", "volume probe v0500", "volume list", "volume list -q")
COMMANDS = {f"zfsiloctl {line}": ("-m", "zfsilod.ctl", *line.split()) for line in LINES}
LIBRARIES = "import grpc, zfsilo.v1.volume_pb2"


def figures() -> Iterator[Figure]:
    """Yield what each command takes, as time and against the start of its libraries."""
    times = asyncio.run(measure())
    base = median(times.pop(LIBRARIES))
    yield Figure(f"python -c '{LIBRARIES}'", f"{base:.1f} ms (p50)")
    for line, taken in times.items():
        note = f" (p50; least {min(taken):.0f} ms; {median(taken) / base:.2f} times the libraries)"
        yield at_most(line, median(taken), TARGET_MS, " ms", note=note)


async def measure() -> dict[str, list[float]]:
    """Run every command again and again beside a daemon with very many volumes."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        async with front_of(Path(directory)) as front:
            await front.zfsilo.do(CreateVolume(id="data", capacity_bytes=GIB))
            front.service.context.store._environment.set_mapsize(
                1 << 30
            )  # the double makes a small store
            front.write(fill)
            environment = os.environ | {
                "PYTHONPATH": f"{PROJECT}:{PROJECT}/proto",
                "ZFSILO_SOCKET": str(front.path),
                "ZFSILO_SIMULATE": directory,
                # The package has byte code; here the first round makes it.
                "PYTHONDONTWRITEBYTECODE": "",
                "PYTHONPYCACHEPREFIX": f"{directory}/byte-code",
            }
            return await rounds(environment)


async def rounds(environment: dict[str, str]) -> dict[str, list[float]]:
    """Return what each command took, and in between what its libraries alone take."""
    times: dict[str, list[float]] = {}
    for number in range(1 + ROUNDS):
        for line, argv in {LIBRARIES: ("-c", LIBRARIES), **COMMANDS}.items():
            taken = await run(argv, environment)
            if number:
                times.setdefault(line, []).append(taken)
    return times


def fill(txn: Any) -> None:
    """Put volumes into the store, without a host that has them."""
    made = txn.get(Volume, "data")
    for number in range(VOLUMES):
        name = f"v{number:04}"
        txn.put(made.but(id=name, uid=f"{number:032x}", dataset=f"tank/zfsilo/{name}"))


async def run(argv: Sequence[str], environment: dict[str, str]) -> float:
    """Return how many milliseconds a command takes."""
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    await process.wait()
    return 1000 * (time.perf_counter() - begun)
