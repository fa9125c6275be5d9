"""Keeps one timer for each snapshot policy: after a start, and after each change of a policy."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.records import SnapshotPolicy

if TYPE_CHECKING:
    from zfsilod.model.records import Operation
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Timers

KEEP_S = 60  # between two comparisons
POLICIES = "snapshotPolicies/"  # subjects of the requests that change one

log = logging.getLogger(__name__)


class TimerKeeper:
    """Compares the timers of systemd with the policies, and starts or stops what differs."""

    def __init__(self, context: ServiceContext, timers: Timers) -> None:
        self._context = context
        self._timers = timers
        self._turn = asyncio.Lock()
        self._due = 0.0  # time.monotonic() of the next comparison

    def note(self, operation: Operation) -> None:
        """Compare in the next pass of the supervisor when an operation changed a policy.

        It wakes the supervisor too.
        """
        if operation.ended and operation.subject.startswith(POLICIES):
            self._due = 0.0

    async def keep_when_due(self) -> None:
        """Compare, when the last comparison is old or a policy changed since."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + KEEP_S
            try:
                await self.keep()
            except ZfsiloError as error:
                log.warning(
                    "the timers of snapshot policies are not as recorded: %s", error.message
                )

    async def keep(self) -> None:
        """Start the timers that are missing, and stop those that are of no policy, or outdated.

        None is started while the pool is held: one whose run is due fires at once.
        """
        async with self._turn:
            present = await self._timers.present()
            with self._context.read() as txn:
                policies = {policy.id: policy for policy in txn.scan(SnapshotPolicy)}
            for name, text in present.items():
                if name not in policies or policies[name].timer_text != text:
                    await self._timers.stop(name)
                    log.info("stopped the timer of policy %s", name)
            for name, policy in policies.items():
                if self._context.ownership.holds:
                    break
                if present.get(name) != policy.timer_text:
                    await self._timers.start(policy)
                    log.info("started the timer of policy %s: %s", name, policy.calendar)
