"""Throughput: changes per second, each of a different volume."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from tests.bench.rounds import rounds
from tests.bench.simulated import ask, simulated
from tests.bench.table import Figure, at_least

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS, SHARE_S = 3, 40
CALLS = 64
TARGETS = {8: 40, 32: 60}  # a second, by changes in flight


def figures() -> Iterator[Figure]:
    """Measure on a simulated host under a real systemd."""
    with simulated() as machine:
        ask(machine, "throughput", "8", "16")
        rates: dict[int, list[float]] = {1: [], 8: [], 32: []}
        for _round in rounds(ROUNDS, SHARE_S):
            for clients, measured in rates.items():
                measured.append(ask(machine, "throughput", str(clients), str(CALLS)))
    for clients, measured in rates.items():
        name, middle = f"operations, {clients} at once", median(measured)
        note = f" (p50; best {max(measured):.1f})"
        if clients in TARGETS:
            yield at_least(name, middle, TARGETS[clients], " a second", note=note)
        else:
            yield Figure(name, f"{middle:.1f} a second{note}")
