"""Figures of the benches, and their table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEAD = ("figure", "measured", "target", "")


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    measured: str
    target: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The line's columns."""
        verdict = "" if self.met is None else "met" if self.met else "MISSED"
        return self.name, self.measured, self.target, verdict


def at_most(name: str, value: float, limit: float, unit: str, *, note: str = "") -> Figure:
    """Return the figure of a value with an upper limit."""
    shown = f"{value:.2f}" if limit < 10 else f"{value:.1f}"
    return Figure(name, f"{shown}{unit}{note}", f"at most {limit:g}{unit}", value <= limit)


def at_least(name: str, value: float, limit: float, unit: str, *, note: str = "") -> Figure:
    """Return the figure of a value with a lower limit."""
    return Figure(name, f"{value:.1f}{unit}{note}", f"at least {limit:g}{unit}", value >= limit)


def percentile(times: Iterable[float], percent: int) -> float:
    """Return the percentile of some times."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def spread(times: Sequence[float]) -> str:
    """Return minimum, median and 99th percentile of seconds, in ms."""
    shown = (min(times), median(times), percentile(times, 99))
    return "min {:.1f}, p50 {:.1f}, p99 {:.1f} ms".format(*(1e3 * seconds for seconds in shown))


def load() -> str:
    """Return the load averages of this machine."""
    return "load {:.1f} {:.1f} {:.1f}".format(*os.getloadavg())


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as lines in columns."""
    rows = [HEAD, *(figure.cells for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
