"""The suites of the crash tests: those that run on this machine, and those of the lab."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from tests.crash.cases import CASES
from tests.crash.report import CrashReport, Size

# Each module has run(report, *, size, seed), those of DIVISIBLE with `cases` too
LOCAL = {
    "matrix": "tests.crash.matrix",  # every point of every request, on the fake host
    "restored": "tests.crash.restored_store",  # an old store comes back after each request
    "model": "tests.crash.model_comparison",  # sequences of requests and crashes, against a model
    "load": "tests.crash.concurrent_load",  # many clients at once
    "units": "tests.crash.units",  # a sample with real systemd units, on the simulated host
}
LAB = {
    "lab": "tests.lab.kill_matrix",  # workers killed, with real tools and kernels
    "power": "tests.lab.power_cuts",  # the power cut at random moments
}
SUITES = LOCAL | LAB
DIVISIBLE = ("matrix", "restored")


class Lane(NamedTuple):
    """Suites that one process runs, and its part of the cases of those that can be divided."""

    names: list[str]
    part: int = 0
    parts: int = 1


def lanes(names: list[str]) -> list[Lane]:
    """Return what two processes run: the suites of this machine and of the lab, or two parts."""
    local, lab = ([name for name in names if name in suites] for suites in (LOCAL, LAB))
    if local and not lab:
        return [Lane(local, 0, 2), Lane([name for name in local if name in DIVISIBLE], 1, 2)]
    return [Lane(some) for some in (local, lab) if some]


def run(lane: Lane, *, size: Size, seed: int) -> CrashReport:
    """Run suites one after the other."""
    report = CrashReport()
    for name in lane.names:
        module = importlib.import_module(SUITES[name])
        if name in DIVISIBLE:
            cases = CASES[lane.part :: lane.parts]
            module.run(report, size=size, seed=seed, cases=cases)
        else:
            module.run(report, size=size, seed=seed)
    return report
