"""The service: submits requests, waits for their operations, cancels and repairs them.

Front ends and all parts of the daemon use `submit` and `wait`. The order is always the same: probe
whether the request is satisfied; gather its inputs; authorise, plan, claim and store in one write
transaction; launch. A signal of systemd is only a hint to read the store: the store alone decides
the outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.engine.step import may_share_unit, touches_pool
from zfsilod.engine.steps.zfs import Epoch
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    cancelled,
    revive,
)
from zfsilod.model.identity import DAEMON
from zfsilod.model.marks import epoch_fact
from zfsilod.model.pool_space import PoolSpace
from zfsilod.model.record import pairs
from zfsilod.model.records import (
    Attachment,
    Failure,
    Host,
    Operation,
    PendingRelease,
    Publication,
    Trashed,
    failure_of,
)
from zfsilod.model.ulid import new_ulid
from zfsilod.requests.volumes import need_root
from zfsilod.security.audit import Audit
from zfsilod.security.credentials import check_caller
from zfsilod.service.block_reader import BlockReader
from zfsilod.service.executor import Executor
from zfsilod.service.health import HealthReader
from zfsilod.service.ownership import compare_unknown
from zfsilod.service.policies import SnapshotRunner
from zfsilod.service.policy_timers import timed_policies
from zfsilod.service.port_gate import PortGate, opens_ports
from zfsilod.service.ports import SUBMIT_DEADLINE_S
from zfsilod.service.primaries import Primaries
from zfsilod.service.reconcile import Reconciler
from zfsilod.service.replication import Replicator
from zfsilod.service.replication_policies import ReplicationRunner
from zfsilod.service.stats import StatsReader
from zfsilod.service.stream_socket import StreamSocket
from zfsilod.storage.store import HEAD_ROOM
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request, View
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Launcher
    from zfsilod.storage.transaction import Transaction

WATCH_AT_ONCE = 1000
CROWDED_BATCH = 16  # operations of a batch in a nearly full store, whose rest is for descents
RETRY_LOOK_S = 5.0  # in case the hint at the end of a retry is lost
REREAD_S = 5.0  # a waiter reads the store when no change was announced for so long
STOPPABLE = ("RUNNING", "WAITING")

log = logging.getLogger(__name__)


class _Submission(NamedTuple):
    """A request that is not stored yet, with its caller and its deadline."""

    request: Request[Any]
    caller: Caller
    operation_id: str
    until: float  # time.monotonic() of its deadline


class Service:
    """All requests over one context and one launcher."""

    def __init__(self, context: ServiceContext, launcher: Launcher) -> None:
        self.context = context
        self.launcher = launcher
        self.executor = Executor(context, launcher)
        self.port_gate = PortGate()
        self.reconciler = Reconciler(context, self, self.port_gate)
        self.stats = StatsReader(context)
        self.health = HealthReader(context)
        self.policies = SnapshotRunner(context, self)
        self.replication_policies = ReplicationRunner(context, self)
        self.blocks = BlockReader(launcher)
        self.streams = StreamSocket()
        self.replicator = Replicator(context, launcher, self.streams)
        self.executor.send = self.replicator.send
        self.executor.listeners.append(self.streams.note)
        self.audit = Audit()
        self.executor.listeners.append(self.audit.operation)
        self.primaries = Primaries(context, self, self.executor, launcher)
        self.primaries.export = partial(self.reconciler.sync_some, caller=DAEMON)
        self.reconciler.ask = self.primaries.ask_due

    # Requests

    async def submit(
        self, request: Request[Any], *, caller: Caller, deadline_s: float = SUBMIT_DEADLINE_S
    ) -> Operation:
        """Store the operation of a request and launch it, or return an equal live operation.

        Raises the errors of the request, and Busy when a claim is not free by the deadline.
        """
        if self.context.ownership.holds and request.on_pool:
            await compare_unknown(self.context)
        request = await request.resolved(self.context, caller)
        submission = _Submission(request, caller, new_ulid(), time.monotonic() + deadline_s)
        with self.executor.hold(submission.operation_id):
            satisfied, revision = await self._satisfied(submission)
            if satisfied:
                return await self._store_satisfied(satisfied)
            try:
                operation = await self._store(submission, revision)
            except (AlreadyExists, FailedPrecondition):
                # An equal operation may have ended since the first probe.
                satisfied, _revision = await self._satisfied(submission)
                if satisfied is None:
                    raise
                return await self._store_satisfied(satisfied)
        return operation

    def _allow(self, request: Request[Any], view: View) -> None:
        """Raise unless the caller may do this, and store, machine and pool belong together."""
        request.authorise(view)
        if self.context.ownership.holds:
            self.context.ownership.check_machine()
            if request.uses_pool(view):
                self.context.ownership.check_pool()

    async def _satisfied(self, submission: _Submission) -> tuple[Operation | None, int]:
        """Return an operation in state DONE when records and probes agree with the request.

        Also the revision of the store at which the records were read.
        """
        request = submission.request
        with self.context.read() as txn:
            revision = txn.revision()
            view = self.context.view(txn, submission.operation_id, submission.caller)
            self._allow(request, view)
            actions = request.satisfied(view)
        if actions is None or not await self.context.holds(actions):
            return None, revision
        operation = Operation(
            id=submission.operation_id,
            kind=request.kind,
            subject=request.subject,
            title=f"{request.kind} {request.subject.partition('/')[2]}: already so",
            actions=(),
            claims=(),
            commit=(),
            caller=str(submission.caller),
            rights=submission.caller.rights,
            state="DONE",
            created_at=view.now,
            ended_at=view.now,
        )
        return operation, revision

    async def _store_satisfied(self, operation: Operation) -> Operation:
        def store(txn: Transaction) -> Operation:
            txn.clear_condition(operation)
            return txn.put(operation)

        self.executor.announce(await self.context.write(store))
        return operation

    async def _store(self, submission: _Submission, revision: int) -> Operation:
        """Store and launch the operation once its claims are free; return it, or an equal live one.

        After each wait the inputs are gathered again: the facts may have changed.
        """
        request = submission.request
        while True:
            inputs = await request.gather(self.context, submission.operation_id)
            # A caller that goes away meanwhile leaves no operation that is stored and not launched.
            storing = self.executor.spawn(self._store_and_launch(submission, inputs, revision))
            stored = await asyncio.shield(storing)
            if isinstance(stored, Operation):
                if stored.id == submission.operation_id:
                    return stored
                if _is_equal(request, submission.caller, stored):
                    return stored
                await self._preempt(request, stored, submission.caller)
                await self._wait_for_claim(stored, submission.until)
            elif isinstance(stored, PortGate):
                await stored.wait(submission.until - time.monotonic())
            else:
                for prerequisite in stored:
                    operation = await self.submit(prerequisite, caller=submission.caller)
                    await self.wait(operation.id, submission.until - time.monotonic())
                request = request.continued()
                submission = submission._replace(request=request)
            with self.context.read() as txn:
                revision = txn.revision()

    async def _store_and_launch(
        self, submission: _Submission, inputs: object, revision: int
    ) -> Operation | Sequence[Request[Any]] | PortGate:
        with self.executor.hold(submission.operation_id):
            stored = await self.context.write(partial(self._store_in, submission, inputs, revision))
            if isinstance(stored, Operation) and stored.id == submission.operation_id:
                self.executor.resume(stored)
        return stored

    def _store_in(
        self, submission: _Submission, inputs: object, revision: int, txn: Transaction
    ) -> Operation | Sequence[Request[Any]] | PortGate:
        """Authorise, plan, claim and store, in one transaction.

        Returns the operation, or the one that holds a claim, or the prerequisites, or a gate that
        is closed. An operation that held one of the claims after `revision` counts as the holder:
        the inputs are older.
        """
        request = submission.request
        view = self.context.view(txn, submission.operation_id, submission.caller)
        if submission.caller.certificate or submission.caller.token:
            check_caller(txn, submission.caller)  # revoked since the call began?
        self._allow(request, view)
        prerequisites = request.prerequisites(view, inputs)
        if prerequisites:
            return prerequisites
        plan = request.plan(view, inputs)
        if not (self.port_gate.is_open or request.opens_gate) and opens_ports(plan.actions):
            return self.port_gate
        if inputs is not None:
            for operation in txn.changed_after(revision):
                if not set(plan.claims).isdisjoint(operation.claims):
                    return _joined(txn, request, view, operation)
        for claim in plan.claims:
            owner = txn.claimant(claim)
            if owner:
                holder = txn.get(Operation, owner)
                assert holder is not None, f"operation {owner} has a claim and no record"
                return _joined(txn, request, view, holder)
        if not request.descends:
            self.context.store.check_head_room(local=submission.caller.local)
        for name, chap in plan.secrets.items():
            txn.put_raw("secret", name, self.context.store.seal(name, chap))
        operation = plan.operation(request, view)
        if not plan.actions:
            return txn.finish(operation, "DONE")
        return txn.add_operation(operation)

    async def _preempt(self, request: Request[Any], owner: Operation, caller: Caller) -> None:
        """Cancel, roll back or abandon the operation that holds the claim, as allowed.

        Never that of a caller with more rights. Raises Busy when it needs repair and stays.
        """
        allowed = request.preempts(owner) if caller.overrides(owner.rights) else ()
        if "CANCEL" in allowed and owner.state in STOPPABLE:
            await self.cancel(owner.id)
        if owner.state != "NEEDS_REPAIR":
            return
        if "RETRY_ROLLBACK" in allowed and (await self.retried(owner)).ended:
            return
        if "ABANDON" in allowed:
            await self.abandon(owner.id)
            return
        raise Busy(
            f"operation {owner.id} ({owner.title}) needs repair: zfsiloctl operation repair "
            f"{owner.id}",
            reason="NEEDS_REPAIR",
            operation=owner.id,
        )

    async def _wait_for_claim(self, owner: Operation, until: float) -> None:
        remaining = until - time.monotonic()
        busy = Busy(
            f"operation {owner.id} ({owner.title}) is in progress",
            reason="CLAIMED",
            operation=owner.id,
        )
        if remaining <= 0:
            raise busy
        try:
            await self.ended(owner.id, remaining)
        except DeadlineExceeded:
            raise busy from None

    async def submit_batch(
        self, requests: Sequence[Request[Any]], *, caller: Caller
    ) -> list[Operation]:
        """Store operations that one unit runs one after the other, and launch it.

        A request whose claims are not free, or whose resource does not exist, is left out.
        """
        batch = new_ulid()
        self.executor.batches[batch] = ids = [new_ulid() for _request in requests]
        with contextlib.ExitStack() as holds:
            for operation_id in ids:
                holds.enter_context(self.executor.hold(operation_id))
            stored = await self.context.write(
                partial(self._store_batch, requests, ids, batch, caller)
            )
            if stored:
                await self.executor.launch_batch(stored)
        return stored

    def _store_batch(
        self,
        requests: Sequence[Request[Any]],
        ids: Sequence[str],
        batch: str,
        caller: Caller,
        txn: Transaction,
    ) -> list[Operation]:
        stored = []
        if self.context.store.used() > HEAD_ROOM:  # the rest follows in the next pass
            requests, ids = requests[:CROWDED_BATCH], ids[:CROWDED_BATCH]
        for request, operation_id in zip(requests, ids, strict=True):
            view = self.context.view(txn, operation_id, caller)
            with contextlib.suppress(NotFound):  # deleted since the comparison
                self._allow(request, view)
                plan = request.plan(view, None)
                if not any(txn.claimant(claim) for claim in plan.claims):
                    operation = plan.operation(request, view).but(batch=batch)
                    stored.append(txn.add_operation(operation))
        return stored

    async def plan(self, request: Request[Any], *, caller: Caller) -> Operation:
        """Return the operation of a request without storing it: a dry run."""
        request = await request.resolved(self.context, caller)
        submission = _Submission(request.preview(), caller, new_ulid(), 0.0)
        satisfied, _revision = await self._satisfied(submission)
        if satisfied:
            return satisfied
        request = submission.request
        inputs = await request.gather(self.context, submission.operation_id)
        with self.context.read() as txn:
            view = self.context.view(txn, submission.operation_id, caller)
            self._allow(request, view)
            prerequisites = request.prerequisites(view, inputs)
            first = [action for one in prerequisites for action in one.plan(view, None).actions]
            after = self.context.view(txn, submission.operation_id, caller, finished=prerequisites)
            operation = request.plan(after, inputs).operation(request, after)
            return operation.but(actions=(*first, *operation.actions))

    # Operations

    async def wait(self, operation_id: str, timeout_s: float) -> Operation:
        """Wait for an operation to end and return it. Raises its failure, or DeadlineExceeded."""
        operation = await self.ended(operation_id, timeout_s)
        if operation.failure is None:
            return operation
        failure = operation.failure
        facts = dict(failure.facts)
        facts |= {"operation": operation.id, "outcome": _outcome(operation, failure)}
        raise revive(failure.name, failure.message, failure.reason, facts)

    async def ended(self, operation_id: str, timeout_s: float) -> Operation:
        """Wait until an operation has ended or needs repair, and return it."""
        try:
            async with asyncio.timeout(timeout_s), self.executor.changes:
                operation = self.executor.latest(operation_id) or self.operation(operation_id)
                while not (operation.ended or operation.state == "NEEDS_REPAIR"):
                    operation = await self._next_change(operation_id)
                return operation
        except TimeoutError:
            raise DeadlineExceeded(
                f"operation {operation_id} is still in progress: zfsiloctl operation wait "
                f"{operation_id}",
                operation=operation_id,
            ) from None

    async def _next_change(self, operation_id: str) -> Operation:
        """Wait for a change; read the store when no change is announced within REREAD_S."""
        try:
            async with asyncio.timeout(REREAD_S):
                await self.executor.changes.wait()
        except TimeoutError:
            return self.operation(operation_id)
        return self.executor.latest(operation_id) or self.operation(operation_id)

    def operation(self, operation_id: str) -> Operation:
        """Return an operation from the store. Raises NotFound."""
        with self.context.read() as txn:
            operation = txn.get(Operation, operation_id)
        if operation is None:
            raise NotFound(f"there is no operation {operation_id[:80]}")
        return operation

    async def watch(self, after_revision: int) -> AsyncIterator[Operation]:
        """Yield operations as they change, oldest change first, starting after a revision."""
        while True:
            with self.context.read() as txn:
                changed = list(islice(txn.changed_after(after_revision), WATCH_AT_ONCE))
            for operation in changed:
                after_revision = operation.revision
                yield operation
            if not changed:
                async with self.executor.changes:
                    await self.executor.changes.wait()

    async def cancel(self, operation_id: str, *, validate_only: bool = False) -> Operation:
        """Stop a running operation; its rollback follows, unless a final step has started."""
        operation = self.operation(operation_id)
        if validate_only:
            return operation
        self._check_held(operation)
        if operation.at_server:  # the daemon performs the remote step, for a unit or without one
            failed = operation.but(state="FAILED", failure=failure_of(cancelled(), "Reported"))
            with contextlib.suppress(Busy):  # the step was performed meanwhile
                stored = await self.context.write(lambda txn: txn.put(failed))
                if stored.unit in await self.launcher.running():
                    await self.launcher.stop(stored)  # its failure starts the rollback
                else:
                    await self.launcher.rollback(stored)
                return self.operation(operation_id)
        if not operation.ended:
            await self.context.write(lambda txn: txn.note_cancelled(operation_id))
            if not (operation.batch and may_share_unit(operation)):
                await self.launcher.stop(operation)
        return operation

    async def repair(self, operation_id: str, *, validate_only: bool = False) -> Operation:
        """Retry the rollback of an operation now."""
        operation = self.operation(operation_id)
        self._check_held(operation)
        if operation.state == "NEEDS_REPAIR" and not validate_only:
            await self.launcher.rollback(operation)
        return operation

    def _check_held(self, operation: Operation) -> None:
        """Raise when a hold keeps the rollback of an operation back."""
        self.context.ownership.check_machine()
        if touches_pool(operation):
            self.context.ownership.check_pool()

    async def retried(self, operation: Operation) -> Operation:
        """Retry a failed rollback, and return the operation after that attempt."""
        await self.repair(operation.id)
        while True:
            now = self.operation(operation.id)
            if now.ended or now.attempts != operation.attempts:
                return now
            await self.executor.wait_for_change(RETRY_LOOK_S)

    async def abandon(self, operation_id: str, *, validate_only: bool = False) -> Operation:
        """Release an operation that cannot be rolled back; the things that it made become orphans.

        Raises FailedPrecondition unless it needs repair.
        """

        def release(txn: Transaction) -> Operation:
            operation = _stuck(txn.get(Operation, operation_id), operation_id)
            return _abandon(txn, operation)

        operation = self.operation(operation_id)  # or NotFound
        self.context.ownership.check_machine()
        if validate_only:
            return _stuck(operation, operation_id)
        abandoned = await self.context.write(release)
        log.warning("operation %s (%s) was abandoned", abandoned.id, abandoned.title)
        self.executor.announce(abandoned)
        return abandoned

    async def abandon_held(self) -> None:
        """Abandon the operations that the hold of a pool keeps from their rollback.

        The pool is adopted as it is, and these operations may have ended in another store.
        """
        with self.context.read() as txn:
            kept = [operation for operation in txn.live() if touches_pool(operation)]
        kept = [operation for operation in kept if not self.executor.is_held(operation.id)]
        running = await self.launcher.running() if kept else set()
        for operation in kept:
            if operation.unit not in running:
                await self.abandon_unchanged(operation)

    async def abandon_unchanged(self, operation: Operation) -> None:
        """Abandon an operation that no unit runs, unless it changed since it was read."""
        abandoned = await self.context.write(partial(_abandon_unchanged, operation))
        if abandoned is not None:
            log.warning("operation %s (%s) was abandoned", abandoned.id, abandoned.title)
            self.executor.announce(abandoned)

    # The host

    def holds_anything(self) -> bool:
        """Tell whether anything is published, attached, in the trash, in progress, or pending."""
        with self.context.read() as txn:
            held = (
                txn.scan(Publication),
                txn.scan(Attachment),
                txn.scan(PendingRelease),
                txn.scan(Trashed),  # a purge needs a daemon that has run for an hour
                iter(timed_policies(txn)),  # as do their deletions; a run may take days
                txn.live(),
            )
            return self.executor.is_busy or any(next(records, None) for records in held)

    async def usage(self, volume_id: str) -> dict[str, int]:
        """Return the known figures of a volume by name."""
        with self.context.read() as txn:
            view = volume_view(txn, volume_id)
        return (await self.stats.sample(view)).figures

    async def introduce(self, server: str, *, validate_only: bool = False) -> bool:
        """Register this host at a server, so that volumes can be published to it.

        Tell whether the server's record of this host changed.
        """
        self.context.ownership.check_machine()
        settings = self.context.settings
        iqn = await self.context.look(self.context.machine.iscsi.initiator)
        if not iqn and not await self.context.look(self.context.machine.nvme.is_available):
            raise FailedPrecondition(
                "this host has no IQN, and its kernel has no NVMe/TCP: install open-iscsi",
                reason="NO_IQN",
                host=settings.host_id,
            )
        host = Host(id=settings.host_id, iqn=iqn, max_attachments=settings.max_attachments)
        return await self.context.servers.register(server, host, validate_only=validate_only)

    async def capacity(self, root: str = "") -> PoolSpace:
        """Return the space of the dataset root, or of a dataset below it."""
        settings = self.context.settings
        need_root(settings)
        root = root or settings.root
        if root != settings.root and not root.startswith(f"{settings.root}/"):
            raise InvalidArgument(f"{root[:255]} is not below {settings.root}")
        zfs = self.context.machine.zfs
        available, total = await self.context.look(partial(zfs.capacity, root))
        return PoolSpace(available_bytes=available, total_bytes=total)

    async def stop_streams(self) -> None:
        """End the streams to peers, and the runs of policies that wait for them."""
        await self.replication_policies.close()
        await self.replicator.close()

    async def close(self) -> None:
        """Wait for launches and remote steps under way, not for operations."""
        await self.stop_streams()
        await self.executor.close()
        await self.health.close()
        self.context.close()


def _is_equal(request: Request[Any], caller: Caller, operation: Operation) -> bool:
    """Tell whether a request joins an operation."""
    return (operation.fingerprint, operation.rights) == (request.fingerprint(), caller.rights)


def _joined(txn: Transaction, request: Request[Any], view: View, operation: Operation) -> Operation:
    """Return the operation that is in the way of a request, which may join it."""
    if not operation.ended and _is_equal(request, view.caller, operation):
        record = request.joined(view, operation)
        if record is not None:
            txn.put(record)
    return operation


def _stuck(operation: Operation | None, operation_id: str) -> Operation:
    """Return the operation. Raises FailedPrecondition unless it needs repair."""
    if operation is None or operation.state != "NEEDS_REPAIR":
        raise FailedPrecondition(
            f"operation {operation_id} does not need repair: only an operation whose rollback "
            "failed can be abandoned",
            reason="NOT_STUCK",
            operation=operation_id,
        )
    return operation


def _abandon(txn: Transaction, operation: Operation) -> Operation:
    """End an operation as abandoned. An epoch on the zvol is given, whatever becomes of it."""
    facts = dict(operation.facts)
    for action in operation.actions:
        if isinstance(action.step, Epoch) and action.began:
            facts[epoch_fact(action.step.dataset)] = str(action.step.epoch)
    return txn.finish(operation.but(facts=pairs(facts)), "ABANDONED")


def _abandon_unchanged(operation: Operation, txn: Transaction) -> Operation | None:
    """Abandon an operation unless it changed since it was read."""
    present = txn.get(Operation, operation.id)
    if present is None or present.ended or present.revision != operation.revision:
        return None
    return _abandon(txn, present)


def _outcome(operation: Operation, failure: Failure) -> str:
    """Return a sentence on the outcome of a failed operation, with the failed step."""
    end = {"NEEDS_REPAIR": ", and needs repair", "ROLLED_BACK": ", and was rolled back"}
    step = f" at step {failure.step!r}" if failure.step else ""
    return f"{operation.title}: failed{step}{end.get(operation.state, '')}"
