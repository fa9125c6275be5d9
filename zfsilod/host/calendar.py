"""Calendar times of timers, as systemd-analyze(1) parses them: systemd.time(7)."""

from __future__ import annotations

import re
from datetime import datetime

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.run import Runner

TIMEOUT_S = 5
# With a time zone other than UTC each time is followed by one in UTC.
MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)? UTC")
INVALID = 1  # exit code for a text that cannot be parsed


def calendar_problem(run: Runner, calendar: str) -> str:
    """Return why OnCalendar= does not take this text, or it is never due; "": it is valid.

    Raises CommandFailed for any other failure, and Unavailable when it takes too long.
    """
    argv = ["systemd-analyze", "calendar", "--iterations=1", "--", calendar]
    done = run(argv, timeout_s=TIMEOUT_S, ok=(0, INVALID))
    if done.rc == INVALID:
        return "systemd cannot parse it"
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    due = {name.strip(): value.strip() for name, _colon, value in lines}
    return "it is never due" if due.get("Next elapse") == "never" else ""


def calendar_due(run: Runner, calendar: str, after: int) -> int:
    """Return when OnCalendar= is due for the second time after a time; 0: never.

    Raises CommandFailed, and Unavailable when it takes too long.
    """
    words = ("systemd-analyze", "calendar", f"--base-time=@{after}", "--iterations=2")
    done = run([*words, "--", calendar], timeout_s=TIMEOUT_S)
    times = MOMENT.findall(done.stdout)
    return int(datetime.fromisoformat(f"{times[1]}+00:00").timestamp()) if len(times) > 1 else 0
