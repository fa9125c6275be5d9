"""Drives stored operations to completion: starts workers, performs remote steps, wakes waiters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilod.engine.steps.filesystem import Reported
from zfsilod.engine.steps.replica import Sent
from zfsilod.model.errors import Busy, ZfsiloError
from zfsilod.model.records import Operation, failure_of
from zfsilod.service.launch_queue import LaunchQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Launcher
    from zfsilod.storage.transaction import Transaction

T = TypeVar("T")

CLOSE_DEADLINE_S = 5
KEPT_OPERATIONS = 1024  # decoded, for the waiters

log = logging.getLogger(__name__)


class Executor:
    """The live operations of this daemon, and their waiters."""

    def __init__(self, context: ServiceContext, launcher: Launcher) -> None:
        self._context = context
        self.launcher = launcher
        self.queue = LaunchQueue(context, launcher, self._register)
        self.changes = asyncio.Condition()  # notified when any operation changed
        self._held: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._latest: dict[str, Operation] = {}  # of the last change of each live operation
        self.batches: dict[str, list[str]] = {}  # those launched by this daemon
        self.send: Callable[[Sent, Operation], Awaitable[None]] | None = None
        self.listeners: list[Callable[[Operation], None]] = []

    @property
    def is_busy(self) -> bool:
        """Whether the daemon itself works on any operation."""
        return bool(self._held)

    async def close(self) -> None:
        """Wait for launches and remote steps under way, not for operations."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_DEADLINE_S)

    def is_held(self, operation_id: str) -> bool:
        """Tell whether the daemon itself works on this operation: prepares or launches it."""
        return self._held[operation_id] > 0

    @contextlib.contextmanager
    def hold(self, operation_id: str) -> Iterator[None]:
        """Keep the supervisor away from an operation that the daemon itself works on."""
        self._held[operation_id] += 1
        try:
            yield
        finally:
            self._held -= Counter([operation_id])  # drops the entries that are zero

    async def launch_batch(self, batch: list[Operation]) -> None:
        """Launch the unit of a batch whose operations are stored."""
        for operation in batch:
            self.announce(operation)
        try:
            await self.launcher.start(*batch)
        except ZfsiloError as error:
            log.error("batch %s was not started: %s", batch[0].batch, error.message)
            for operation in batch:
                await self._abort_unstarted(operation, error)

    def resume(self, operation: Operation) -> None:
        """Launch an operation, or perform the remote step that is its next action."""
        self.announce(operation)
        if operation.ended:
            return
        if operation.at_server:
            self._work(operation.id, self._perform_remote(operation))
        else:
            self._work(operation.id, self._launch(operation))

    def refresh(self, unit: str) -> None:
        """Read the operations of a unit again, after a hint that it has ended."""
        self.queue.ended(unit)
        live = False
        for operation_id in self.batches.get(unit, [unit]):
            with self._context.read() as txn:
                operation = txn.get(Operation, operation_id)
            if operation is None:
                continue  # left out of its batch, or of a batch of a former daemon
            live = live or not operation.ended
            if operation.state == "WAITING":
                self._work(operation.id, self._perform_remote(operation))
            else:
                self.announce(operation)
        if not live:
            self.batches.pop(unit, None)

    def announce(self, operation: Operation) -> None:
        """Notify listeners and waiters of a changed operation."""
        self._latest.pop(operation.id, None)
        self._latest[operation.id] = operation
        while len(self._latest) > KEPT_OPERATIONS:
            del self._latest[next(iter(self._latest))]
        for listener in self.listeners:
            listener(operation)
        self.spawn(self._notify())

    def latest(self, operation_id: str) -> Operation | None:
        """Return an operation as it was announced last, decoded once for all waiters."""
        return self._latest.get(operation_id)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until any operation changed, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self.changes:
                await self.changes.wait()

    def spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """Run a coroutine as a task, and keep a reference until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _work(self, operation_id: str, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine as a task that holds the operation, from now until its end."""
        hold = contextlib.ExitStack()
        hold.enter_context(self.hold(operation_id))
        task = self.spawn(self._guarded(operation_id, work))
        task.add_done_callback(lambda _task: hold.close())

    async def _guarded(self, operation_id: str, work: Coroutine[None, None, None]) -> None:
        """Log a failure; the supervisor recovers the operation."""
        try:
            await work
        except ZfsiloError as error:
            log.warning("operation %s waits for the supervisor: %s", operation_id, error.message)

    async def _launch(self, operation: Operation) -> None:
        try:
            await self.queue.launch(operation)
        except Busy as error:  # it was cancelled while it waited
            await self._abort_unstarted(operation, error)
        except ZfsiloError as error:
            log.error("operation %s was not started: %s", operation.id, error.message)
            await self._abort_unstarted(operation, error)

    async def _abort_unstarted(self, operation: Operation, error: ZfsiloError) -> None:
        """End an operation that could not be launched and has changed nothing."""

        def end(txn: Transaction) -> Operation | None:
            stored = txn.get(Operation, operation.id)
            if stored is None or any(action.status != "PENDING" for action in stored.actions):
                return None
            return txn.finish(stored.but(failure=failure_of(error, "start")), "ROLLED_BACK")

        ended = await self._context.write(end)
        if ended is not None:
            self.announce(ended)

    def _register(self, batch: str, ids: Sequence[str]) -> None:
        self.batches[batch] = list(ids)

    async def _notify(self) -> None:
        async with self.changes:
            self.changes.notify_all()

    async def report_for_worker(self, operation_id: str) -> None:
        """Perform the remote step at which a worker waits in its unit.

        The worker reads the outcome in the store: it goes on, or fails and is rolled back.
        """
        with self._context.read() as txn:
            operation = txn.get(Operation, operation_id)
        if operation is None or operation.state != "RUNNING" or not operation.at_server:
            return
        with self.hold(operation_id):
            self.announce(operation)
            self.announce(await self._performed(operation))

    async def _perform_remote(self, operation: Operation) -> None:
        """Perform the remote step that an operation waits at, then resume it or roll it back."""
        try:
            performed = await self._performed(operation)
        except Busy:
            return  # it was cancelled, or rolled back already
        if performed.state == "FAILED":
            await self.launcher.rollback(performed)
        else:
            self.resume(performed)

    async def _performed(self, operation: Operation) -> Operation:
        """Perform the remote step that an operation waits at, and store the outcome.

        Raises Busy when the operation was cancelled or rolled back meanwhile.
        """
        try:
            performed = await self._report(operation)
        except ZfsiloError as error:
            performed = operation.but(state="FAILED", failure=failure_of(error, _step(operation)))
        return await self._context.write(lambda txn: txn.put(performed))

    async def _report(self, operation: Operation) -> Operation:
        index, step = next(
            (index, action.step)
            for index, action in enumerate(operation.actions)
            if action.status == "PENDING"
        )
        if isinstance(step, Sent):
            assert self.send is not None, "the service has set it"
            await self.send(step, operation)
            return operation.with_status(index, "DONE").but(state="RUNNING")
        assert isinstance(step, Reported)
        facts = dict(operation.facts)
        if step.state == "READY" and facts:  # the filesystem found may not be the planned one
            step = step.but(type=facts["fs_type"], uuid=facts["fs_uuid"])
        await self._context.servers.report(step, operation.id)
        return operation.with_status(index, "DONE").but(state="RUNNING")


def _step(operation: Operation) -> str:
    action = operation.next_action
    return action.description if action is not None else ""
