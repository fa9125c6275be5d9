"""`zfsiloctl audit`: what the journal has of who changed what, or was refused."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.table import show_table
from zfsilod.ctl.require_local import check_here
from zfsilod.host.run import Runner
from zfsilod.model.errors import CommandFailed, InvalidArgument
from zfsilod.security.audit import FIELDS, MARK

if TYPE_CHECKING:
    from argparse import Namespace

JOURNAL_S = 60.0
MOST = 10_000
GOOD = "DONE"
NO_TIME = re.compile(r"Failed to parse timestamp: ")


def audit(given: Namespace) -> None:
    """Print the records, oldest first."""
    check_here(given, "the audit is read")
    found = [each for each in _records(given.since) if _is_wanted(given, each)]
    if given.json:
        print(rpc_errors.dumps({"records": found}))
        return
    rows = [[each["time"], *(each.get(name.lower(), "") for name in FIELDS)] for each in found]
    show_table(("TIME", *FIELDS), rows)


def _records(since: str) -> list[dict[str, str]]:
    if since.startswith("-") and not since[1:2].isdigit():
        raise InvalidArgument(f"{since[:40]!r} is no time", reason="USAGE")
    words = ["journalctl", "--output=json", "--no-pager", f"--lines={MOST}"]
    words += [f"--since={since or 'today'}", f"{MARK}=1"]
    done = Runner()(words, timeout_s=JOURNAL_S, ok=(0, FAILED))
    if NO_TIME.match(done.stderr):
        raise InvalidArgument(
            f"{since[:40]!r} is no time: write it as for journalctl --since", reason="USAGE"
        )
    if done.rc != 0:  # `done.failed` would say it twice: the log of a command is its terminal
        raise CommandFailed(f"journalctl: {done.stderr.strip()}")
    return [_record(json.loads(line)) for line in done.stdout.splitlines()]


def _record(entry: dict[str, object]) -> dict[str, str]:
    """Return what an entry says, and which user wrote it."""
    moment = int(str(entry["__REALTIME_TIMESTAMP"])) // 1_000_000
    said = {name.lower(): str(entry.get(f"ZFSILO_{name}", "")) for name in FIELDS}
    shown = {name: value for name, value in said.items() if value}
    return (
        {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))}
        | shown
        | {"uid": str(entry.get("_UID", ""))}
    )


def _is_wanted(given: Namespace, record: dict[str, str]) -> bool:
    """Leave out what was asked to be, and what somebody else than root has written."""
    return (
        record.pop("uid") == "0"
        and given.caller in record.get("caller", "")
        and not (given.refused and record.get("outcome") == GOOD)
    )
