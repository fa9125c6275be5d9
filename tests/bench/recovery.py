"""How soon exports are back: 100 published volumes on the lab's pool, beside a bare script.

The machine is emulated, so its seconds are not those of a host: read the ratio, and the number of
processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.table import Figure
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

VOLUMES = 100
INSIDE = Path(__file__).with_name("exports.py")
PLACE = "/root/exports.py"
FILL_S, STEP_S = 1800, 300
FILL = f"""
seq -w 1 {VOLUMES} | xargs -P 4 -I @ sh -c '
    zfsiloctl -q volume create v@ 16M --host take && zfsiloctl -q volume publish v@ take'
"""
UNITS = ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod.service")
ROUNDS = 3


class Made(NamedTuple):
    """How all exports were made: when since the boot, in which time, by how many processes."""

    up: float
    took: float
    processes: int


def figures() -> Iterator[Figure]:
    """Fill a pool, reboot, then take all exports away and bring them back both ways."""
    with restore_pair(ready()) as pair:
        give = pair.give
        give.sh(FILL, timeout_s=FILL_S)
        give.put(PLACE, INSIDE.read_bytes(), 0o600)
        give.run("sync")
        yield Figure(f"{VOLUMES} exports after the import of the pool, emulated", booted(give))
        ours, bare = [], []
        for _round in range(ROUNDS):
            give.run("systemctl", "stop", *UNITS, timeout_s=STEP_S)
            do(give, "clear")
            bare.append(do(give, "make"))
            do(give, "clear")
            ours.append(started(give))
        best, least = min(ours, key=took), min(bare, key=took)
        yield Figure(
            f"{VOLUMES} exports from the start of the daemon, emulated", f"{best.took:.1f} s",
        )  # fmt: skip
        yield Figure(f"{VOLUMES} exports by a bare script, emulated", f"{least.took:.1f} s")
        yield Figure("recovery to the bare script", f"{best.took / least.took:.1f} times")
        shown = f"{best.processes}, {least.processes}"
        yield Figure("processes of a recovery, of the bare script", shown)


def booted(give: Machine) -> str:
    """Cut the power, and return how long after the pool's import all volumes were exported."""
    give.power_off()
    give.power_on()
    give.wait_for_answer(STEP_S)
    done = do(give, "wait")
    imported = since_boot(give, "zfs-import.target", "ActiveEnterTimestampMonotonic")
    ready_at = since_boot(give, "zfsilod.service", "ActiveEnterTimestampMonotonic")
    give.wait_until_running()
    return f"{done.up - imported:.1f} s, {done.up - ready_at:.1f} of it behind the daemon's start"


def since_boot(machine: Machine, unit: str, name: str) -> float:
    """Return when a unit did something, in seconds since the boot."""
    return int(machine.run("systemctl", "show", "-P", name, unit).stdout) / 1e6


def started(give: Machine) -> Made:
    """Start the daemon, and wait for all exports; the start counts."""
    begin = f"systemctl start --no-block {' '.join(UNITS)}; exec python3 {PLACE} wait {VOLUMES}"
    return Made(**json.loads(give.sh(begin, timeout_s=STEP_S).stdout))


def do(give: Machine, verb: str) -> Made:
    """Do something with all exports there."""
    shown = give.run("python3", PLACE, verb, str(VOLUMES), timeout_s=STEP_S).stdout
    return Made(**json.loads(shown))


def took(made: Made) -> float:
    """Return how long it took."""
    return made.took
