"""Bounds the units of server operations that run at once; those that wait share a unit.

Most of an operation's CPU time is the start of its unit: Python, imports, the sandbox. With
MAX_UNITS running the processors are the limit, so a further operation waits for the end of a unit,
and starts in a batch with others that need the same sandbox. Operations of a client have units of
their own at once: they may wait for a server, which may be this host.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.engine.step import HostStep, may_share_unit
from zfsilod.model.errors import ZfsiloError, cancelled
from zfsilod.model.records import Operation
from zfsilod.model.ulid import new_ulid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Launcher
    from zfsilod.storage.transaction import Transaction

MAX_UNITS = 2 * (os.cpu_count() or 1)
MAX_BATCH = 8  # operations; a slow tool of one delays the others


class _Waiting(NamedTuple):
    operation: Operation
    started: asyncio.Future[None]


class LaunchQueue:
    """Starts units through a launcher, at once or when another unit has ended."""

    def __init__(
        self,
        context: ServiceContext,
        launcher: Launcher,
        register: Callable[[str, Sequence[str]], None],
    ) -> None:
        """`register` is called with a batch and its operations before its unit starts."""
        self._context = context
        self._launcher = launcher
        self._register = register
        self._units: set[str] = set()
        self._waiting: deque[_Waiting] = deque()
        self._starts: set[asyncio.Task[None]] = set()

    async def launch(self, operation: Operation) -> None:
        """Start the unit of an operation, and return when it is started.

        Raises Unavailable when systemd refuses, and Busy when the operation was cancelled while it
        waited.
        """
        if not may_share_unit(operation):
            await self._launcher.start(operation)
        elif len(self._units) < MAX_UNITS and not self._waiting:
            self._units.add(operation.unit)
            try:
                await self._launcher.start(operation)
            except ZfsiloError:
                self.ended(operation.unit)
                raise
        else:
            waiting = _Waiting(operation, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            await waiting.started

    def ended(self, unit: str) -> None:
        """Note that a unit has ended, and start those for which there is space now."""
        self._units.discard(unit)
        while self._waiting and len(self._units) < MAX_UNITS:
            batch = self._take()
            unit = new_ulid() if len(batch) > 1 else batch[0].operation.unit
            self._units.add(unit)
            task = asyncio.get_running_loop().create_task(self._start(unit, batch))
            self._starts.add(task)
            task.add_done_callback(self._starts.discard)

    def forget_others(self, running: Collection[str]) -> None:
        """Note that units ended whose end was not announced: all but the running ones."""
        for unit in self._units.difference(running):
            self.ended(unit)

    def _take(self) -> list[_Waiting]:
        """Take the operation that waits the longest, and others with the same sandbox."""
        wanted = _sandbox(self._waiting[0].operation)
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        for one in self._waiting:
            fits = len(batch) < MAX_BATCH and _sandbox(one.operation) == wanted
            (batch if fits else rest).append(one)
        self._waiting = rest
        return batch

    async def _start(self, unit: str, batch: list[_Waiting]) -> None:
        """Start a unit, and tell those that wait for it."""
        outcome: dict[str, ZfsiloError | None] = {}
        try:
            joined = await self._context.write(partial(_join, unit, batch))
            if joined:
                self._register(unit, [operation.id for operation in joined])
                await self._launcher.start(*joined)
            outcome = dict.fromkeys((operation.id for operation in joined), None)
        except ZfsiloError as error:
            outcome = {one.operation.id: error for one in batch}
        for one in batch:
            refusal = outcome.get(one.operation.id, cancelled())
            if one.started.done():  # the daemon is about to end
                continue
            if refusal is None:
                one.started.set_result(None)
            else:
                one.started.set_exception(refusal)
        if None not in outcome.values():
            self.ended(unit)


def _join(unit: str, batch: Sequence[_Waiting], txn: Transaction) -> list[Operation]:
    """Store the unit of a batch in its operations; return those that are not cancelled."""
    stored = (txn.get(Operation, one.operation.id) for one in batch)
    joined = [
        operation
        for operation in stored
        if operation is not None and not operation.ended and not txn.is_cancelled(operation.id)
    ]
    if len(batch) == 1:
        return joined
    return [txn.put(operation.but(batch=unit)) for operation in joined]


def _sandbox(operation: Operation) -> tuple[frozenset[str], bool]:
    """Return the parts of the host that an operation changes, and whether it needs secrets."""
    steps = [action.step for action in operation.actions]
    parts = frozenset(step.part for step in steps if isinstance(step, HostStep))
    return parts, any(step.resources().secrets for step in steps)
