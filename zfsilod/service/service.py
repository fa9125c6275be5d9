"""The application layer: plan a request, store its operation, launch it, and tell when it ended.

Both front ends and all internal callers come through `submit` and `wait`. The order is always the
same: look at the host (in a thread), then in one transaction read, plan, claim and store, then
launch. Whatever systemd says later is only a hint to read the store again: the store alone decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from zfsilod.engine.step import HostStep
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreCorrupt,
    Unavailable,
    revive,
)
from zfsilod.model.pool_space import PoolSpace
from zfsilod.model.records import (
    Action,
    Attachment,
    Failure,
    Host,
    Operation,
    PendingRelease,
    Publication,
    failure_of,
)
from zfsilod.model.ulid import new_ulid
from zfsilod.requests import attach, sync
from zfsilod.requests.request import Plan, Request, View
from zfsilod.requests.volumes import need_root
from zfsilod.security.audit import Audit
from zfsilod.service import inputs, prerequisites
from zfsilod.service.drift import DriftReport, note, survey
from zfsilod.service.executor import Executor, Launcher, Servers
from zfsilod.service.stats import stats
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from zfsilod.host import Host as Machine
    from zfsilod.model.settings import Settings
    from zfsilod.requests.sync import Report
    from zfsilod.storage.store import Store, Transaction

T = TypeVar("T")
STORE_DEADLINE_S = 10
LOOK_DEADLINE_S = 20
SUBMIT_DEADLINE_S = 20
WATCH_AT_ONCE = 1000
RECOVERY_S = 5  # in which a session that broke may come back before it counts as lost
RETRY_LOOK_S = 5  # in case that the hint at the end of a retry is lost
CANCELLED = Busy("the operation was cancelled and taken back", reason="CANCELLED")

log = logging.getLogger(__name__)


class Service:
    """The requests over one store, one host and one launcher."""

    def __init__(
        self,
        store: Store,
        machine: Machine,
        launcher: Launcher,
        servers: Servers,
        settings: Settings,
        *,
        boot_id: str,
    ) -> None:
        self.store = store
        self.machine = machine
        self.launcher = launcher
        self.servers = servers
        self.settings = settings
        self.boot_id = boot_id
        self.recovery_s = RECOVERY_S
        self._writer = ThreadPoolExecutor(1, "store")
        self._lookers = ThreadPoolExecutor(8, "look")
        self.executor = Executor(self)
        self.audit = Audit()
        self.executor.listeners.append(self.audit.operation)
        self.hanging: set[str] = set()  # volumes whose filesystems are being asked (stats.py)

    # Requests

    async def submit(
        self, request: Request, *, caller: str, deadline_s: float = SUBMIT_DEADLINE_S
    ) -> Operation:
        """Store the operation of a request and launch it; an equal running one is joined.

        Raises whatever the plan refuses, and Busy when a claim is not free by the deadline.
        """
        until = time.monotonic() + deadline_s
        standing = await self._stand(request, caller)
        if standing:
            return standing
        operation_id = new_ulid()
        with self.executor.hold(operation_id):
            try:
                found = await self._claim(request, caller, operation_id, until)
            except (AlreadyExists, FailedPrecondition):
                standing = await self._stand(
                    request, caller
                )  # an equal request ended since we looked
                if standing is None:
                    raise
                return standing
            if found.id == operation_id:
                self.executor.resume(found)
        return found

    async def _stand(self, request: Request, caller: str) -> Operation | None:
        """Store and return an operation that is born done, when it is so already."""
        standing = await self._already(request, caller)
        if standing:
            self.executor.announce(await self.write(lambda txn: txn.put(standing)))
        return standing

    async def _claim(
        self, request: Request, caller: str, operation_id: str, until: float
    ) -> Operation:
        """Store the operation once its claims are free; return it, or an equal one that runs."""
        while True:
            with self.store.read() as txn:
                since = txn.revision()
            seen = await inputs.see(self, request, operation_id)
            await prerequisites.clear(self, request, seen, caller, until)
            submit = partial(self._submit_in, request, seen, since, caller, operation_id)
            found = await self.write(submit)
            if found.id == operation_id or found.fingerprint == request.fingerprint():
                return found
            await prerequisites.press(self, request, found)
            await self._wait_for_claim(found, until)

    async def submit_batch(self, requests: Sequence[Request], *, caller: str) -> list[Operation]:
        """Store operations that one unit runs one by one, and launch it.

        What something else is at work on is left out, as is what its plan refuses by now.
        """
        batch = new_ulid()
        self.executor.batches[batch] = ids = [new_ulid() for _request in requests]
        with contextlib.ExitStack() as hands:
            for operation_id in ids:
                hands.enter_context(self.executor.hold(operation_id))
            begun = await self.write(partial(self._submit_all, requests, ids, batch, caller))
            if begun:
                await self.executor.launch_batch(begun)
        return begun

    def _submit_all(
        self,
        requests: Sequence[Request],
        ids: Sequence[str],
        batch: str,
        caller: str,
        txn: Transaction,
    ) -> list[Operation]:
        begun = []
        for request, operation_id in zip(requests, ids, strict=True):
            view = self.view(txn, operation_id, caller)
            with contextlib.suppress(NotFound):  # it was deleted meanwhile
                planned = request.plan(view, None)
                if not any(txn.claimant(thing) for thing in planned.claims):
                    operation = planned.operation(request, view).but(batch=batch)
                    begun.append(txn.add_operation(operation))
        return begun

    async def plan(self, request: Request, *, caller: str) -> Operation:
        """Return the operation that a request would be, and store nothing."""
        standing = await self._already(request, caller)
        if standing:
            return standing
        if isinstance(request, attach.Connect):
            request = request.but(publish_if_needed=False)
        operation_id = new_ulid()
        seen = await inputs.see(self, request, operation_id)
        with self.store.read() as txn:
            first = prerequisites.obstacles(request, txn, seen)
            view = self.view(txn, operation_id, caller, before=first)
            planned = request.plan(view, seen).operation(request, view)
            return planned.but(actions=(*prerequisites.actions(first, view), *planned.actions))

    async def wait(self, operation_id: str, timeout_s: float) -> Operation:
        """Wait for an operation's end and return it. Raises its failure, or DeadlineExceeded."""
        operation = await self.ended(operation_id, timeout_s)
        if operation.failure is not None:
            failure = operation.failure
            raise revive(
                failure.name,
                failure.message,
                failure.reason,
                dict(failure.facts)
                | {"operation": operation.id, "outcome": _outcome(operation, failure)},
            )
        return operation

    async def ended(self, operation_id: str, timeout_s: float) -> Operation:
        """Wait until an operation ended or needs repair, and return it as it is then."""
        try:
            async with asyncio.timeout(timeout_s), self.executor.changes:
                while True:
                    operation = self.operation(operation_id)
                    if operation.ended or operation.state == "NEEDS_REPAIR":
                        return operation
                    await self.executor.changes.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"operation {operation_id} still runs: zfsiloctl operation wait {operation_id}",
                operation=operation_id,
            ) from None

    async def sync(self, volume_id: str, *, caller: str) -> tuple[Operation, DriftReport]:
        """Begin to make a volume's facts what its record says; tell what differs.

        Raises what cannot just be put right: a lost zvol, a foreign thing in our place.
        """
        found = await self.survey(volume_id)
        found.check()
        return await self.submit(sync.SyncVolume(id=volume_id), caller=caller), found

    async def survey(self, volume_id: str) -> DriftReport:
        """Return what differs of a volume; nothing while an operation is at work on it."""
        reports = await survey(self, (volume_id,))
        if not reports:
            return DriftReport(volume=volume_id, uid="")
        await self.write(partial(note, reports=reports, complaints={}))
        return reports[0]

    async def sync_all(self, *, caller: str, validate_only: bool = False) -> Report:
        """Sync every volume that differs, or only tell which do."""
        return await sync.sync_all(self, caller, validate_only=validate_only)

    async def cancel(self, operation_id: str) -> Operation:
        """Stop a running operation; its rollback follows, unless it is past its last way back."""
        operation = self.operation(operation_id)
        if operation.at_server:  # it has no unit to stop: the remote move is the daemon's
            failed = operation.but(state="FAILED", failure=failure_of(CANCELLED, "Reported"))
            with contextlib.suppress(Busy):  # the move was made meanwhile
                await self.launcher.rollback(await self.write(lambda txn: txn.put(failed)))
                return self.operation(operation_id)
        if not operation.ended:
            await self.launcher.stop(operation)
        return operation

    async def retried(self, operation: Operation) -> Operation:
        """Try a failed rollback once more, and return the operation as it is after that."""
        await self.repair(operation.id)
        while True:
            now = self.operation(operation.id)
            if now.ended or now.attempts != operation.attempts:
                return now
            await self.executor.changed(RETRY_LOOK_S)

    async def abandon(self, operation_id: str) -> Operation:
        """Let go of an operation that cannot be taken back; what it has made stays behind.

        Raises FailedPrecondition unless it needs repair.
        """

        def let_go(txn: Transaction) -> Operation:
            found = txn.get(Operation, operation_id)
            if found is None or found.state != "NEEDS_REPAIR":
                raise FailedPrecondition(
                    f"operation {operation_id} does not need repair: only what cannot be taken "
                    "back is abandoned",
                    reason="NOT_STUCK",
                    operation=operation_id,
                )
            return txn.finish(found, "ABANDONED")

        self.operation(operation_id)  # or NotFound
        abandoned = await self.write(let_go)
        log.warning("operation %s (%s) was abandoned", abandoned.id, abandoned.title)
        self.executor.announce(abandoned)
        return abandoned

    async def repair(self, operation_id: str) -> Operation:
        """Try the rollback of an operation again, now."""
        operation = self.operation(operation_id)
        if operation.state == "NEEDS_REPAIR":
            await self.launcher.rollback(operation)
        return operation

    async def watch(self, after_revision: int) -> AsyncIterator[Operation]:
        """Yield operations as they change, oldest change first, from behind a revision."""
        while True:
            with self.store.read() as txn:
                changes = list(islice(txn.changed_after(after_revision), WATCH_AT_ONCE))
            for operation in changes:
                after_revision = operation.revision
                yield operation
            if not changes:
                async with self.executor.changes:
                    await self.executor.changes.wait()

    def holds_anything(self) -> bool:
        """Tell whether something is published, attached, owed, under way or to repair."""
        with self.store.read() as txn:
            held = (
                txn.scan(Publication),
                txn.scan(Attachment),
                txn.scan(PendingRelease),
                txn.live(),
            )
            return self.executor.is_busy or any(next(each, None) for each in held)

    async def close(self) -> None:
        """Let what was begun come to rest: launches and remote moves, not operations."""
        await self.executor.close()
        self._writer.shutdown(wait=False)
        self._lookers.shutdown(wait=False)

    def operation(self, operation_id: str) -> Operation:
        """Return an operation, else raise NotFound."""
        with self.store.read() as txn:
            found = txn.get(Operation, operation_id)
        if found is None:
            raise NotFound(f"there is no operation {operation_id[:80]}")
        return found

    async def stats(self, volume_id: str) -> dict[str, int]:
        """Return the figures of a volume, as far as they are known here."""
        with self.store.read() as txn:
            found = volume_view(txn, volume_id)
        return (await stats(self, found)).figures

    async def introduce(self, server: str) -> None:
        """Tell a server who this host is, so that volumes can be published to it."""
        iqn = await self.look(self.machine.iscsi.initiator)
        if not iqn:
            raise FailedPrecondition(
                "this host has no IQN: install open-iscsi",
                reason="NO_IQN",
                host=self.settings.host_id,
            )
        host = Host(
            id=self.settings.host_id, iqn=iqn, max_attachments=self.settings.max_attachments
        )
        await self.servers.register(server, host)

    async def capacity(self, root: str = "") -> PoolSpace:
        """Return the room of the dataset root, or of a dataset below it."""
        need_root(self.settings)
        root = root or self.settings.root
        if root != self.settings.root and not root.startswith(f"{self.settings.root}/"):
            raise InvalidArgument(f"{root[:255]} is not below {self.settings.root}")
        available, total = await self.look(partial(self.machine.zfs.capacity, root))
        return PoolSpace(available_bytes=available, total_bytes=total)

    # What the store and the host are asked, away from the event loop

    async def write(self, change: Callable[[Transaction], T]) -> T:
        """Run one write transaction in the store's thread, with a deadline."""

        def transact() -> T:
            with self.store.write() as txn:
                return change(txn)

        return await self._in_thread(self._writer, transact, STORE_DEADLINE_S, "the store")

    async def look(self, question: Callable[[], T], timeout_s: float = LOOK_DEADLINE_S) -> T:
        """Read the host in a thread. Raises Unavailable when it does not answer in time."""
        return await self._in_thread(self._lookers, question, timeout_s, "the host")

    async def holds(self, actions: tuple[Action, ...]) -> bool:
        """Tell whether all these moves are made already, as far as the daemon can see.

        Remote moves are taken for made, as are sticky ones: what is mounted has a filesystem. What
        the daemon's sandbox hides from it does not hold: the worker will see it.
        """
        steps = [(m.step, m.up) for m in actions if isinstance(m.step, HostStep)]
        seen = [(step, up) for step, up in steps if not step.sticky]
        try:
            return await self.look(lambda: all(s.probe(self.machine) == up for s, up in seen))
        except (Unavailable, StoreCorrupt):  # or its secrets went since the records were read
            return False

    async def _in_thread(
        self, pool: ThreadPoolExecutor, question: Callable[[], T], timeout_s: float, who: str
    ) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(pool, question), timeout_s)
        except TimeoutError:
            raise Unavailable(f"{who} did not answer in {timeout_s:.0f} s") from None

    # Begin

    async def _already(self, request: Request, caller: str) -> Operation | None:
        """Return an operation that is born done, when records and probes say "already so"."""
        with self.store.read() as txn:
            actions = request.standing(txn, self.settings)
        if actions is None or not await self.holds(actions):
            return None
        now = int(time.time())
        name = request.subject.partition("/")[2]
        return Operation(
            id=new_ulid(),
            kind=request.kind,
            subject=request.subject,
            title=f"{request.kind} {name}: already so",
            actions=(),
            claims=(),
            commit=(),
            caller=caller,
            state="DONE",
            created_at=now,
            ended_at=now,
        )

    def view(
        self, txn: Transaction, operation_id: str, caller: str, *, before: Sequence[Request] = ()
    ) -> View:
        """Return what a plan sees; `before`: what it may take for done already."""
        return View(
            txn,
            self.settings,
            operation_id=operation_id,
            caller=caller,
            now=int(time.time()),
            boot_id=self.boot_id,
            before=before,
        )

    def _submit_in(
        self,
        request: Request,
        seen: object,
        since: int,
        caller: str,
        operation_id: str,
        txn: Transaction,
    ) -> Operation:
        """Store the operation, or return the one that owns what it would claim.

        One that changed it since it was looked at counts too: then what was seen is not so.
        """
        view = self.view(txn, operation_id, caller)
        plan = request.plan(view, seen)
        if seen is not None:
            for each in txn.changed_after(since):
                if not set(plan.claims).isdisjoint(each.claims):
                    return each
        for thing in plan.claims:
            owner = txn.claimant(thing)
            if owner:
                return self._owner(txn, owner)
        if plan.actions:
            self.store.check_head_room()
        return self._store(txn, plan, request, view)

    def _store(self, txn: Transaction, plan: Plan, request: Request, view: View) -> Operation:
        for name, chap in plan.secrets.items():
            txn.put_raw("secret", name, self.store.seal(name, chap))
        operation = plan.operation(request, view)
        if not plan.actions:
            return txn.finish(operation, "DONE")
        return txn.add_operation(operation)

    def _owner(self, txn: Transaction, owner: str) -> Operation:
        found = txn.get(Operation, owner)
        assert found is not None, f"a claim of operation {owner}, which is not there"
        return found

    async def _wait_for_claim(self, owner: Operation, until: float) -> None:
        left = until - time.monotonic()
        busy = Busy(
            f"operation {owner.id} ({owner.title}) is at work on it",
            reason="CLAIMED",
            operation=owner.id,
        )
        try:
            await self.ended(owner.id, max(left, 0.0))
        except DeadlineExceeded:
            raise busy from None


def _outcome(operation: Operation, failure: Failure) -> str:
    """Say what became of an operation that failed, and where it did."""
    end = {"NEEDS_REPAIR": ", and needs repair", "ROLLED_BACK": ", and was taken back"}
    place = f" at step {failure.step!r}" if failure.step else ""
    return f"{operation.title}: failed{place}{end.get(operation.state, '')}"
