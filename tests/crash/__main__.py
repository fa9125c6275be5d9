"""All crash tests: python -m tests.crash [--short | --long] [--seed N] [PART ...]"""

from __future__ import annotations

import argparse
import importlib
import secrets
import sys

from tests.crash.report import Report, Size

# Each has run(report, *, size, seed): PART -> module
PARTS = {
    "matrix": "tests.crash.matrix",  # in one process, on the fake host: every point
    "ladder": "tests.crash.ladder",  # sequences of requests and crashes, against a model
    "crowd": "tests.crash.crowd",  # many clients at once
    "units": "tests.crash.units",  # real systemd units over the simulated host: a sample
    "lab": "tests.lab.crash",  # real tools and kernels: workers killed
    "power": "tests.lab.power",  # and the power cut at random moments
}


def main() -> int:
    """Run the parts that are asked for, or all; exit 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--short", action="store_true", help="the part that make test runs")
    parser.add_argument("--long", action="store_true", help="more of what is random, however long")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    size: Size = "long" if options.long else "short" if options.short else "full"
    report = Report()
    report.note(f"seed {options.seed}")
    for name in options.parts or PARTS:
        importlib.import_module(PARTS[name]).run(report, size=size, seed=options.seed)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
