"""Calendar times, with the output of systemd-analyze 252."""

from __future__ import annotations

import pytest

from tests.host.doubles import ScriptedRunner
from zfsilod.host.calendar import calendar_due, calendar_problem
from zfsilod.model.errors import CommandFailed

DAILY = (
    "  Original form: daily\nNormalized form: *-*-* 00:00:00\n"
    "    Next elapse: Tue 2026-12-01 00:00:00 UTC\n       From now: 21h left\n"
)
PAST = "  Original form: 2020-01-01\nNormalized form: 2020-01-01 00:00:00\n    Next elapse: never\n"


@pytest.mark.parametrize(
    ("calendar", "code", "output", "problem"),
    [
        ("daily", 0, DAILY, ""),
        ("2020-01-01", 0, PAST, "it is never due"),
        ("foo", 1, "", "systemd cannot parse it"),
    ],
)
def test_systemd_says_whether_a_calendar_is_valid(
    calendar: str, code: int, output: str, problem: str
) -> None:
    argv = f"systemd-analyze calendar --iterations=1 -- {calendar}"
    run = ScriptedRunner((argv, code, output, ""))
    assert calendar_problem(run, calendar) == problem
    assert not run.script


def test_another_failure_is_not_an_invalid_calendar() -> None:
    argv = "systemd-analyze calendar --iterations=1 -- daily"
    with pytest.raises(CommandFailed):
        calendar_problem(ScriptedRunner((argv, 203, "", "")), "daily")


TWICE = (
    "  Original form: daily\nNormalized form: *-*-* 00:00:00\n"
    "    Next elapse: Mon 2025-12-01 00:00:00 UTC\n       From now: 11 months 30 days ago\n"
    "       Iter. #2: Tue 2025-12-02 00:00:00 UTC\n       From now: 11 months 29 days ago\n"
)
ELSEWHERE = (
    "  Original form: daily\nNormalized form: *-*-* 00:00:00\n"
    "    Next elapse: Mon 2025-12-01 00:00:00 CET\n"
    "       (in UTC): Sun 2025-11-30 23:00:00 UTC\n       From now: 11 months 30 days ago\n"
    "       Iter. #2: Tue 2025-12-02 00:00:00 CET\n"
    "       (in UTC): Mon 2025-12-01 23:00:00 UTC\n       From now: 11 months 29 days ago\n"
)
ONCE = (
    "  Original form: 2027-01-01\nNormalized form: 2027-01-01 00:00:00\n"
    "    Next elapse: Fri 2027-01-01 00:00:00 UTC\n       From now: 1 month 0 days left\n"
)


@pytest.mark.parametrize(
    ("output", "due"), [(TWICE, 1764633600), (ELSEWHERE, 1764630000), (ONCE, 0), (PAST, 0)]
)
def test_when_a_calendar_is_due_for_the_second_time(output: str, due: int) -> None:
    argv = "systemd-analyze calendar --base-time=@1764500000 --iterations=2 -- daily"
    run = ScriptedRunner((argv, 0, output, ""))
    assert calendar_due(run, "daily", 1764500000) == due
    assert not run.script
