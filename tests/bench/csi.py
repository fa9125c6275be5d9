"""CSI in the lab: CreateVolume to NodePublishVolume, compared with the shell scripts."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.lifecycle import live
from tests.bench.table import Figure, spread
from tests.csi.lab_plugin import install, plugin_of
from tests.csi.plugin_client import down, until_done, up
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.csi.plugin_client import PluginClient
    from tests.lab.pair import Pair

ROUNDS = 2
SCRIPTS = ("configfs", "targetcli")
UP = ("create", "publish", "connect", "stage", "mount")
VOLUMES, AT_ONCE = 16, 8
PATIENCE_S = 600


def figures() -> Iterator[Figure]:
    """Attach volumes to pods, first AT_ONCE in parallel, then one by one and with the scripts."""
    with restore_pair(ready()) as pair:
        install(pair, attachments=VOLUMES)
        seconds = asyncio.run(_in_parallel(pair))
        name = f"volumes attached to pods a minute, {AT_ONCE} in parallel"
        yield Figure(name, f"{60 * VOLUMES / seconds:.1f} ({VOLUMES} in {seconds:.0f} s)")
        csi_s, script_s = asyncio.run(_in_turns(pair))
        yield Figure(f"CreateVolume to NodePublishVolume, {ROUNDS} times", spread(csi_s))
        for kind in SCRIPTS:
            ratio = median(csi / script for csi, script in zip(csi_s, script_s[kind], strict=True))
            yield Figure(f"the same by the {kind} script", spread(script_s[kind]))
            yield Figure(f"CSI to the {kind} script", f"{ratio:.2f} times")


async def _in_turns(pair: Pair) -> tuple[list[float], dict[str, list[float]]]:
    """Return the seconds of every CSI round, and of every round of each script."""
    csi_s: list[float] = []
    script_s: dict[str, list[float]] = {kind: [] for kind in SCRIPTS}
    async with plugin_of(pair) as plugin:
        for number in range(ROUNDS + 1):  # the first round warms up
            started = time.perf_counter()
            volume = await new(plugin, f"bench-{number}")
            csi_s.append(time.perf_counter() - started)
            await down(plugin, volume, f"bench-{number}")
            for kind, times in script_s.items():
                life = live(pair, kind)
                times.append(sum(life[name] for name in UP))
    return csi_s[1:], {kind: times[1:] for kind, times in script_s.items()}


async def _in_parallel(pair: Pair) -> float:
    """Return the seconds until the last of VOLUMES volumes was attached."""
    gate = asyncio.Semaphore(AT_ONCE)
    volumes: dict[str, str] = {}

    async def attach(name: str) -> None:
        async with gate:
            volumes[name] = await new(plugin, name)

    async with plugin_of(pair) as plugin:
        started = time.perf_counter()
        await asyncio.gather(*(attach(f"pod-{number}") for number in range(VOLUMES)))
        seconds = time.perf_counter() - started
        for name, volume in volumes.items():
            await down(plugin, volume, name)
    return seconds


async def new(plugin: PluginClient, name: str) -> str:
    """Create a volume, attach it to a pod, and return its id."""
    volume = (await plugin.create(name)).volume_id
    # AT_ONCE volumes take an emulated machine longer than a call may last, so kubelet would retry.
    await until_done(lambda: up(plugin, volume, name), within_s=PATIENCE_S)
    return volume
