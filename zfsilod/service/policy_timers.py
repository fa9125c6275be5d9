"""Keeps one timer for each policy: after a start, and after each change of a policy."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.policies import (
    PolicyOutcome,
    ReplicationOutcome,
    ReplicationPolicy,
    SnapshotPolicy,
    TimedPolicy,
)
from zfsilod.requests.policies import outcome_of

if TYPE_CHECKING:
    from zfsilod.model.records import Operation
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Timers
    from zfsilod.storage.transaction import Transaction

KEEP_S = 60  # between two comparisons
OUTCOMES: dict[type[TimedPolicy], type[PolicyOutcome] | type[ReplicationOutcome]] = {
    SnapshotPolicy: PolicyOutcome,
    ReplicationPolicy: ReplicationOutcome,
}
POLICIES = ("snapshotPolicies/", "replicationPolicies/")  # subjects of requests that change one

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
                log.warning("the timers of policies are not as recorded: %s", error.message)

    async def keep(self) -> None:
        """Start the timers that are missing, and stop those that are of no policy, or outdated.

        None is started while the pool is held: one whose run is due fires at once. One that systemd
        refuses does not stop the others: its calendar was valid for another version of systemd, or
        names a time zone that was removed. It is a failure of its policy.
        """
        async with self._turn:
            present = await self._timers.present()
            with self._context.read() as txn:
                wanted = timed_policies(txn)
            for timer, text in present.items():
                if timer not in wanted or wanted[timer].timer_text != text:
                    await self._timers.stop(timer)
                    log.info("stopped %s", timer)
            failures: dict[str, str] = {}
            for timer, policy in wanted.items():
                if self._context.ownership.holds:
                    return
                if present.get(timer) != policy.timer_text:
                    try:
                        await self._timers.start(policy)
                    except ZfsiloError as error:
                        failures[timer] = f"{timer}: {error.message}"
                    else:
                        log.info("started %s: %s", timer, policy.calendar)
            with self._context.read() as txn:
                changed = _changed_outcomes(txn, failures)
            if changed:
                await self._context.write(partial(_store, failures))


def _changed_outcomes(
    txn: Transaction, failures: dict[str, str]
) -> list[PolicyOutcome | ReplicationOutcome]:
    """Return the outcomes of the policies whose timers have another failure than is stored."""
    policies = timed_policies(txn).items()
    outcomes = ((name, outcome_of(txn, OUTCOMES[type(one)], one.id)) for name, one in policies)
    return [
        outcome.but(timer_failure=failures.get(name, ""))
        for name, outcome in outcomes
        if outcome.timer_failure != failures.get(name, "")
    ]


def _store(failures: dict[str, str], txn: Transaction) -> None:
    for outcome in _changed_outcomes(txn, failures):
        if outcome.timer_failure:
            log.warning("%s", outcome.timer_failure)
        txn.put(outcome)


def timed_policies(txn: Transaction) -> dict[str, TimedPolicy]:
    """Return all policies, by the names of their timers."""
    policies = chain(txn.scan(SnapshotPolicy), txn.scan(ReplicationPolicy))
    return {policy.timer: policy for policy in policies}
