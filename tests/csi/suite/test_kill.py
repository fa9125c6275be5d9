"""Plugin and zfsilod killed in the middle of calls: a repeated call completes the work."""

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

from tests.csi.plugin_client import PluginClient, until_done
from tests.csi.processes import HOST, KEPT_FACTS, Simulation, simulation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Simulation, PluginClient]]:
    directory = Path(tempfile.mkdtemp(prefix="zfsilo-csi-"))
    with simulation(directory) as processes:
        options = (
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        )
        async with grpc.aio.insecure_channel(processes.endpoint, options=options) as channel:
            yield processes, PluginClient(directory / "kubelet", channel)
    shutil.rmtree(directory)


@pytest.mark.parametrize("victim", ["plugin", "daemon"])
async def test_killed_in_the_middle_of_every_call(victim: str) -> None:
    async with running() as (processes, plugin):
        process = processes.plugin if victim == "plugin" else processes.daemon

        async def interrupted(call: Callable[[], Awaitable[object]]) -> object:
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.05)  # any point in the middle: the test holds at every one
            await asyncio.to_thread(process.end, signal.SIGKILL)
            await asyncio.to_thread(process.start)
            await asyncio.gather(task, return_exceptions=True)
            return await until_done(call)

        volume = await interrupted(plugin.create)
        volume_id = volume.volume_id  # type: ignore[attr-defined]
        context = await interrupted(lambda: plugin.publish(volume_id, HOST))
        await interrupted(lambda: plugin.stage(volume_id, context))  # type: ignore[arg-type]
        await interrupted(lambda: plugin.mount(volume_id))
        status = (await plugin.get(volume_id)).status
        assert status.published_node_ids == [HOST]
        await interrupted(lambda: plugin.unmount(volume_id))
        await interrupted(lambda: plugin.unstage(volume_id))
        await interrupted(lambda: plugin.unpublish(volume_id, HOST))
        await interrupted(lambda: plugin.delete(volume_id))
        facts = json.loads(processes.facts.read_text())
        assert [name for name in facts if not name.startswith(KEPT_FACTS)] == []
