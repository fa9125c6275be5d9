"""The base of all requests: what a caller asks for, and the plan that it becomes.

A request is a frozen record of what was asked. The service calls its methods in this order:

    satisfied       does the record say so already? Then the service probes, and is done
    gather          what the plan needs to know of the host and of servers; may take time
    authorise       may this caller do it?         | these three in the write transaction that
    prerequisites   requests that must finish first | also claims the resources and stores the
    plan            the operation                   | operation
    preempts        what it may do to the operation that holds its claim

Each raises the error that the caller is shown. A new request is one class in one file; no other
place names it but the front ends that offer it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from zfsilod.model.record import Record, Stored, to_plain
from zfsilod.model.records import Action, Change, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.chap import Chap
    from zfsilod.model.identity import Caller
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

Inputs = TypeVar("Inputs")
Preemption = Literal["CANCEL", "RETRY_ROLLBACK", "ABANDON"]
"""What a request may do to the operation in its way: stop it, retry its rollback, give it up."""


class View:
    """What a plan sees: the records of one transaction, the settings, and whose operation it is."""

    def __init__(
        self,
        txn: Transaction,
        settings: Settings,
        *,
        operation_id: str,
        caller: Caller,
        now: int,
        boot_id: str,
        before: Sequence[Request[Any]] = (),
    ) -> None:
        self.txn = txn
        self.settings = settings
        self.operation_id = operation_id
        self.caller = caller
        self.now = now
        self.boot_id = boot_id
        self.before = before  # prerequisites that count as done


class Plan:
    """The actions of an operation, the records that change with it, and its claims."""

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

    def operation(self, request: Request[Any], view: View) -> Operation:
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
            caller=str(view.caller),
            boot_id=view.boot_id,
            created_at=view.now,
        )


class Request(Record, Generic[Inputs]):
    """A request to change something. `Inputs` is the type of what `gather` returns."""

    kind: ClassVar[str] = ""
    resource: ClassVar[tuple[str, str]] = ("volumes", "id")  # a collection, and the field of its id

    @property
    def subject(self) -> str:
        """The name of the resource that the request changes."""
        collection, field = self.resource
        return f"{collection}/{getattr(self, field)}"

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        """Return the facts that must hold for "already so"; None: the records deny it."""
        return None

    async def gather(self, context: Context, operation_id: str) -> Inputs:
        """Return what the plan needs to know besides the records."""
        return None  # type: ignore[return-value] # for requests whose Inputs are None

    def authorise(self, view: View) -> None:
        """Raise PermissionDenied or NotFound when the caller may not do this."""

    def prerequisites(self, view: View, inputs: Inputs) -> Sequence[Request[Any]]:
        """Return requests that must finish before this one, each an operation of its own.

        Raises what is wrong with this request itself, so that nothing is done in vain.
        """
        return ()

    def plan(self, view: View, inputs: Inputs) -> Plan:
        """Return the plan, from the records of one moment."""
        raise AssertionError(f"{self.kind} has no plan")

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        """Return what this request may do to the operation that holds its claim, in order."""
        return ()

    def preview(self) -> Request[Inputs]:
        """Return the request whose `gather` changes nothing, for a dry run."""
        return self

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
