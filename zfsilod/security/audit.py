"""Audit: one journal record per mutation, allowed or refused.

An operation is recorded when it ends, with its outcome. The front ends record calls that are
refused before they become an operation, and mutations without one. A record has caller, origin,
action, resource and outcome, and no secrets. `zfsiloctl audit` reads the records.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from zfsilod.model.records import journal_fields

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.records import Operation

MARK = "ZFSILO_AUDIT"
OF_UNIT = "OBJECT_SYSTEMD_UNIT"  # adds a record to the status of a unit: systemd.journal-fields(7)
FIELDS = ("CALLER", "ACTION", "SUBJECT", "OPERATION", "OUTCOME", "REASON")
MAX_TEXT = 300
REFUSALS = 100  # refused calls of one caller that are recorded; then one more each REFUSAL_S
REFUSAL_S = 1.0
MAX_CALLERS = 1024
MAX_SUMMARIES = 10  # callers that one summary names
NO_IDENTITY = "callers without an identity"
SUMMARY_S = 60.0  # between two summaries of the refused calls that were not recorded
# A client that connects asks whether the volume is published to it, and publishes it if not.
ANSWERS = {("FetchConnection", "NOT_PUBLISHED")}
MAX_KNOWN = 4096  # recorded operations: systemd may report the end of one twice
READING = (
    "Check",
    "Get",
    "List",
    "Probe",
    "Read",
    "ServerReflectionInfo",
    "Stats",
    "Wait",
    "Watch",
)

Write = Callable[[str, dict[str, str]], None]

log = logging.getLogger(__name__)


def is_change(method: str) -> bool:
    """Tell whether /package.Service/Method mutates something or returns a secret."""
    return not method.rpartition("/")[2].startswith(READING)


def to_log(sentence: str, fields: dict[str, str]) -> None:
    """Write a record to the log, when there is no journal."""
    log.info("%s %s", sentence, fields)


def to_journal(sentence: str, fields: dict[str, str]) -> None:
    """Write a record to the journal."""
    from systemd import journal

    journal.send(sentence, SYSLOG_IDENTIFIER="zfsilod", **fields)


class Audit:
    """Writes audit records."""

    def __init__(self, write: Write = to_log) -> None:
        self.write = write
        self._known: OrderedDict[str, None] = OrderedDict()
        self._refusals: OrderedDict[str, float] = OrderedDict()  # when all may be recorded again
        self._omitted: Counter[str] = Counter()  # refused calls that were not recorded, by caller
        self._summary_due = 0.0

    def operation(self, operation: Operation) -> None:
        """Record an operation once, when it has ended or needs repair."""
        if not operation.ended and operation.state != "NEEDS_REPAIR":
            return
        key = f"{operation.id} {operation.state}"
        if key in self._known:
            return
        self._known[key] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        collection, _slash, name = operation.subject.partition("/")
        self.record(
            operation.caller,
            operation.kind,
            operation.subject,
            outcome=operation.state,
            operation=operation.id,
            reason=operation.failure.reason if operation.failure else "",
            unit=f"zfsilo-volume@{name}.service" if collection == "volumes" else "",
        )

    def refused(self, caller: str, action: str, subject: str, error: ZfsiloError) -> None:
        """Record a refused call, unless its operation is recorded, or the refusal is an answer.

        A caller may be refused as often as it likes, so records have a rate: all callers without an
        identity share one. The rest is counted, and recorded in one summary.
        """
        if "operation" in error.facts or (action, error.reason) in ANSWERS:
            return
        key = NO_IDENTITY if error.code == "UNAUTHENTICATED" else caller
        if self._may_record(key):
            self.record(caller, action, subject, outcome=error.code, reason=error.reason)
        else:
            self._omitted[key] += 1
        self.summarise()

    def summarise(self) -> None:
        """Record how many refused calls were not recorded, at most once in SUMMARY_S."""
        now = time.monotonic()
        if not self._omitted or now < self._summary_due:
            return
        self._summary_due = now + SUMMARY_S
        for caller, count in self._omitted.most_common(MAX_SUMMARIES):
            self.record(caller, "refused-calls", str(count), outcome="OMITTED")
        self._omitted.clear()

    def _may_record(self, caller: str) -> bool:
        now = time.monotonic()
        due = max(now, self._refusals.pop(caller, now)) + REFUSAL_S
        allowed = due - now <= REFUSALS * REFUSAL_S
        self._refusals[caller] = due if allowed else due - REFUSAL_S
        if len(self._refusals) > MAX_CALLERS:
            self._refusals.popitem(last=False)
        return allowed

    def record(
        self,
        caller: str,
        action: str,
        subject: str,
        *,
        outcome: str,
        operation: str = "",
        reason: str = "",
        unit: str = "",
    ) -> None:
        """Write one record, shown by `systemctl status` of `unit` too."""
        values = (caller, action, subject, operation, outcome, reason)
        fields = {
            f"ZFSILO_{field}": _line(value)
            for field, value in zip(FIELDS, values, strict=True)
            if value
        }
        fields |= journal_fields(_line(subject)) if subject else {}
        what = f"{action} {subject}" if subject else action
        sentence = f"{caller}: {what}: {outcome.lower().replace('_', ' ')}"
        if outcome == "NEEDS_REPAIR":
            sentence += f": zfsiloctl operation repair {operation}"
        resource = {OF_UNIT: unit} if unit else {}
        self.write(_line(sentence), {MARK: "1", **fields, **resource})


def _line(text: str) -> str:
    """Return a text of a caller as one short line."""
    return (text if text.isprintable() else ascii(text)[1:-1])[:MAX_TEXT]
