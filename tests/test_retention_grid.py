"""Retention grids: parsing, the properties of what they keep, and a simulated month."""

from __future__ import annotations

import time
from calendar import timegm

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.retention_grid import GridRule, kept_times, parse_grid, show_grid

HOUR, DAY = 3600, 86400
GRID = parse_grid("24x1h 7x1d 4x1w 12x1mon")
LATER = 1 << 33  # a `now` after all times of a test
TIMES = st.lists(st.integers(0, 40 * 365 * DAY), max_size=60)
RULES = st.lists(
    st.builds(
        GridRule,
        count=st.integers(1, 30),
        length=st.integers(1, 12),
        unit=st.sampled_from(["min", "h", "d", "w", "mon", "y"]),
    ),
    min_size=1,
    max_size=5,
).map(tuple)


def utc(text: str) -> int:
    """Return the seconds since 1970 of "2026-03-01 02:30"."""
    return timegm(time.strptime(text, "%Y-%m-%d %H:%M"))


def shown(times: set[int]) -> list[str]:
    return [time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in sorted(times)]


@given(TIMES, RULES)
def test_a_grid_keeps_some_of_the_snapshots_and_the_newest(
    times: list[int], rules: tuple[GridRule, ...]
) -> None:
    kept = kept_times(times, rules, LATER)
    assert kept <= set(times)
    assert len(kept) <= sum(rule.count for rule in rules)
    assert not times or max(times) in kept


@given(TIMES, RULES)
def test_what_is_kept_stays_when_the_grid_is_applied_again(
    times: list[int], rules: tuple[GridRule, ...]
) -> None:
    kept = kept_times(times, rules, LATER)
    assert kept_times(kept, rules, LATER) == kept


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 50 * DAY), st.booleans()), max_size=60), RULES)
def test_how_often_the_grid_is_applied_does_not_matter(
    steps: list[tuple[int, bool]], rules: tuple[GridRule, ...]
) -> None:
    """Each step is the time to the next snapshot, and whether the grid is applied after it."""
    at, everything = 0, set()
    pruned: set[int] = set()
    for pause, applied in steps:
        at += pause
        everything.add(at)
        pruned.add(at)
        if applied:
            pruned = kept_times(pruned, rules, at)
    assert kept_times(pruned, rules, at) == kept_times(everything, rules, at)


@given(TIMES, RULES)
def test_each_rule_keeps_the_newest_of_its_newest_periods(
    times: list[int], rules: tuple[GridRule, ...]
) -> None:
    """The same by another way: sort the periods, and take the last of each."""
    expected = set()
    for rule in rules:
        periods = sorted({rule.period(at) for at in times})[-rule.count :]
        expected |= {max(at for at in times if rule.period(at) == one) for one in periods}
    assert kept_times(times, rules, LATER) == expected


@example(times=[100, 101], rules=parse_grid("1x1min"), now=100)
@given(TIMES, RULES, st.integers(0, 40 * 365 * DAY))
def test_a_snapshot_of_the_future_is_kept_and_not_counted(
    times: list[int], rules: tuple[GridRule, ...], now: int
) -> None:
    future = {at for at in times if at > now}
    kept = kept_times(times, rules, now)
    assert future <= kept
    assert kept == future | kept_times(set(times) - future, rules, now)


@given(RULES)
def test_a_grid_is_read_as_it_is_written(rules: tuple[GridRule, ...]) -> None:
    assert parse_grid(show_grid(rules)) == rules


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "24", "x1h", "0x1h", "24x0h", "24x1m", "24x1H", "1.5x1h", "24x1h,7x1d"),
        *("99999x1h", "9999x1h 9999x1d", "1x1h " * 17, "24x1h foo", "-1x1h", "\uff11x1h"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_grid(text)
    assert refused.value.reason == "BAD_GRID"


def test_periods_begin_at_hours_days_mondays_and_months_of_utc() -> None:
    monday = utc("2026-03-02 00:00")
    week, month, year = (GridRule(count=1, length=1, unit=unit) for unit in ("w", "mon", "y"))
    assert week.period(monday) == week.period(monday + 7 * DAY - 1) == week.period(monday - 1) + 1
    assert month.period(utc("2026-03-01 00:00")) == month.period(utc("2026-02-28 23:59")) + 1
    assert year.period(utc("2026-01-01 00:00")) == year.period(utc("2025-12-31 23:59")) + 1
    two = GridRule(count=1, length=2, unit="mon")
    assert two.period(utc("2026-01-31 00:00")) == two.period(utc("2026-02-28 00:00"))
    assert GridRule(count=1, length=6, unit="h").period(utc("2026-01-01 05:59")) == (
        utc("2026-01-01 00:00") // (6 * HOUR)
    )


def test_an_outage_does_not_empty_a_grid() -> None:
    start = utc("2026-01-01 00:00")
    hourly = {start + hour * HOUR for hour in range(100)}
    kept = kept_times(hourly, parse_grid("24x1h"), start + 365 * DAY)
    assert kept == set(sorted(hourly)[-24:])


def test_a_month_of_hours_keeps_exactly_the_grid() -> None:
    """The month is March 2026, which ends on a Tuesday; the grid is applied every hour."""
    start = utc("2026-02-01 00:00")
    present: set[int] = set()
    for hour in range((28 + 31) * 24):
        now = start + hour * HOUR
        present = kept_times(present | {now}, GRID, now)
    last_day = [f"2026-03-31 {hour:02}:00" for hour in range(24)]
    days = [f"2026-03-{day} 23:00" for day in range(25, 31)]
    weeks = ["2026-03-15 23:00", "2026-03-22 23:00", "2026-03-29 23:00"]  # Sundays
    assert shown(present) == sorted({*last_day, *days, *weeks, "2026-02-28 23:00"})
