"""All crash tests: `python -m tests.crash [--short | --long] [--seed N] [SUITE ...]`."""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.crash.report import CrashReport, Size
from tests.crash.suites import SUITES, lanes, run

PROCESSES = 2


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
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        runs = {pool.submit(run, lane, size=size, seed=options.seed): lane for lane in shared_out}
        for ended in as_completed(runs):
            if (error := ended.exception()) is not None:  # said now, not after the other lane
                shown = "".join(traceback.format_exception(error))
                report.case(", ".join(runs[ended].names), "ended early", shown)
            else:
                report.add(ended.result())
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
