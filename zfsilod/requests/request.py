"""What a request is: a request that looks at the host, and plans over the records.

A request is a frozen record of what the caller asked. `look` reads the host in a thread, `plan` is
pure over one transaction. Both raise what the caller shall see. The requests themselves are in give.py
(storage host), take.py (consumer) and hosts.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, ClassVar

from zfsilod.model.errors import Busy, InvalidArgument
from zfsilod.model.record import Pairs, Record, Stored, to_plain
from zfsilod.model.records import Action, Change, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.engine.plans import Export
    from zfsilod.host import Host
    from zfsilod.model.chap import Chap
    from zfsilod.storage.store import Transaction

ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
UNIT_SUFFIXES = (
    ".service",
    ".socket",
    ".device",
    ".mount",
    ".automount",
    ".swap",
    ".target",
    ".path",
    ".timer",
    ".slice",
    ".scope",
)
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
MAX_LABELS = 64
MAX_LABEL_BYTES = 256
ETAG = "the record changed since it was read (etag {asked}, now {now}): read it again"


class Settings(Record):
    """What plans need of the configuration."""

    host_id: str
    root: str  # dataset below which volumes are made; "": no storage host
    export: Export
    overcommit: float = 10.0
    reserve: float = 0.05  # of the root: below it nothing is created or grown
    reserve_warning: float = 0.1
    volblocksize: int = 16384
    trash_retention_s: int = 0  # how long a deleted volume can be undeleted
    max_attachments: int = 0
    zone: str = "default"
    node_paths: tuple[str, ...] = ()  # below which the role node may stage and mount


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


def check_id(value: str, what: str = "id") -> str:
    """Return a valid id, else raise InvalidArgument."""
    if not ID.fullmatch(value):
        raise InvalidArgument(
            f"{value[:140]!r} is no {what}: 1 to 128 of a-z 0-9 . _ -, beginning and ending with "
            "a letter or digit",
            reason="BAD_ID",
        )
    if value.endswith(UNIT_SUFFIXES):
        raise InvalidArgument(
            f"the {what} {value} ends like a unit of systemd: choose another name",
            reason="BAD_ID",
            id=value,
        )
    return value


def check_labels(labels: Pairs) -> Pairs:
    """Return valid labels, else raise InvalidArgument."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"{len(labels)} labels are too many: at most {MAX_LABELS}")
    for name, value in labels:
        if not LABEL.fullmatch(name) or len(value.encode()) > MAX_LABEL_BYTES:
            raise InvalidArgument(f"the label {name[:80]!r} is malformed or its value too long")
    return tuple(sorted(labels))


def check_etag(asked: str, revision: int) -> None:
    """Raise Busy when the caller read another revision than the one that stands now."""
    if asked and asked != str(revision):
        raise Busy(ETAG.format(asked=asked[:40], now=revision), reason="ETAG")


def put(record: Stored) -> Change:
    """Return the change that writes a record."""
    return Change(bucket=record.bucket(), key=record.key, record=record)


def drop(record: Stored) -> Change:
    """Return the change that removes a record."""
    return Change(bucket=record.bucket(), key=record.key)


def drop_secret(name: str) -> Change:
    """Return the change that removes sealed secrets."""
    return Change(bucket="secret", key=name)
