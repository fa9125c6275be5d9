"""Resident memory of a daemon after its start, and after it has created 500 volumes.

cold_start.py measures the same with the Python of the package, under systemd.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilo.v1 import service_pb2, volume_pb2

from tests.bench.table import Figure
from tests.channel import unix_channel_aio
from zfsilod.wire.stub import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PROJECT = Path(__file__).parents[2]
VOLUMES, AT_ONCE = 500, 16
DEADLINE_S = 120


def figures() -> Iterator[Figure]:
    """Measure a daemon over a simulated host."""
    started, filled = asyncio.run(measure())
    yield Figure("resident memory after the first answer, this Python", f"{started:.1f} MiB")
    more = f"{filled - started:.1f} MiB"
    yield Figure(f"growth after {VOLUMES} volumes were created and listed", more)


async def measure() -> tuple[float, float]:
    """Return the resident memory of the daemon in MiB, before and after."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as folder:
        async with daemon(folder):
            pass  # compiles byte code, which takes memory and which the package has
        async with daemon(folder) as (pid, api):
            started = resident(pid)
            await fill(api)
            return started, resident(pid)


@asynccontextmanager
async def daemon(folder: str) -> AsyncIterator[tuple[int, Api]]:
    """Run a daemon, and wait for its first answer."""
    code = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/byte-code"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "zfsilod.daemon",
        "--simulate",
        folder,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT}/proto"} | code,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with unix_channel_aio(Path(folder) / "run/zfsilod.sock") as channel:
            api = Api(channel)
            request = service_pb2.GetStatusRequest()
            await api.service.GetStatus(request, wait_for_ready=True, timeout=DEADLINE_S)
            yield process.pid, api
    finally:
        process.terminate()
        await process.wait()


async def fill(api: Api) -> None:
    """Create the volumes, each with its own worker, and list them once."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def create(number: int) -> None:
        async with gate:
            volume = volume_pb2.Volume(capacity_bytes=1 << 20)
            request = volume_pb2.CreateVolumeRequest(volume_id=f"v{number:04}", volume=volume)
            await api.volumes.CreateVolume(request, timeout=DEADLINE_S)

    await asyncio.gather(*(create(number) for number in range(VOLUMES)))
    listed = await api.volumes.ListVolumes(
        volume_pb2.ListVolumesRequest(page_size=VOLUMES), timeout=DEADLINE_S
    )
    assert len(listed.volumes) == VOLUMES
    await api.service.GetStatus(service_pb2.GetStatusRequest(), timeout=DEADLINE_S)


def resident(pid: int, value: str = "VmRSS") -> float:
    """Return the resident memory of a process in MiB; VmHWM is its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{value}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")
