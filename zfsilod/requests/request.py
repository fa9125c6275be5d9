"""What a request is: a request that looks at the host, and plans over the records.

A request is a frozen record of what the caller asked. `look` reads the host in a thread, `plan` is
pure over one transaction. Both raise what the caller shall see. The requests themselves are in give.py
(storage host), take.py (consumer) and hosts.py.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, ClassVar

from zfsilod.model.record import Record, Stored, to_plain
from zfsilod.model.records import Action, Change, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import Host
    from zfsilod.model.chap import Chap
    from zfsilod.model.settings import Settings
    from zfsilod.storage.store import Transaction


class View:
    """What a plan sees: the records at one moment, the settings, and whose operation it will be."""

    def __init__(
        self,
        txn: Transaction,
        settings: Settings,
        *,
        operation_id: str,
        caller: str,
        now: int,
        boot_id: str,
        before: Sequence[Request] = (),
    ) -> None:
        self.txn = txn
        self.settings = settings
        self.operation_id = operation_id
        self.caller = caller
        self.now = now
        self.boot_id = boot_id
        self.before = before  # what is to be taken for done already


class Plan:
    """What will happen: moves, the records that change with them, and what is claimed meanwhile."""

    def __init__(
        self,
        *,
        title: str,
        claims: tuple[str, ...],
        actions: tuple[Action, ...] = (),
        commit: tuple[Change, ...] = (),
        revert: tuple[Change, ...] = (),
        secrets: dict[str, Chap] | None = None,
    ) -> None:
        self.title = title
        self.claims = claims
        self.actions = actions
        self.commit = commit
        self.revert = revert
        self.secrets = secrets or {}

    def operation(self, request: Request, view: View) -> Operation:
        """Return the operation that carries the plan out."""
        title = self.title if self.actions or self.commit else f"{self.title}: already so"
        return Operation(
            id=view.operation_id,
            kind=request.kind,
            subject=request.subject,
            title=title,
            actions=self.actions,
            claims=self.claims,
            commit=self.commit,
            revert=self.revert,
            fingerprint=request.fingerprint(),
            caller=view.caller,
            boot_id=view.boot_id,
            created_at=view.now,
        )


class Request(Record):
    """A request to change something."""

    kind: ClassVar[str] = ""
    resource: ClassVar[tuple[str, str]] = (
        "volumes",
        "id",
    )  # a collection, and the field that names

    @property
    def subject(self) -> str:
        """The resource name of what it is about."""
        collection, field = self.resource
        return f"{collection}/{getattr(self, field)}"

    def recall(self, txn: Transaction) -> Request:
        """Return the request with what `look` needs to know of the records."""
        return self

    def look(self, host: Host, settings: Settings) -> object:
        """Read what the plan needs to know of the host, in a thread."""
        return None

    def plan(self, view: View, seen: object) -> Plan:
        """Return what will happen, from the records of one moment."""
        raise AssertionError(f"{self.kind} has no plan")

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        """Return what must be so for the request to be "already so"; None: records deny it."""
        return None

    def fingerprint(self) -> str:
        """Return a digest of kind and fields: an equal request joins a running one."""
        fields = [[name, to_plain(getattr(self, name))] for name in self.FIELDS]
        return hashlib.sha256(json.dumps([self.kind, fields]).encode()).hexdigest()


def put(record: Stored) -> Change:
    """Return the change that writes a record."""
    return Change(bucket=record.bucket(), key=record.key, record=record)


def drop(record: Stored) -> Change:
    """Return the change that removes a record."""
    return Change(bucket=record.bucket(), key=record.key)


def drop_secret(name: str) -> Change:
    """Return the change that removes sealed secrets."""
    return Change(bucket="secret", key=name)
