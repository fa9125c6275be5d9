"""One gRPC call: its caller and deadline, reads of the store, submitting and awaiting requests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from zfsilod.model.errors import DeadlineExceeded, FailedPrecondition
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from zfsilo.v1 import operation_pb2

    from zfsilod.api.rpc.call_limits import CallPlace
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.service import Service
    from zfsilod.storage.transaction import Transaction

T = TypeVar("T")
OPERATION_METADATA = "zfsilo-operation"
DEFAULT_DEADLINE_S = 600.0
# Reserved before the caller's deadline, so that the response arrives in time: this share of it.
REPLY_SHARE, MIN_REPLY_S, MAX_REPLY_S = 0.1, 0.2, 1.0
GRACE_S = 0.1  # after the deadline of submit, whose own error says what it waited for

Tasks = set[asyncio.Task[Any]]


class Call:
    """One authenticated and authorized call."""

    def __init__(
        self,
        service: Service,
        caller: Caller,
        context: Any,
        tasks: Tasks,
        place: CallPlace | None = None,
    ) -> None:
        self.service = service
        self.caller = caller
        self._context = context
        self._tasks = tasks
        self._place = place
        self._started = time.monotonic()
        given_s = float(context.time_remaining() or 0)
        self._reply_s = min(MAX_REPLY_S, max(MIN_REPLY_S, REPLY_SHARE * given_s))
        self.changed = True  # a mutation that changed nothing is not recorded by the audit

    @property
    def left_s(self) -> float:
        """Seconds until the response must be sent."""
        remaining = self._context.time_remaining()
        if remaining is None:
            remaining = DEFAULT_DEADLINE_S - (time.monotonic() - self._started)
        return max(0.0, float(remaining) - self._reply_s)

    def read(self, query: Callable[[Transaction], T]) -> T:
        """Run a query that takes microseconds in a read transaction."""
        with self.service.context.store.read() as txn:
            return query(txn)

    async def scan(self, query: Callable[[Transaction], T]) -> T:
        """Run a query that may take long in a read transaction, in a thread."""
        return await asyncio.to_thread(self.read, query)

    async def change(
        self, request: Request[Any], *, validate_only: bool
    ) -> operation_pb2.Operation:
        """Submit a request and wait until its operation ends, or only plan it."""
        caller = self.caller
        if validate_only:
            planned = await self.service.plan(request, caller=caller)
            return convert.operation(planned, planned=True)
        submitting = self.service.submit(request, caller=caller, deadline_s=self.left_s)
        submitted = await self.shielded(submitting)
        return await self.end(submitted.id)

    async def receive(self, request: Request[Any]) -> operation_pb2.Operation:
        """Submit a request whose worker takes over the connection of this call, for a stream.

        It returns when the operation has ended, or ends with the connection. Raises
        FailedPrecondition (NO_STREAM) for a call of gRPC, or without the header Upgrade.
        """
        hand_over = getattr(self._context, "hand_over", None)
        if hand_over is None:
            raise FailedPrecondition(
                "this call is the beginning of a stream: make it by HTTP/1.1, with the header "
                "Upgrade: zfsilo-stream",
                reason="NO_STREAM",
            )
        submitting = self.service.submit(request, caller=self.caller, deadline_s=self.left_s)
        submitted = await self.shielded(submitting)
        self.service.streams.expect(submitted.id, hand_over)
        try:
            return convert.operation(await self.service.wait(submitted.id, self.left_s))
        finally:
            self.service.streams.forget(submitted.id)

    async def end(self, operation_id: str) -> operation_pb2.Operation:
        """Send the name of an operation to the caller, and wait until it ends."""
        name = f"operations/{operation_id}"
        await self._context.send_initial_metadata(((OPERATION_METADATA, name),))
        return convert.operation(await self.service.wait(operation_id, self.left_s))

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that continues when the caller disconnects or its deadline passes."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._place is not None:  # a caller that does not wait for its work has not less of it
            self._place.retain()
            task.add_done_callback(self._place.release)
        # asyncio would log the exception of a task whose waiter has gone, unless it is retrieved.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        # asyncio.wait cancels the task neither on a timeout nor when this call is cancelled.
        done, _pending = await asyncio.wait({task}, timeout=self.left_s + GRACE_S)
        if not done:
            raise DeadlineExceeded(
                "the request was not stored before the deadline and may be stored later; read the "
                "resource before repeating it"
            )
        return task.result()
