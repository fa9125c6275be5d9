"""Time to restore 100 exports on the server of the lab, beside `targetctl restore`.

The machine is emulated: compare the ratio, or divide by the ratio of the start times of Python.
The restore after a power cut is in tests/lab/test_many_volumes.py, for both transports.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.machines import GUEST, STARTS, ask, look, prepare, starting
from tests.bench.table import Figure, at_most
from tests.lab.pair import restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

VOLUMES = 100
LIMIT_S = 5  # at the speed of this machine
RATIO = 1.0
SAVED = "/root/saved.json"
DAEMON = ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod.service")
STEP_S = 300


def figures() -> Iterator[Figure]:
    """Make 100 volumes and export them; then remove all exports and restore them, in both ways."""
    with restore_pair(ready()) as pair:
        give = pair.give
        prepare(pair)
        ask(give, "fill", "1", "iscsi", timeout_s=STEP_S)
        stop(give)
        ask(give, "copy", str(VOLUMES), timeout_s=STEP_S)
        give.run("sync")
        restored(give, "systemctl", "start", *DAEMON)  # makes the exports
        slower = starting(give) / starting_locally()
        give.run("targetctl", "save", SAVED, timeout_s=STEP_S)
        stop(give)
        theirs = restored(give, "targetctl", "restore", SAVED)
        ours = restored(give, "systemctl", "start", *DAEMON)
    name = f"{VOLUMES} exports from the start of the daemon"
    yield Figure(f"{name}, emulated", f"{ours:.1f} s; targetctl restore: {theirs:.1f} s")
    note = f" (Python starts {slower:.0f} times as fast)"
    yield at_most(f"{name}, at this machine's speed", ours / slower, LIMIT_S, " s", note=note)
    yield at_most("recovery to targetctl restore", ours / theirs, RATIO, " times")


def stop(give: Machine) -> None:
    """Stop the daemon."""
    give.run("systemctl", "stop", *DAEMON, timeout_s=STEP_S)


def restored(give: Machine, *words: str) -> float:
    """Remove all exports; return the seconds of their restore by a command, without a daemon."""
    look(give, "clear", timeout_s=STEP_S)
    start = float(give.sh("cut -d' ' -f1 /proc/uptime").stdout)
    give.run(*words, timeout_s=STEP_S)
    return float(look(give, "exported", str(VOLUMES), "iscsi", timeout_s=STEP_S)) - start


def starting_locally() -> float:
    """Return the seconds that Python takes to start on this machine."""
    argv = (sys.executable, str(GUEST), "python", str(STARTS), "-I", "-S", "-c", "pass")
    times: list[float] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return median(times)
