"""All crash tests: `python -m tests.crash [--short | --long] [--seed N] [SUITE ...]`."""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.crash.report import CrashReport, Size
from tests.crash.suites import SUITES, lanes, run


def main() -> int:
    """Run the named suites, or all; exit 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--short", action="store_true", help="the cases of make test")
    parser.add_argument("--long", action="store_true", help="more random cases; takes hours")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    options = parser.parse_args()
    size: Size = "long" if options.long else "short" if options.short else "full"
    chosen = options.suites or list(SUITES)
    report = CrashReport()
    report.note(f"seed {options.seed}")
    shared_out = lanes(chosen)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shared_out), mp_context=spawn) as pool:
        for partial_report in pool.map(partial(run, size=size, seed=options.seed), shared_out):
            report.add(partial_report)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
