"""`python -m tests.bench [NAME...]`: what is promised, and what is measured now."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path

from tests.bench.table import Figure, load, table

PROTO = Path(__file__).parents[2] / "proto"
BENCHES = (
    "operation",
    "throughput",
    "front_door",
    "cold_start",
    "lifecycle",
    "metrics",
    "many",
    "idle",
    "cli",
    "memory",
    "csi",
    "recovery",
    "publish_path",
    "code",
)


def main() -> int:
    """Run the benches and print one table; a missed target is no failure, a wrong name is."""
    chosen = sys.argv[1:] or BENCHES
    unknown = set(chosen) - set(BENCHES)
    if unknown:
        print(f"no bench {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}")
        return 2
    sys.path.insert(0, str(PROTO))
    found: list[Figure] = []
    try:
        for name in chosen:
            found += measured(name)
    finally:
        print("Other work shares this machine: read ratios, p50 and minima, not single times.\n")
        print(table(found))
    return 0


def measured(name: str) -> list[Figure]:
    """Run one bench, and say how busy the machine was."""
    begun, before = time.monotonic(), load()
    found = list(import_module(f"tests.bench.{name}").figures())
    took = f"{time.monotonic() - begun:.0f} s"
    return [Figure(f"{name}:", took, f"{before}; at its end {load()}"), *found]


if __name__ == "__main__":
    sys.exit(main())
