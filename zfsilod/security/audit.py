"""The audit: one journal record for each change of something, made or refused.

What becomes an operation is recorded when that ends, with its outcome; what was refused before, and
what is no operation, by the front end that it came to. `zfsiloctl audit` reads the records. They
carry no secrets: who, from where, what, about what, and how it ended.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.records import Operation

MARK = "ZFSILO_AUDIT"
OF_UNIT = "OBJECT_SYSTEMD_UNIT"  # by which root tells systemctl(1) what is about another unit
FIELDS = ("CALLER", "ACTION", "SUBJECT", "OPERATION", "OUTCOME", "REASON")
MAX_TEXT = 300
MAX_KNOWN = 4096  # operations whose end was recorded; systemd may tell of it twice
READING = ("Check", "Get", "List", "Probe", "ServerReflectionInfo", "Stats", "Wait", "Watch")

Write = Callable[[str, dict[str, str]], None]

log = logging.getLogger(__name__)


def is_change(method: str) -> bool:
    """Tell whether a method changes something, or hands out a secret; /package.Service/Method."""
    return not method.rpartition("/")[2].startswith(READING)


def to_log(sentence: str, fields: dict[str, str]) -> None:
    """Write a record where there is no journal."""
    log.info("%s %s", sentence, fields)


def to_journal(sentence: str, fields: dict[str, str]) -> None:
    """Write a record to the journal."""
    from systemd import journal

    journal.send(sentence, SYSLOG_IDENTIFIER="zfsilod", **fields)


class Audit:
    """Writes records."""

    def __init__(self, write: Write = to_log) -> None:
        self.write = write
        self._known: OrderedDict[str, None] = OrderedDict()

    def operation(self, operation: Operation) -> None:
        """Record an operation, once it has ended or cannot go on."""
        if not operation.ended and operation.state != "NEEDS_REPAIR":
            return
        key = f"{operation.id} {operation.state}"
        if key in self._known:
            return
        self._known[key] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        self.record(
            operation.caller,
            operation.kind,
            operation.subject,
            outcome=operation.state,
            operation=operation.id,
            reason=operation.failure.reason if operation.failure else "",
            unit=_unit(operation.subject),
        )

    def refused(self, caller: str, action: str, subject: str, error: ZfsiloError) -> None:
        """Record what was refused; an operation that failed is recorded as such."""
        if "operation" not in error.facts:
            self.record(caller, action, subject, outcome=error.code, reason=error.reason)

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
        """Write one record; `systemctl status` of `unit` shows it too."""
        values = (caller, action, subject, operation, outcome, reason)
        fields = {f"ZFSILO_{n}": _line(v) for n, v in zip(FIELDS, values, strict=True) if v}
        sentence = f"{caller}: {action} {subject}: {outcome.lower().replace('_', ' ')}"
        if outcome == "NEEDS_REPAIR":
            sentence += f": zfsiloctl operation repair {operation}"
        resource = {OF_UNIT: unit} if unit else {}
        self.write(_line(sentence), {MARK: "1", **fields, **resource})


def _unit(subject: str) -> str:
    """Return the unit that keeps a volume up, whether it is in use or not."""
    collection, _, name = subject.partition("/")
    return f"zfsilo-volume@{name}.service" if collection == "volumes" else ""


def _line(text: str) -> str:
    """Return a text of a caller as one short line."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown[:MAX_TEXT]
