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
    "two-servers": "tests.crash.two_servers",  # replicas, promotions and cuts of two servers
    "load": "tests.crash.concurrent_load",  # many clients at once
    "units": "tests.crash.units",  # a sample with real systemd units, on the simulated host
}
LAB = {
    "lab": "tests.lab.kill_matrix",  # workers killed, with real tools and kernels
    "power": "tests.lab.power_cuts",  # the power cut at random moments
}
SUITES = LOCAL | LAB
DIVISIBLE = ("matrix", "restored")
PARTS = 8  # of each of them


class Lane(NamedTuple):
    """Suites that run one after the other, and the part of the cases that they run."""

    names: list[str]
    part: int = 0
    parts: int = 1


def lanes(names: list[str]) -> list[Lane]:
    """Return what processes can run side by side, the longest first: the lab has two machines."""
    lab = [name for name in names if name in LAB]
    whole = [Lane([name]) for name in names if name in LOCAL and name not in DIVISIBLE]
    divided = [name for name in names if name in DIVISIBLE]
    parts = [Lane([name], part, PARTS) for name in divided for part in range(PARTS)]
    return [*([Lane(lab)] if lab else []), *whole, *parts]


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
