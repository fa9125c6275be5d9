"""Resident memory of the controller's plugin in front of two servers with 1,000 volumes in all.

The servers are simulated, their records are put into the store, and the plugin is a process. It
needs no Kubernetes, and other work on the machine does not change it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2 as csi

from tests.api.running import front_of
from tests.bench.memory import PROJECT, resident
from tests.bench.table import Figure
from tests.channel import unix_channel_aio
from tests.service_fixture import SETTINGS
from zfsilod.model.records import Publication, Volume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.security.join_file import make_join
from zfsilod.wire.stub import Stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SERVERS = ("give", "annex")
VOLUMES, AT_ONCE = 1000, 16
DEADLINE_S = 300
MODEL, HOST = "model", "take"


def figures() -> Iterator[Figure]:
    """Measure the plugin after its first answer, after one list, and after many at once."""
    (first, one, many), peak, size = asyncio.run(measure())
    yield Figure("memory of the CSI controller after its first answer", f"{first:.1f} MiB")
    text = f"after ListVolumes of {VOLUMES} volumes of two servers ({size:.2f} MiB)"
    yield Figure(f"  {text}", f"{one:.1f} MiB")
    yield Figure(f"  after {AT_ONCE} such calls at once", f"{many:.1f} MiB, peak {peak:.1f}")


async def measure() -> tuple[list[float], float, float]:
    """Return the resident memory at three times, its peak, and the size of a list, in MiB."""
    with tempfile.TemporaryDirectory(prefix="zfsilo-") as directory:
        folder = Path(directory)
        async with AsyncExitStack() as stack:
            for name in SERVERS:
                (folder / name).mkdir()
                settings = SETTINGS.but(host_id=name)
                front = await stack.enter_async_context(
                    front_of(folder / name, settings, store_bytes=1 << 30)
                )
                await front.fixture.do(CreateVolume(id=MODEL, capacity_bytes=1 << 30))
                front.write(fill)
                join = make_join(front.certified("controller", "csi"))
                (folder / f"{name}.join").write_text(join)
            pid, controller, identity = await stack.enter_async_context(plugin(folder))
            await identity.Probe(csi.ProbeRequest(), timeout=DEADLINE_S)
            return await lists(pid, controller)


async def lists(pid: int, controller: Any) -> tuple[list[float], float, float]:
    """List all volumes once, then many times at once."""
    memory = [resident(pid)]
    for calls in (1, AT_ONCE):
        request = csi.ListVolumesRequest()
        pending = [controller.ListVolumes(request, timeout=DEADLINE_S) for _call in range(calls)]
        for listed in await asyncio.gather(*pending):
            assert len(listed.entries) == VOLUMES, len(listed.entries)
            size = listed.ByteSize() / (1 << 20)
        memory.append(resident(pid))
    return memory, resident(pid, "VmHWM"), size


@asynccontextmanager
async def plugin(folder: Path) -> AsyncIterator[tuple[int, Any, Any]]:
    """Run the controller, and wait for its socket."""
    lines = [f'endpoint = "unix://{folder}/csi.sock"', 'log_level = "error"']
    for name in SERVERS:
        lines += [f"[backends.{name}]", f'join = "{folder}/{name}.join"']
    (folder / "config.toml").write_text("\n".join(lines) + "\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "zfsilo_csi", "controller", f"--config={folder}/config.toml"),
        env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT}/proto:{PROJECT}/csi"},
    )
    services = csi.DESCRIPTOR.services_by_name
    try:
        async with unix_channel_aio(folder / "csi.sock") as channel:
            identity = Stub(channel, services["Identity"])
            request = csi.GetPluginInfoRequest()
            await identity.GetPluginInfo(request, wait_for_ready=True, timeout=DEADLINE_S)
            yield process.pid, Stub(channel, services["Controller"]), identity
    finally:
        process.terminate()
        await process.wait()


def fill(txn: Any) -> None:
    """Put published volumes of claims into the store; one more exists, which they are copies of."""
    model = txn.get(Volume, MODEL)
    for number in range(VOLUMES // len(SERVERS) - 1):
        uid = f"{number:032x}"
        name = f"csi-{number:026x}"
        labels = {
            "csi.zfsilo.io/name": f"pvc-{uid}",
            "csi.zfsilo.io/pv.name": f"pvc-{uid}",
            "csi.zfsilo.io/pvc.name": f"data-{number}",
            "csi.zfsilo.io/pvc.namespace": "default",
        }
        txn.put(
            model.but(
                id=name,
                uid=uid,
                dataset=f"tank/zfsilo/{name}",
                state="PUBLISHED",
                labels=tuple(sorted(labels.items())),
            )
        )
        txn.put(
            Publication(
                id=f"{name}/{HOST}",
                volume=name,
                host=HOST,
                initiator="iqn.2024-01.example:take",
                epoch=1,
            )
        )
