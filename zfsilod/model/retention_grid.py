"""Retention grids of snapshot policies, such as `24x1h 7x1d 4x1w 12x1mon`. Pure.

Each rule `COUNTxLENGTH` divides the time into periods of that length, in UTC, and keeps the newest
snapshot of each of the COUNT newest periods that have one. What any rule keeps is kept. Periods
without a snapshot do not count: after an outage the grid still keeps what was taken before it.

A snapshot that is the newest of its period stays so, unless a newer one of the period is taken: how
often and when the grid is applied does not change what is left in the end.
"""

from __future__ import annotations

import re
import time

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

RULE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,2})(min|h|d|w|mon|y)")
MAX_RULES = 16
MAX_KEPT = 10_000
SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST = SECONDS | {"mon": 31 * 86400, "y": 366 * 86400}
MONDAY_S = 4 * 86400  # 1970-01-05, the first Monday: weeks begin on one, as in ISO 8601


class GridRule(Record):
    """Keep the newest snapshot of each of `count` periods of `length` units."""

    count: int
    length: int
    unit: str

    @property
    def span_s(self) -> int:
        """The length of all its periods in seconds, months and years being the longest ones."""
        return self.count * self.length * LONGEST[self.unit]

    def period(self, at: int) -> int:
        """Return the number of the period that contains a time, in seconds since 1970."""
        if self.unit == "mon":
            return month_of(at) // self.length
        if self.unit == "y":
            return month_of(at) // 12 // self.length
        shift = MONDAY_S if self.unit == "w" else 0
        return (at - shift) // (self.length * SECONDS[self.unit])


def parse_grid(text: str) -> tuple[GridRule, ...]:
    """Return the rules of a grid. Raises InvalidArgument."""
    words = text.split()
    matches = [RULE.fullmatch(word) for word in words]
    rules = tuple(
        GridRule(count=int(match[1]), length=int(match[2]), unit=match[3])
        for match in matches
        if match
    )
    if not rules or len(rules) < len(words) or len(rules) > MAX_RULES:
        wrong = next((word for word, match in zip(words, matches, strict=True) if not match), text)
        raise InvalidArgument(
            f"invalid retention grid {wrong[:40]!r}; use 1 to {MAX_RULES} rules such as 24x1h 7x1d "
            "4x1w 12x1mon (units: min, h, d, w, mon, y)",
            reason="BAD_GRID",
        )
    if sum(rule.count for rule in rules) > MAX_KEPT:
        raise InvalidArgument(
            f"the retention grid keeps more than {MAX_KEPT} snapshots", reason="BAD_GRID"
        )
    return rules


def show_grid(rules: Iterable[GridRule]) -> str:
    """Return the text of a grid: the reverse of `parse_grid`, with single spaces."""
    return " ".join(f"{rule.count}x{rule.length}{rule.unit}" for rule in rules)


def kept_times(times: Iterable[int], rules: Iterable[GridRule], now: int) -> set[int]:
    """Return the times of the snapshots that the grid keeps, all in seconds since 1970.

    Of several snapshots of one second all are kept, or none. A time after `now` is of a clock that
    was ahead: it is kept until then, and no rule counts it.
    """
    distinct = set(times)
    kept = {at for at in distinct if at > now}
    newest_first = sorted(distinct - kept, reverse=True)
    for rule in rules:
        newest: dict[int, int] = {}  # of each period
        for at in newest_first:
            period = rule.period(at)
            if period not in newest and len(newest) == rule.count:
                break
            newest.setdefault(period, at)
        kept.update(newest.values())
    return kept


def ordered_times(times: Iterable[int], now: int) -> list[int]:
    """Return the times of snapshots, given in the order in which they were taken, in that order.

    A time before that of an older snapshot is of a clock that was behind, or the older one is of a
    clock that was ahead: both get the later time, so that they are kept, or dropped, together. One
    after `now` stays as it is, and changes none that was taken later.
    """
    latest, ordered = 0, []
    for at in times:
        latest = max(latest, at) if at <= now else latest
        ordered.append(at if at > now else latest)
    return ordered


def month_of(at: int) -> int:
    """Return the number of months from the year 0 to the month of a time, UTC."""
    moment = time.gmtime(at)
    return moment.tm_year * 12 + moment.tm_mon - 1
