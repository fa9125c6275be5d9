"""The parts of the crash tests: what runs in this machine, and what in those of the lab."""

from __future__ import annotations

import importlib

from tests.crash.report import Report, Size

# Each part has run(report, *, size, seed): PART -> module
HERE = {
    "matrix": "tests.crash.matrix",  # in one process, on the fake host: every point
    "ladder": "tests.crash.ladder",  # sequences of requests and crashes, against a model
    "crowd": "tests.crash.crowd",  # many clients at once
    "units": "tests.crash.units",  # real systemd units over the simulated host: a sample
}
LAB = {
    "lab": "tests.lab.kill_matrix",  # real tools and kernels: workers killed
    "power": "tests.lab.power_cuts",  # and the power cut at random moments
}
PARTS = HERE | LAB


def run(parts: list[str], *, size: Size, seed: int) -> Report:
    """Run parts one after the other."""
    report = Report()
    for name in parts:
        importlib.import_module(PARTS[name]).run(report, size=size, seed=seed)
    return report
