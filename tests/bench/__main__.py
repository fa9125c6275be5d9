"""All benches: `python -m tests.bench [NAME...]` prints figures beside their targets."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

from tests.bench.table import Figure, load, table

PROTO = Path(__file__).parents[2] / "proto"
BENCHES = (
    "operation",
    "worker_cpu",
    "throughput",
    "gateway",
    "cold_start",
    "lifecycle",
    "metrics",
    "many",
    "cli",
    "memory",
    "csi",
    "recovery",
    "publish_path",
    "code",
)


def main() -> int:
    """Run the benches and print one table; exit 2 for an unknown name, 0 for missed targets."""
    chosen = sys.argv[1:] or BENCHES
    unknown = set(chosen) - set(BENCHES)
    if unknown:
        print(f"unknown bench {', '.join(sorted(unknown))}: choose from {', '.join(BENCHES)}")
        return 2
    sys.path.insert(0, str(PROTO))
    figures: list[Figure] = []
    try:
        for name in chosen:
            figures += measured(name)
    finally:
        print("Other work shares this machine: compare ratios, p50 and minima, not single times.\n")
        print(table(figures))
    return 0


def measured(name: str) -> list[Figure]:
    """Run one bench, and add the load of the machine."""
    start, before = time.monotonic(), load()
    figures = list(import_module(f"tests.bench.{name}").figures())
    took = f"{time.monotonic() - start:.0f} s"
    print(f"bench: {name}: {took}", file=sys.stderr)
    return [Figure(f"{name}:", took, f"{before}; at its end {load()}"), *figures]


if __name__ == "__main__":
    sys.exit(main())
