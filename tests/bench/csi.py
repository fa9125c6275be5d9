"""CSI in the lab: CreateVolume to NodePublishVolume, compared with the configfs script."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.lifecycle import live
from tests.bench.rounds import rounds
from tests.bench.table import Figure, at_most, spread
from tests.csi.lab_plugin import install, plugin_of
from tests.csi.plugin_client import until_done, up
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.csi.plugin_client import PluginClient
    from tests.lab.pair import Pair

ROUNDS, SHARE_S = 3, 110
UP = ("create", "publish", "connect", "stage", "mount")
PATIENCE_S = 600
RATIO, UNITS = 2.0, 3
# The units of operations in the journal of a machine.
COUNT_UNITS = "journalctl -q -o cat | grep -o 'zfsilo-op-[^ ]*\\.service' | sort -u | wc -l"


def figures() -> Iterator[Figure]:
    """Attach volumes to pods, in turns with the script; the first pod only warms up."""
    with restore_pair(ready()) as pair:
        install(pair, attachments=ROUNDS + 1)
        csi_s, script_s, units = asyncio.run(_in_turns(pair))
    ratio = median(csi / script for csi, script in zip(csi_s, script_s, strict=True))
    yield Figure(f"CreateVolume to NodePublishVolume, {len(csi_s)} times", spread(csi_s))
    yield Figure("the same by the configfs script", spread(script_s))
    yield at_most("CSI to the configfs script", ratio, RATIO, " times")
    yield at_most("units of a pod, on both machines", median(units), UNITS, "")


async def _in_turns(pair: Pair) -> tuple[list[float], list[float], list[int]]:
    """Return the seconds of each pod and of each round of the script, and the units of each pod."""
    csi_s: list[float] = []
    script_s: list[float] = []
    units: list[int] = []
    async with plugin_of(pair) as plugin:
        await new(plugin, "warm-up")
        for number in rounds(ROUNDS, SHARE_S):
            before = units_of(pair)
            started = time.perf_counter()
            await new(plugin, f"bench-{number}")
            csi_s.append(time.perf_counter() - started)
            units.append(units_of(pair) - before)
            life = live(pair, "configfs")
            script_s.append(sum(life[name] for name in UP))
    return csi_s, script_s, units


def units_of(pair: Pair) -> int:
    """Return the number of units of operations that both machines have started."""
    return sum(int(text.stdout) for text in pair.both(lambda one: one.sh(COUNT_UNITS)))


async def new(plugin: PluginClient, name: str) -> None:
    """Create a volume and attach it to a pod."""
    volume = (await plugin.create(name)).volume_id
    # An emulated machine may take longer than a call may last, so kubelet would retry.
    await until_done(lambda: up(plugin, volume, name), within_s=PATIENCE_S)
