"""Figures of the benches, and their table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# A target that no bench can measure, since it needs programs that are not part of the project.
ELSEWHERE = "a life by CSI against other drivers: at most 0.5 and 0.4 times, of CPU 0.6 times"
SHOWN = 6
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


def within(name: str, ratio: float, share: float, *, note: str = "") -> Figure:
    """Return the figure of a ratio that should be 1; `share`: how far it may be from it."""
    bounds = f"{1 - share:g} to {1 + share:g} times"
    return Figure(name, f"{ratio:.2f} times{note}", bounds, abs(ratio - 1) <= share)


def counted(name: str, offenders: list[str], *, strict: bool = True) -> Iterator[Figure]:
    """Yield the number of offenders and the first of them; `strict`: there should be none."""
    count = str(len(offenders))
    yield Figure(name, count, "none", not offenders) if strict else Figure(name, count)
    for offender in offenders[:SHOWN]:
        yield Figure("", offender)


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


def closing(
    figures: Sequence[Figure],
    failures: Mapping[str, str],
    took_s: float,
    limit_s: float,
    load_before: str,
) -> str:
    """Return the last lines: the figures that fall short, what was not measured, and the time."""
    short = [figure for figure in figures if figure.met is False]
    targets = sum(figure.met is not None for figure in figures)
    ended = "met" if took_s < limit_s else "MISSED"
    took = f"{took_s / 60:.1f} minutes; target: less than {limit_s / 60:.0f}: {ended}"
    lines = [
        f"\n{len(short)} of {targets} figures fall short of their targets:",
        *(f"  {one.name}: {one.measured}; target: {one.target}" for one in short),
        "Not measured:",
        *(f"  {name}: {failure}" for name, failure in failures.items() if failure),
        f"  {ELSEWHERE}",
        f"All benches together: {took}; {load_before} before, {load()} at the end",
    ]
    return "\n".join(lines)
