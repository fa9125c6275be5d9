"""`zfsiloctl audit`: the journal's audit records of allowed and refused changes."""

from __future__ import annotations

import json
import re
import sys

from zfsilod.ctl.failures import FAILED
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import show_table
from zfsilod.ctl.require_local import check_root
from zfsilod.ctl.times import rfc3339
from zfsilod.host.run import Runner
from zfsilod.model.errors import CommandFailed, InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.security.audit import FIELDS, MARK

if TYPE_CHECKING:
    from argparse import Namespace

JOURNAL_S = 60.0
MAX_RECORDS = 10_000
DONE = "DONE"
ROOT = "_UID=0"  # a field of the journal itself: no writer can set it
BAD_TIME = re.compile(r"Failed to parse timestamp: ")


def audit(args: Namespace) -> None:
    """Print the audit records that root wrote, newest first."""
    check_root(args, "audit")
    limit = min(args.limit, MAX_RECORDS)
    entries = _entries(args.since)
    records = [record for record in map(_record, entries) if _is_wanted(args, record)]
    more = len(records) > limit or len(entries) > MAX_RECORDS
    records = records[:limit]
    if args.json:
        print(dumps({"records": records, "more": more}))
        return
    rows = [
        [shown["time"], *(shown.get(name.lower(), "") for name in FIELDS)]
        for shown in map(_in_words, records)
    ]
    show_table(("TIME", *FIELDS), rows)
    if more:
        hint = "use --since, --caller or --refused" if limit == MAX_RECORDS else "use --limit"
        print(f"zfsiloctl: there are older records; {hint}", file=sys.stderr)


def _in_words(record: dict[str, str]) -> dict[str, str]:
    """Return a record with its outcome in the words of `operation list`."""
    return record | {"outcome": record.get("outcome", "").lower().replace("_", " ")}


def _entries(since: str) -> list[dict[str, object]]:
    """Return the newest audit records of root in the journal, one more than are shown."""
    if since.startswith("-") and not since[1:2].isdigit():
        raise InvalidArgument(f"invalid time {since[:40]!r}", reason="USAGE")
    words = ["journalctl", "--output=json", "--no-pager", "--reverse"]
    # Only these fields: 10,000 whole records are more than a tool may print.
    words += [f"--output-fields={','.join((*(f'ZFSILO_{name}' for name in FIELDS), '_UID'))}"]
    words += [f"--lines={MAX_RECORDS + 1}", f"--since={since or 'today'}", ROOT, f"{MARK}=1"]
    done = Runner()(words, timeout_s=JOURNAL_S, ok=(0, FAILED))
    if BAD_TIME.match(done.stderr):
        raise InvalidArgument(
            f"invalid time {since[:40]!r}; write it as for journalctl --since", reason="USAGE"
        )
    if done.rc != 0:  # not `done.failed`, which would also log it to the terminal
        raise CommandFailed(f"journalctl: {done.stderr.strip()}")
    # A text may have line separators of Unicode, which are part of it.
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def _record(entry: dict[str, object]) -> dict[str, str]:
    """Return the fields of a journal entry, with the user that wrote it."""
    moment = int(str(entry["__REALTIME_TIMESTAMP"])) // 1_000_000
    fields = {name.lower(): _text(entry.get(f"ZFSILO_{name}")) for name in FIELDS}
    return (
        {"time": rfc3339(moment)}
        | {name: value for name, value in fields.items() if value}
        | {"uid": _text(entry.get("_UID"))}
    )


def _text(value: object) -> str:
    """Return a field of the journal; one with unprintable bytes is a list of these."""
    if isinstance(value, list) and all(isinstance(byte, int) for byte in value):
        return bytes(value).decode(errors="replace")
    return value if isinstance(value, str) else ""


def _is_wanted(args: Namespace, record: dict[str, str]) -> bool:
    """Tell whether root wrote the record, and it matches the arguments."""
    return (
        record.pop("uid") == "0"
        and args.caller in record.get("caller", "")
        and not (args.refused and record.get("outcome") == DONE)
    )
