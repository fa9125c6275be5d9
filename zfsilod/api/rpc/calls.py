"""One call: who makes it, how long it may take, and how a change is begun and awaited in it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilod.model.errors import DeadlineExceeded
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from zfsilo.v1 import operation_pb2

    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

T = TypeVar("T")
OPERATION_METADATA = "zfsilo-operation"
DEFAULT_DEADLINE_S = 600.0
ANSWER_S = 0.2  # before the caller's deadline, so that the answer still reaches it
LATE_S = 0.1  # what work may take longer than its own deadline, to tell what it was waiting for

Tasks = set[asyncio.Task[Any]]


class Call:
    """One call of a client that is known and may make it."""

    def __init__(self, service: Service, caller: Caller, context: Any, tasks: Tasks) -> None:
        self.service = service
        self.caller = caller
        self._context = context
        self._tasks = tasks
        self._begun = time.monotonic()

    @property
    def left_s(self) -> float:
        """How long the answer can wait."""
        remaining = self._context.time_remaining()
        if remaining is None:
            remaining = DEFAULT_DEADLINE_S - (time.monotonic() - self._begun)
        return max(0.0, float(remaining) - ANSWER_S)

    def read(self, question: Callable[[Transaction], T]) -> T:
        """Ask the store something that takes microseconds."""
        with self.service.context.store.read() as txn:
            return question(txn)

    async def scan(self, question: Callable[[Transaction], T]) -> T:
        """Ask the store something that may take long, in a thread."""
        return await asyncio.to_thread(self.read, question)

    async def change(
        self, request: Request[Any], *, validate_only: bool
    ) -> operation_pb2.Operation:
        """Do what a request says and wait for its end, or only plan it."""
        caller = str(self.caller)
        if validate_only:
            planned = await self.service.plan(request, caller=caller)
            return convert.operation(planned, planned=True)
        begun = await self.lasting(
            self.service.submit(request, caller=caller, deadline_s=self.left_s)
        )
        return await self.end(begun.id)

    async def end(self, operation_id: str) -> operation_pb2.Operation:
        """Tell the caller the name of its operation, and wait for the end."""
        name = f"operations/{operation_id}"
        await self._context.send_initial_metadata(((OPERATION_METADATA, name),))
        return convert.operation(await self.service.wait(operation_id, self.left_s))

    async def lasting(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that goes on when the caller is gone or out of time."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_away)
        # Waiting leaves the task alone, whether it is us who are cancelled or the time is up.
        done, _pending = await asyncio.wait({task}, timeout=self.left_s + LATE_S)
        if not done:
            raise DeadlineExceeded("the request could not be stored in time and may still be")
        return task.result()


def _look_away(task: asyncio.Task[Any]) -> None:
    """Take note of an error that perhaps nobody waits for any more: asyncio complains otherwise."""
    if not task.cancelled():
        task.exception()
