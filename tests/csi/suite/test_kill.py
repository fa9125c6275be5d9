"""Plugin and zfsilod as processes, killed in the middle of calls: the next call goes on."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.csi.cluster import Plugin, until_done
from tests.csi.processes import HOST, Simulation, simulation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Simulation, Plugin]]:
    directory = Path(tempfile.mkdtemp(prefix="zfsilo-csi-"))
    with simulation(directory) as processes:
        options = (
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        )
        async with grpc.aio.insecure_channel(processes.endpoint, options=options) as channel:
            yield processes, Plugin(directory / "kubelet", channel)
    shutil.rmtree(directory)


@pytest.mark.parametrize("who", ["plugin", "daemon"])
async def test_killed_in_the_middle_of_every_call(who: str) -> None:
    async with running() as (processes, plugin):
        victim = processes.plugin if who == "plugin" else processes.daemon

        async def cut(call: Callable[[], Awaitable[object]]) -> object:
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.05)  # somewhere in the middle: wherever, it has to hold
            await asyncio.to_thread(victim.end, signal.SIGKILL)
            await asyncio.to_thread(victim.start)
            await asyncio.gather(task, return_exceptions=True)
            return await until_done(call)

        volume = await cut(plugin.create)
        volume_id = volume.volume_id  # type: ignore[attr-defined]
        context = await cut(lambda: plugin.publish(volume_id, HOST))
        await cut(lambda: plugin.stage(volume_id, context))  # type: ignore[arg-type]
        await cut(lambda: plugin.mount(volume_id))
        found = await plugin.get(volume_id)
        assert found.status.published_node_ids == [HOST]
        await cut(lambda: plugin.unmount(volume_id))
        await cut(lambda: plugin.unstage(volume_id))
        await cut(lambda: plugin.unpublish(volume_id, HOST))
        await cut(lambda: plugin.delete(volume_id))
        facts = json.loads(processes.facts.read_text())
        assert [name for name in facts if not name.startswith("content:")] == []
