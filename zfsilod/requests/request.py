"""The base class of all requests, the plan of a request, and the view that a plan is made from.

A request is a frozen record with the parameters of a call. The service calls its methods in this
order:

    resolved        the same request with real paths
    satisfied       the facts that must hold for "already so"; the service probes them
    gather          the inputs of the plan, from the host and from servers; may take seconds
    authorise       may this caller do it?          | these three in the write transaction that
    prerequisites   requests that must finish first | also claims the resources and stores the
    plan            the operation                   | operation
    preempts        the actions allowed on an operation that holds a needed claim
    joined          the record to write when it joins an equal operation, which runs

Each raises the error that the caller gets. A new request is one class in one file; besides it, only
the front ends that offer it name the class.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

from zfsilod.model.record import Record, Stored, to_plain
from zfsilod.model.records import Action, Change, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.chap import Chap
    from zfsilod.model.disk_key import DiskKey
    from zfsilod.model.identity import Caller
    from zfsilod.model.settings import Settings
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

Inputs = TypeVar("Inputs")
R = TypeVar("R", bound=Stored)
Preemption = Literal["CANCEL", "RETRY_ROLLBACK", "ABANDON"]
"""An action on an operation that holds a needed claim."""


class View:
    """The records of one transaction, with the settings and the origin of the operation."""

    def __init__(
        self,
        txn: Transaction,
        settings: Settings,
        *,
        operation_id: str,
        caller: Caller,
        now: int,
        boot_id: str,
        clock_trusted: bool = False,
        finished: Sequence[Request[Any]] = (),
    ) -> None:
        self.txn = txn
        self.settings = settings
        self.operation_id = operation_id
        self.caller = caller
        self.now = now
        self.boot_id = boot_id
        self.clock_trusted = clock_trusted  # a retention may begin at `now`
        self.finished = finished  # prerequisites that a dry run takes as finished


class Growth(NamedTuple):
    """By how many bytes an operation grows volumes: the space for others depends on it."""

    reserves: int = 0  # of volumes that are fully reserved
    promises: int = 0  # of thin volumes


class Plan:
    """The actions, the record changes and the claims of an operation.

    `commit`: the changes when it is done; `revert`: when it is rolled back; `secrets`: stored with
    the operation, by name; `growth`: of the volumes.
    """

    def __init__(
        self,
        *,
        title: str,
        claims: tuple[str, ...],
        actions: tuple[Action, ...] = (),
        commit: tuple[Change, ...] = (),
        revert: tuple[Change, ...] = (),
        secrets: dict[str, Chap | DiskKey] | None = None,
        growth: Growth | None = None,
    ) -> None:
        self.title = title
        self.claims = claims
        self.actions = actions
        self.commit = commit
        self.revert = revert
        self.secrets = secrets or {}
        self.growth = growth or Growth()

    @classmethod
    def joined(cls, title: str, plans: Sequence[Plan]) -> Plan:
        """Return one plan of plans that follow each other; the last change of a record counts."""
        changes = {(one.bucket, one.key): one for plan in plans for one in plan.commit}
        return cls(
            title=title,
            claims=tuple(dict.fromkeys(claim for plan in plans for claim in plan.claims)),
            actions=tuple(action for plan in plans for action in plan.actions),
            commit=tuple(changes.values()),
            revert=tuple(change for plan in plans for change in plan.revert),
            secrets={name: chap for plan in plans for name, chap in plan.secrets.items()},
        )

    def leaves(self, kind: type[R], before: R | None = None) -> R:
        """Return the record of a class as the plan leaves it: `before`, unless it is written."""
        written = (change.record for change in self.commit if isinstance(change.record, kind))
        record = next(written, before)
        assert record is not None, f"{self.title}: no {kind.__name__}"
        return record

    def operation(self, request: Request[Any], view: View) -> Operation:
        """Return the operation that executes the plan."""
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
            rights=view.caller.rights,
            boot_id=view.boot_id,
            reserves=self.growth.reserves,
            promises=self.growth.promises,
            created_at=view.now,
        )


class Request(Record, Generic[Inputs]):
    """A request to change resources. `Inputs`: the type of the result of `gather`."""

    kind: ClassVar[str] = ""
    on_pool: ClassVar[bool] = True  # it changes the pool or the exports: not while that is held
    resource: ClassVar[tuple[str, str]] = (
        "volumes",
        "id",
    )  # the collection, and the field with the id

    descends: ClassVar[bool] = False  # it frees more than it stores: allowed in a full store
    opens_gate: ClassVar[bool] = False  # it opens the shared ports after a start: service/port_gate

    @property
    def subject(self) -> str:
        """The name of the resource that the request changes, like volumes/data."""
        collection, field = self.resource
        return f"{collection}/{getattr(self, field)}"

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        """Return the facts that must hold for "already so"; None: the records differ."""
        return None

    async def resolved(self, context: Context, caller: Caller) -> Self:
        """Return the request with its paths as they are on this host: requests/paths.py."""
        return self

    async def gather(self, context: Context, operation_id: str) -> Inputs:
        """Return the inputs of the plan besides the records: facts of the host and of servers."""
        return None  # type: ignore[return-value] # for requests whose Inputs are None

    def authorise(self, view: View) -> None:
        """Raise PermissionDenied or NotFound when the caller may not do this."""

    def uses_pool(self, view: View) -> bool:
        """Tell whether it reads or changes the pool or the exports; refused while that is held."""
        return self.on_pool

    def prerequisites(self, view: View, inputs: Inputs) -> Sequence[Request[Any]]:
        """Return requests that must finish before this one, each an operation of its own.

        Raises the errors of this request itself, so that no prerequisite is executed in vain.
        """
        return ()

    def continued(self) -> Self:
        """Return the request for the time after its prerequisites, which may change records."""
        return self

    def plan(self, view: View, inputs: Inputs) -> Plan:
        """Return the plan, made from the records of one transaction."""
        raise AssertionError(f"{self.kind} has no plan")

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        """Return the actions allowed on an operation that holds a needed claim, in order."""
        return ()

    def joined(self, view: View, running: Operation) -> Stored | None:
        """Return the record that it writes when it joins an equal operation, which runs."""
        return None

    def preview(self) -> Request[Inputs]:
        """Return the request whose `gather` changes nothing, for a dry run."""
        return self

    def fingerprint(self) -> str:
        """Return a digest of kind and fields: a request joins an equal live operation."""
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
