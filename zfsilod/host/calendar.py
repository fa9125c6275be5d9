"""Calendar times of timers, as systemd-analyze(1) parses them: systemd.time(7)."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.run import Runner

TIMEOUT_S = 5
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
