"""Throughput: changes per second, each of a different volume."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.bench.simulated import ask, simulated
from tests.bench.table import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 3
CALLS = 64


def figures() -> Iterator[Figure]:
    """Measure on a simulated host under a real systemd."""
    with simulated() as machine:
        ask(machine, "throughput", "8", "16")
        rates: dict[int, list[float]] = {1: [], 8: [], 32: []}
        for _round in range(ROUNDS):
            for clients, measured in rates.items():
                measured.append(ask(machine, "throughput", str(clients), str(CALLS)))
    for clients, measured in rates.items():
        shown = f"p50 {median(measured):.1f}, best {max(measured):.1f} a second"
        yield Figure(f"operations, {clients} at once", shown)
