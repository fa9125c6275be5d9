"""What a person is told when something fails: a sentence, perhaps a hint, and the exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfsilod.ctl.output.table import clean

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError

EXIT_CODES = {
    "INTERNAL": 1,
    "UNKNOWN": 1,
    "INVALID_ARGUMENT": 2,
    "OUT_OF_RANGE": 2,
    "NOT_FOUND": 3,
    "ALREADY_EXISTS": 4,
    "FAILED_PRECONDITION": 5,
    "PERMISSION_DENIED": 6,
    "UNAUTHENTICATED": 6,
    "RESOURCE_EXHAUSTED": 7,
    "ABORTED": 8,
    "UNAVAILABLE": 9,
    "DEADLINE_EXCEEDED": 10,
}
COMPLAINT = "zfsiloctl: "
FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES_HELP = """\
exit codes:
  0   done, or it was so already
  1   it failed; what was begun has been taken back, or needs repair
  2   the request is wrong
  3   there is no such thing
  4   it exists already, with other parameters
  5   right request, wrong state, or something there is not zfsilo's
  6   not allowed, or not known
  7   no room
  8   busy: another operation is at work on it
  9   the daemon, the server or the host does not answer
  10  time is up, and the operation goes on
  130 interrupted; an operation that was begun goes on
"""

ON_ITS_SERVER = "on its server: "
UNPUBLISH = "zfsiloctl volume unpublish {volume}"

HINTS = {
    "CLAIMED": ("zfsiloctl operation watch {operation}",),
    "CONNECTED": ("zfsiloctl volume stage {volume}",),
    "DEADLINE_EXCEEDED": ("zfsiloctl operation wait {operation}",),
    "MOUNTED": ("zfsiloctl volume unmount {volume} --all",),
    "NOT_CONNECTED": ("zfsiloctl volume connect {volume}",),
    "NOT_ITS_HOST": (f"{ON_ITS_SERVER}zfsiloctl volume update {{volume}} --host {{host}}",),
    "NOT_PUBLISHED": (f"{ON_ITS_SERVER}zfsiloctl volume publish {{volume}} {{host}}",),
    "NO_DAEMON": ("systemctl start zfsilod.socket",),
    "NO_HOST": ("zfsiloctl host add {host} --iqn IQN",),
    "NO_IQN": ("zfsiloctl host update {host} --iqn IQN",),
    "OVERCOMMIT": ("zfsiloctl capacity",),
    "POOL_FULL": ("zfsiloctl capacity",),
    "PUBLISHED": (f"{UNPUBLISH} {{host}}", f"{UNPUBLISH} --all"),
    "SESSION_LIVE": ("on {host}: zfsiloctl volume disconnect {volume}",),
    "STAGED": ("zfsiloctl volume unstage {volume}",),
    "STALE_EPOCH": ("zfsiloctl down {volume}; zfsiloctl up {volume}",),
    "STILL_RUNNING": ("zfsiloctl operation wait {operation}",),
    "TOOL_MISSING": ("apt install {package}",),
    "USAGE": ("{usage}",),
}
"""By reason, the best first; those whose facts are not all known are passed over."""


def complain(error: ZfsiloError) -> int:
    """Tell a person what failed, and return the exit code."""
    message = error.message.replace("\n", "\n  ")
    sys.stderr.write(f"{COMPLAINT}{message}\n")
    if outcome := error.facts.get("outcome"):
        sys.stderr.write(f"  {clean(outcome)}\n")
    hint = hint_for(error)
    if hint and hint not in message:
        sys.stderr.write(f"  try: {hint}\n")
    return EXIT_CODES.get(error.code, FAILED)


def hint_for(error: ZfsiloError) -> str:
    """Return what to type next, or ""."""
    for hint in HINTS.get(error.reason, ()):
        try:
            found = hint.format_map(error.facts)
        except KeyError:
            continue
        return _placed(found, error.facts.get("server", ""))
    if "outcome" in error.facts:  # of an operation that failed
        return f"zfsiloctl operation show {error.facts['operation']}"
    return ""


def _placed(hint: str, server: str) -> str:
    """Return a hint with its place: what a server refused is mended there, not where we are."""
    hint_there = hint.removeprefix(ON_ITS_SERVER)
    if not server or hint_there.startswith("on "):
        return hint
    return f"on {server}: {hint_there}"
