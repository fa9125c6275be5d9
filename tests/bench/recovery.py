"""Time to restore 100 exports on the server of the lab, beside `targetctl restore`.

The machine is emulated: compare the ratio, or divide by the ratio of the start times of Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.lifecycle import INSIDE, PLACE, STARTS, ask, starting
from tests.bench.table import Figure, at_most
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

VOLUMES = 100
LIMIT_S = 5  # from the import of the pool, at the speed of this machine
SAVED = "/root/saved.json"
SOCKETS = ("zfsilod.socket", "zfsilod-tcp.socket")
FILL_S, STEP_S = 1200, 300


def figures() -> Iterator[Figure]:
    """Fill a pool, cut the power, then remove all exports and restore them in both ways."""
    with restore_pair(ready()) as pair:
        give = pair.give
        give.put(PLACE, INSIDE.read_bytes(), 0o600)
        ask(give, "fill", str(VOLUMES), timeout_s=FILL_S)
        give.run("sync")
        imported, started = booted(give)
        slower = starting(give) / starting_locally()
        give.run("targetctl", "save", SAVED)
        theirs = restored(give, "targetctl", "restore", SAVED)
        ours = restored(give, "systemctl", "start", *SOCKETS, "zfsilod.service")
    name = f"{VOLUMES} exports after the import of the pool"
    yield Figure(name + ", emulated", f"{imported:.1f} s, {started:.1f} s from the daemon's start")
    note = f" (Python starts {slower:.0f} times as fast)"
    yield at_most(name + ", at this machine's speed", imported / slower, LIMIT_S, " s", note=note)
    both = f"{ours:.1f} s; targetctl restore: {theirs:.1f} s"
    yield Figure(f"{VOLUMES} exports by a start of the daemon, emulated", both)
    yield Figure("recovery to targetctl restore", f"{ours / theirs:.2f} times")


def booted(give: Machine) -> tuple[float, float]:
    """Cut the power; return the seconds from the import and from the start to all exports."""
    give.power_off()
    give.power_on()
    give.wait_for_answer(STEP_S)
    done = exported(give)
    imported = since_boot(give, "zfs-import.target", "ActiveEnterTimestampMonotonic")
    started = since_boot(give, "zfsilod.service", "ExecMainStartTimestampMonotonic")
    give.wait_until_running()
    return done - imported, done - started


def restored(give: Machine, *words: str) -> float:
    """Remove all exports while the daemon is stopped; return the seconds of their restore."""
    give.run("systemctl", "stop", *SOCKETS, "zfsilod.service", timeout_s=STEP_S)
    ask(give, "clear", timeout_s=STEP_S)
    start = up(give)
    give.run(*words, timeout_s=STEP_S)
    return exported(give) - start


def exported(give: Machine) -> float:
    """Wait until every volume is exported; return the seconds since the boot."""
    return float(ask(give, "exported", str(VOLUMES), timeout_s=STEP_S))


def up(machine: Machine) -> float:
    """Return the seconds since the boot of a machine."""
    return float(machine.sh("cut -d' ' -f1 /proc/uptime").stdout)


def since_boot(machine: Machine, unit: str, name: str) -> float:
    """Return a time property of a unit, in seconds since the boot."""
    return int(machine.run("systemctl", "show", "-P", name, unit).stdout) / 1e6


def starting_locally() -> float:
    """Return the seconds that Python takes to start on this machine."""
    argv = (sys.executable, str(INSIDE), "python", str(STARTS), "-I", "-S", "-c", "pass")
    times: list[float] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return median(times)
