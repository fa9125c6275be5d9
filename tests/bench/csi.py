"""The CSI plugin in the lab: from CreateVolume to NodePublishVolume, beside the shell scripts."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.lifecycle import live
from tests.bench.table import Figure, spread
from tests.csi.cluster import until_done
from tests.csi.rig import down, install, plugin_of, up
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.csi.cluster import Plugin
    from tests.lab.pair import Pair

ROUNDS = 20
SCRIPTS = ("configfs", "targetcli")
UP = ("create", "publish", "connect", "stage", "mount")
VOLUMES, AT_ONCE = 24, 8
PATIENCE_S = 600


def figures() -> Iterator[Figure]:
    """Bring volumes to pods eight at once, then one by one, beside the scripts."""
    with restore_pair(ready()) as pair:
        install(pair, attachments=VOLUMES)
        seconds = asyncio.run(_at_once(pair))
        name = f"volumes brought to pods a minute, {AT_ONCE} at once"
        yield Figure(name, f"{60 * VOLUMES / seconds:.1f} ({VOLUMES} in {seconds:.0f} s)")
        ours, theirs = asyncio.run(_in_turns(pair))
        yield Figure(f"CreateVolume to NodePublishVolume, {ROUNDS} times", spread(ours))
        for kind in SCRIPTS:
            ratio = median(mine / its for mine, its in zip(ours, theirs[kind], strict=True))
            yield Figure(f"the same by the {kind} script", spread(theirs[kind]))
            yield Figure(f"CSI to the {kind} script", f"{ratio:.2f} times")


async def _in_turns(pair: Pair) -> tuple[list[float], dict[str, list[float]]]:
    """Return the seconds of each of ours, and of each script's."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {kind: [] for kind in SCRIPTS}
    async with plugin_of(pair) as plugin:
        for number in range(ROUNDS + 1):  # once to warm up
            begun = time.perf_counter()
            volume = await new(plugin, f"bench-{number}")
            ours.append(time.perf_counter() - begun)
            await down(plugin, volume, f"bench-{number}")
            for kind, times in theirs.items():
                life = live(pair, kind)
                times.append(sum(life[request] for request in UP))
    return ours[1:], {kind: times[1:] for kind, times in theirs.items()}


async def _at_once(pair: Pair) -> float:
    """Return how many seconds it took until the last volume was there."""
    gate = asyncio.Semaphore(AT_ONCE)
    made: dict[str, str] = {}

    async def one(name: str) -> None:
        async with gate:
            made[name] = await new(plugin, name)

    async with plugin_of(pair) as plugin:
        begun = time.perf_counter()
        await asyncio.gather(*(one(f"pod-{number}") for number in range(VOLUMES)))
        taken = time.perf_counter() - begun
        for name, volume in made.items():
            await down(plugin, volume, name)
    return taken


async def new(plugin: Plugin, name: str) -> str:
    """Bring a new volume to a pod, and return its id."""
    volume = (await plugin.create(name)).volume_id
    # Eight at once take an emulated machine longer than a call: it is made again, as kubelet does.
    await until_done(lambda: up(plugin, volume, name), within_s=PATIENCE_S)
    return volume
