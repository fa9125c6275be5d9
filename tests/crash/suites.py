"""The suites of the crash tests: those that run on this machine, and those of the lab."""

from __future__ import annotations

import importlib

from tests.crash.report import CrashReport, Size

# Each module has run(report, *, size, seed)
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


def run(names: list[str], *, size: Size, seed: int) -> CrashReport:
    """Run suites one after the other."""
    report = CrashReport()
    for name in names:
        importlib.import_module(SUITES[name]).run(report, size=size, seed=seed)
    return report
