"""How much memory a daemon holds: just started, and when it has made a thousand volumes.

How much it is with the package's Python, under systemd, is measured by cold_start.py.
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
VOLUMES, AT_ONCE = 1000, 16
DEADLINE_S = 120


def figures() -> Iterator[Figure]:
    """Measure a daemon of its own over a simulated host."""
    started, apply_observed = asyncio.run(measure())
    yield Figure("resident memory, started and asked once, this Python", f"{started:.1f} MiB")
    more = f"{apply_observed - started:.1f} MiB"
    yield Figure(f"more of it once {VOLUMES} volumes were made and listed", more)


async def measure() -> tuple[float, float]:
    """Return the daemon's resident MiB before and after."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as folder:
        async with daemon(folder):
            pass  # it makes the byte code, as the package has it: to compile takes memory too
        async with daemon(folder) as (pid, api):
            started = resident(pid)
            await fill(api)
            return started, resident(pid)


@asynccontextmanager
async def daemon(folder: str) -> AsyncIterator[tuple[int, Api]]:
    """Run a daemon that has answered once."""
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
    """Make the volumes, each by a worker of its own, and read everything once."""
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


def resident(pid: int) -> float:
    """Return a process's VmRSS in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no memory")
