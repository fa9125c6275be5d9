"""Calendar times, with the output of systemd-analyze 252."""

from __future__ import annotations

import pytest

from tests.host.doubles import ScriptedRunner
from zfsilod.host.calendar import calendar_problem
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
