"""All benches: `python -m tests.bench [NAME...]` prints figures beside their targets.

They end in 20 minutes also on a busy machine: each repeats its rounds only as long as its share of
the time allows (rounds.py), and what has not ended then is stopped.
"""

from __future__ import annotations

import sys
import time

from tests.bench.part import STOP_S, run
from tests.bench.table import Figure, closing, load, table

LIMIT_S = 20 * 60
# The cheap ones first, so that a slow machine costs as few figures as possible.
BENCHES = (
    "publish_path",
    "code",
    "metrics",
    "worker_cpu",
    "cli",
    "cold_start",
    "operation",
    "many",
    "memory",
    "plugin_memory",
    "gateway",
    "streams",
    "throughput",
    "lifecycle",
    "csi",
    "data_path",
    "recovery",
)


def main() -> int:
    """Run the benches and print a table; exit 2 for an unknown name, 1 if one failed.

    Figures that fall short of their targets are listed, and are no failure.
    """
    chosen = sys.argv[1:] or BENCHES
    unknown = set(chosen) - set(BENCHES)
    if unknown:
        print(f"unknown bench {', '.join(sorted(unknown))}: choose from {', '.join(BENCHES)}")
        return 2
    start, before = time.monotonic(), load()
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    try:
        for name in chosen:
            left_s = LIMIT_S - STOP_S - (time.monotonic() - start)
            measured, failures[name] = timed(name, left_s)
            figures += measured
    finally:
        print("Other work shares this machine: compare ratios, p50 and minima, not single times.\n")
        print(table(figures))
        print(closing(figures, failures, time.monotonic() - start, LIMIT_S, before))
    return 1 if any(failures.values()) else 0


def timed(name: str, timeout_s: float) -> tuple[list[Figure], str]:
    """Run one bench, and add its time and the load of the machine to its figures."""
    start, before = time.monotonic(), load()
    figures, failure = run(name, timeout_s)
    took = f"{time.monotonic() - start:.0f} s"
    print(f"bench: {name}: {took} {failure}", file=sys.stderr)
    return [Figure(f"{name}:", took, f"{before}; at its end {load()}"), *figures], failure


if __name__ == "__main__":
    sys.exit(main())
