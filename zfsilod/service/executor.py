"""What brings stored operations on: launches, the remote moves between two runs, and the news."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from zfsilod.engine.steps.filesystem import Reported
from zfsilod.model.errors import Busy, ZfsiloError
from zfsilod.model.records import Host, Operation, Publication, RemoteStep, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from zfsilod.model.chap import Chap
    from zfsilod.requests import attach
    from zfsilod.service.service import Service

CLOSE_DEADLINE_S = 5

log = logging.getLogger(__name__)


class Launcher(Protocol):
    """What starts workers (launcher.py): systemd, or local processes under --simulate."""

    async def start(self, operation: Operation) -> None: ...
    async def rollback(self, operation: Operation) -> None: ...
    async def stop(self, operation: Operation) -> None: ...
    async def running(self) -> set[str]: ...


class Servers(Protocol):
    """The storage hosts that this consumer knows, as itself (api/servers.py)."""

    async def fetch(self, server: str, volume: str) -> tuple[attach.Connection, Chap]: ...
    async def publish(self, server: str, volume: str, *, client_operation: str) -> None: ...
    async def release(self, server: str, volume: str, *, client_operation: str) -> None: ...
    async def report(self, step: Reported, operation: str) -> None: ...
    async def usage(self, server: str, volume: str, *, timeout_s: float) -> dict[str, int]: ...
    async def register(self, server: str, host: Host) -> None: ...
    async def publications(self, server: str) -> list[Publication]: ...
    async def rotate(self, server: str, volume: str) -> None: ...


class Executor:
    """The operations of a service on their way."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.changes = asyncio.Condition()  # notified when any operation changed
        self._held: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches: dict[str, list[str]] = {}  # those launched by this daemon
        self.listeners: list[Callable[[Operation], None]] = []

    @property
    def is_busy(self) -> bool:
        """Whether the daemon itself is at any operation."""
        return bool(self._held)

    async def close(self) -> None:
        """Let what was begun come to rest: launches and remote moves, not operations."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_DEADLINE_S)

    def is_held(self, operation_id: str) -> bool:
        """Tell whether the daemon itself is at this operation: preparing or launching it."""
        return self._held[operation_id] > 0

    async def launch_batch(self, begun: list[Operation]) -> None:
        """Launch the unit of a batch whose operations are stored."""
        for operation in begun:
            self.announce(operation)
        try:
            await self._service.launcher.start(begun[0])
        except ZfsiloError as error:
            log.error("the batch %s was not started: %s", begun[0].batch, error.message)
            for operation in begun:
                await self.abort_unstarted(operation, error)

    @contextlib.contextmanager
    def hold(self, operation_id: str) -> Iterator[None]:
        """Keep the watchman away from an operation that the daemon itself is at."""
        self._held[operation_id] += 1
        try:
            yield
        finally:
            self._held -= Counter([operation_id])  # forgets who is at zero

    def resume(self, operation: Operation) -> None:
        """Launch an operation, or make the remote move that it begins with."""
        self.announce(operation)
        action = operation.next_action
        if operation.ended:
            return
        if action is not None and isinstance(action.step, RemoteStep):
            self._resume_by(operation.id, self._pass_remote(operation))
        else:
            self._resume_by(operation.id, self._launch(operation))

    def _resume_by(self, operation_id: str, work: Coroutine[None, None, None]) -> None:
        hold = self.hold(operation_id)
        hold.__enter__()
        guarded = self._guarded(operation_id, work)
        self.spawn(guarded).add_done_callback(lambda _task: hold.__exit__(None, None, None))

    async def _guarded(self, operation_id: str, work: Coroutine[None, None, None]) -> None:
        """Leave what fails here to the watchman, which looks at all that has not ended."""
        try:
            await work
        except ZfsiloError as error:
            log.warning("operation %s has to wait: %s", operation_id, error.message)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run this beside the requests, and keep hold of it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _launch(self, operation: Operation) -> None:
        try:
            await self._service.launcher.start(operation)
        except ZfsiloError as error:
            log.error("operation %s was not started: %s", operation.id, error.message)
            await self.abort_unstarted(operation, error)

    async def abort_unstarted(self, operation: Operation, error: ZfsiloError) -> None:
        """End an operation that could not be launched and has moved nothing yet."""
        failed = operation.but(failure=failure_of(error, "start"))
        if all(action.status == "PENDING" for action in operation.actions):
            self.announce(await self._service.write(lambda txn: txn.finish(failed, "ROLLED_BACK")))

    def refresh(self, unit: str) -> None:
        """Look again at the operations of a unit, of which something changed."""
        live = [each for each in self.batches.get(unit, [unit]) if self._look_at(each)]
        if not live:
            self.batches.pop(unit, None)

    def _look_at(self, operation_id: str) -> bool:
        """Go on with an operation that waits for the daemon; tell whether it has not ended."""
        with self._service.store.read() as txn:
            operation = txn.get(Operation, operation_id)
        if operation is None:
            return False  # left out of its batch, or of a batch of an earlier daemon
        if operation.state == "WAITING":
            self._resume_by(operation.id, self._pass_remote(operation))
        else:
            self.announce(operation)
        return not operation.ended

    def announce(self, operation: Operation) -> None:
        """Tell everybody who listens that an operation changed."""
        for listener in self.listeners:
            listener(operation)
        self.spawn(self._wake())

    async def changed(self, timeout_s: float) -> None:
        """Wait until any operation changed, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self.changes:
                await self.changes.wait()

    async def _wake(self) -> None:
        async with self.changes:
            self.changes.notify_all()

    async def _pass_remote(self, operation: Operation) -> None:
        """Make the remote move that an operation waits at, then go on or roll back."""
        try:
            passed = await self._report(operation)
        except ZfsiloError as error:
            passed = operation.but(state="FAILED", failure=failure_of(error, "Reported"))
        try:
            passed = await self._service.write(lambda txn: txn.put(passed))
        except Busy:
            return  # it was cancelled, or is rolled back already
        if passed.state == "FAILED":
            await self._service.launcher.rollback(passed)
        else:
            self.resume(passed)

    async def _report(self, operation: Operation) -> Operation:
        index, step = next(
            (i, action.step)
            for i, action in enumerate(operation.actions)
            if action.status == "PENDING"
        )
        assert isinstance(step, Reported)
        facts = dict(operation.facts)
        if step.state == "READY" and facts:  # what was found may not be what was planned
            step = step.but(type=facts["fs_type"], uuid=facts["fs_uuid"])
        await self._service.servers.report(step, operation.id)
        return operation.with_status(index, "DONE").but(state="RUNNING")
