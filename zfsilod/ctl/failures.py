"""Error messages of zfsiloctl: a sentence, a hint where one helps, and the exit code."""

from __future__ import annotations

import sys

from zfsilod.ctl.output.table import clean
from zfsilod.model.lean import TYPE_CHECKING

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
# Of `up` and `down`, as units run them: sysexits.h, whose names systemctl shows.
NO_INPUT, NOT_AVAILABLE, TRY_AGAIN, NO_PERMISSION, BAD_CONFIG = 66, 69, 75, 77, 78
UNIT_EXIT_CODES = {
    "INVALID_ARGUMENT": BAD_CONFIG,
    "OUT_OF_RANGE": BAD_CONFIG,
    "NOT_FOUND": NO_INPUT,
    "PERMISSION_DENIED": NO_PERMISSION,
    "UNAUTHENTICATED": NO_PERMISSION,
    "RESOURCE_EXHAUSTED": TRY_AGAIN,
    "ABORTED": TRY_AGAIN,
    "UNAVAILABLE": NOT_AVAILABLE,
    "DEADLINE_EXCEEDED": TRY_AGAIN,
}
COMPLAINT = "zfsiloctl: "
FAILED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141

EXIT_CODES_HELP = """\
exit codes:
  0   done, or already in the requested state
  1   failed; the changes were rolled back, or the operation needs repair
  2   invalid request
  3   not found
  4   already exists, with other parameters
  5   not possible in this state, or in conflict with something that zfsilo does not own
  6   permission denied, or not authenticated
  7   not enough space, or a limit is reached
  8   busy: claimed by another operation
  9   the daemon, the server or the host does not answer
  10  timed out; the operation continues
  130 interrupted; a submitted operation continues
exit codes of up and down: see zfsilo-volume@.service(5)
"""

ON_ITS_SERVER = "on its server: "
UNPUBLISH = "zfsiloctl volume unpublish {volume}"

REJOIN = (
    "on {server}: zfsiloctl pki issue host HOST; here: zfsiloctl server forget {server}; "
    "zfsiloctl join HOST.join"
)

TIME_PROBLEMS = ("certificate has expired", "not yet valid")
"""Words of TLS about a server's certificate that the clock of this host makes invalid."""
REFUSED_BY_TIME = "CERTIFICATE_EXPIRED"  # the server's words about that of this host

HINTS = {
    "BAD_CERTIFICATE": (REJOIN,),
    "CERTIFICATE_REFUSED": (REJOIN,),
    "CLAIMED": ("zfsiloctl operation watch {operation}",),
    "CONNECTED": ("zfsiloctl volume stage {volume}",),
    "DEADLINE_EXCEEDED": ("zfsiloctl operation wait {operation}",),
    "MOUNTED": ("zfsiloctl volume unmount {volume} --all",),
    # A server does not tell whether a volume exists that a host may not use.
    "NOT_FOUND": (
        "on {server}, if {volume} exists there: zfsiloctl volume update {volume} --host HOST",
    ),
    "NOT_CONNECTED": ("zfsiloctl volume connect {volume}",),
    "NOT_ITS_HOST": (f"{ON_ITS_SERVER}zfsiloctl volume update {{volume}} --host {{host}}",),
    "NOT_PUBLISHED": (f"{ON_ITS_SERVER}zfsiloctl volume publish {{volume}} {{host}}",),
    "NO_DAEMON": ("systemctl start zfsilod.socket",),
    "NO_HOST": ("zfsiloctl pki issue host {host}, then on {host}: zfsiloctl join {host}.join",),
    "NO_IQN": ("zfsiloctl host update {host} --iqn IQN",),
    "OVERCOMMIT": ("zfsiloctl capacity",),
    "POOL_FULL": ("zfsiloctl capacity",),
    "PUBLISHED": (f"{UNPUBLISH} {{host}}", f"{UNPUBLISH} --all"),
    "ROLE": ("on the server: zfsiloctl pki issue user NAME --role {needs}; here: -H NAME.join",),
    "SECRETS_SHOWN": ("zfsiloctl rotate-secrets {volume} {host}",),
    "SERVER_CERTIFICATE": (REJOIN,),
    "SESSION_LIVE": ("on {host}: zfsiloctl volume disconnect {volume}",),
    "STAGED": ("zfsiloctl volume unstage {volume}",),
    "STALE_EPOCH": ("zfsiloctl down {volume}; zfsiloctl up {volume}",),
    "STILL_RUNNING": ("zfsiloctl operation wait {operation}",),
    "TOOL_MISSING": ("apt install {package}",),
    "USAGE": ("{usage}",),
}
"""By reason, in order of preference; a hint is skipped when one of its facts is unknown."""


def complain(error: ZfsiloError, *, code: int | None = None) -> int:
    """Print an error with its hint, and return the exit code, by default that of its kind."""
    message = error.message.replace("\n", "\n  ")
    sys.stderr.write(f"{COMPLAINT}{message}\n")
    if outcome := error.facts.get("outcome"):
        sys.stderr.write(f"  {clean(outcome)}\n")
    hint = hint_for(error)
    if hint and hint not in message:
        sys.stderr.write(f"  try: {hint}\n")
    return EXIT_CODES.get(error.code, FAILED) if code is None else code


def unit_exit_code(error: ZfsiloError, *, clock_is_right: bool) -> int:
    """Return the exit code of `up` and `down`; some end the retries of the unit.

    They are those that no retry mends. A wrong clock is set later, and so are the hosts of a volume
    on its server.
    """
    code = UNIT_EXIT_CODES.get(error.code, FAILED)
    by_time = not clock_is_right and any(
        words in error.message for words in (*TIME_PROBLEMS, REFUSED_BY_TIME)
    )
    elsewhere = code == NO_INPUT and "server" in error.facts
    return NOT_AVAILABLE if by_time or elsewhere else code


def hint_for(error: ZfsiloError) -> str:
    """Return the command that may help, or ""."""
    for template in HINTS.get(error.reason, ()):
        try:
            hint = template.format_map(error.facts)
        except KeyError:
            continue
        server = error.facts.get("server", "")
        command = hint.removeprefix(ON_ITS_SERVER)
        if not server or command.startswith("on "):
            return hint
        return f"on {server}: {command}"  # the server refused it, and there it can be changed
    if "outcome" in error.facts:  # of an operation that failed
        return f"zfsiloctl operation show {error.facts['operation']}"
    return ""
