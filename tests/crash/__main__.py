"""All crash tests: python -m tests.crash [--short | --long] [--seed N] [PART ...]"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.crash.parts import HERE, LAB, PARTS, run
from tests.crash.report import Report, Size


def main() -> int:
    """Run the parts that are asked for, or all; exit 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--short", action="store_true", help="the part that make test runs")
    parser.add_argument("--long", action="store_true", help="more of what is random, however long")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    size: Size = "long" if options.long else "short" if options.short else "full"
    chosen = options.parts or list(PARTS)
    report = Report()
    report.note(f"seed {options.seed}")
    # What runs here and what runs in the machines of the lab go on side by side: two processors.
    lanes = [lane for lane in ([p for p in chosen if p in each] for each in (HERE, LAB)) if lane]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(lanes), mp_context=spawn) as pool:
        for found in pool.map(partial(run, size=size, seed=options.seed), lanes):
            report.add(found)
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
