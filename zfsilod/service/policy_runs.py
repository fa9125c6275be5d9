"""Runs of policies: the requests of a policy, some at a time, and the outcome, which is stored.

The runners of snapshot policies (policies.py) and of replication policies
(replication_policies.py) say which requests these are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABCMeta, abstractmethod
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from zfsilod.model.errors import NotFound, Unavailable, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.policies import RunOutcome, TimedPolicy
from zfsilod.model.records import Operation
from zfsilod.requests.policies import need_policy, outcome_of
from zfsilod.service.ownership import compare
from zfsilod.storage.selection import selected, volume_labels

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

P = TypeVar("P", bound=TimedPolicy)
R = TypeVar("R", bound=RunOutcome)
MAX_FAILURES = 10  # sentences that are kept of one run

log = logging.getLogger(__name__)


class PolicyRun(NamedTuple):
    """The operations of a run, and a sentence for each request that failed."""

    operations: tuple[Operation, ...]
    failures: tuple[str, ...] = ()
    task: str = ""  # with the number of the failures: "take {} of its snapshots"

    def check(self, policy_id: str) -> None:
        """Raise Unavailable when a request failed."""
        if self.failures:
            raise Unavailable(
                f"policy {policy_id} could not {self.task.format(len(self.failures))}: "
                f"{self.failures[0]}",
                reason="POLICY_FAILED",
                policy=policy_id,
            )


class PolicyRunner(Generic[P, R], metaclass=ABCMeta):
    """Runs the policies of one kind."""

    TASK: ClassVar[str]  # of a PolicyRun

    def __init__(
        self, context: ServiceContext, submitter: Submitter, policy: type[P], outcome: type[R]
    ) -> None:
        self.context = context
        self.submitter = submitter
        self._policy = policy
        self._outcome = outcome
        self._running: Counter[str] = Counter()  # runs of this process, by policy

    @abstractmethod
    def requests(self, txn: Transaction, policy: P) -> list[Request[Any]]:
        """Return the requests of a run. Reads all volumes: not in the event loop."""

    @abstractmethod
    def about(self, request: Request[Any]) -> str:
        """Return what a request is about, for the sentence of its failure."""

    @abstractmethod
    async def run(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Run a policy. Raises NotFound. A request that fails does not stop the others."""

    async def plan(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Return the operations of a run without storing them. Raises NotFound."""
        requests = await self.all_requests(policy_id)
        planned = [await self.submitter.plan(request, caller=caller) for request in requests]
        return PolicyRun(tuple(planned))

    async def repeat_missed(self) -> None:
        """Run the policies again whose last run was missed, and does not run: see RunOutcome.

        Not before the operations that failed with it are rolled back: they have the volumes.
        """
        with self.context.read() as txn:
            outcomes = [outcome for outcome in txn.scan(self._outcome) if outcome.missed]
            missed = [one.id for one in outcomes if not self._running[one.id]]
            due = [policy_id for policy_id in missed if not self._is_blocked(txn, policy_id)]
        for policy_id in due:
            with suppress(NotFound):  # it was deleted meanwhile
                await self.repeat(policy_id)

    async def repeat(self, policy_id: str) -> None:
        """Run a policy again. Raises NotFound."""
        log.info("the run of policy %s follows", policy_id)
        await self.run(policy_id, caller=DAEMON)

    async def submit_all(
        self,
        policy_id: str,
        requests: list[Request[Any]],
        caller: Caller,
        *,
        at_once: int,
        deadline_s: float,
    ) -> PolicyRun:
        """Submit the requests of a policy, `at_once` at a time, and store the outcome.

        It is stored as missed before, so that a run that ends with the daemon begins again.
        """
        self._running[policy_id] += 1
        try:
            uid = await self.context.write(partial(self._mark_begun, policy_id))
            run, outcome = await self._submit_all(policy_id, requests, caller, at_once, deadline_s)
            await self.context.write(partial(self._store, outcome, uid))
            return run
        finally:
            self._running[policy_id] -= 1

    async def _submit_all(
        self,
        policy_id: str,
        requests: list[Request[Any]],
        caller: Caller,
        at_once: int,
        deadline_s: float,
    ) -> tuple[PolicyRun, R]:
        turn = asyncio.Semaphore(at_once)
        until = time.monotonic() + deadline_s
        ended = await asyncio.gather(
            *(self._submit(request, caller, turn, until) for request in requests)
        )
        run = PolicyRun(
            tuple(one for one in ended if not isinstance(one, str)),
            tuple(one for one in ended if isinstance(one, str)),
            self.TASK,
        )
        if run.failures:
            await compare(self.context)
        outcome = self._outcome(
            id=policy_id,
            ran_at=self.context.now(),
            failures=run.failures[:MAX_FAILURES],
            missed=bool(run.failures and self.context.ownership.holds),
        )
        return run, outcome

    async def _submit(
        self, request: Request[Any], caller: Caller, turn: asyncio.Semaphore, until: float
    ) -> Operation | str:
        """Return the operation of a request when it is done, or a sentence when it failed."""
        async with turn:
            try:
                left_s = max(0.0, until - time.monotonic())
                operation = await self.submitter.submit(request, caller=caller, deadline_s=left_s)
                left_s = max(0.0, until - time.monotonic())
                return await self.submitter.wait(operation.id, left_s)
            except ZfsiloError as error:
                return f"{self.about(request)}: {error.message}"

    async def all_requests(self, policy_id: str) -> list[Request[Any]]:
        """Return the requests of a run. Raises NotFound."""

        def read() -> list[Request[Any]]:
            with self.context.read() as txn:
                return self.requests(txn, need_policy(txn, self._policy, policy_id))

        return await asyncio.to_thread(read)

    def _is_blocked(self, txn: Transaction, policy_id: str) -> bool:
        """Tell whether a failed operation has a volume of a policy."""
        policy = txn.get(self._policy, policy_id)
        volumes = selected(policy, volume_labels(txn)) if policy is not None else []
        owners = (txn.claimant(f"volume/{volume}") for volume in volumes)
        operations = (txn.get(Operation, owner) for owner in owners if owner is not None)
        states = [one.state for one in operations if one is not None]
        return "FAILED" in states or "NEEDS_REPAIR" in states

    def _mark_begun(self, policy_id: str, txn: Transaction) -> str | None:
        """Store that a run has begun; return the uid of its policy, None when it was deleted."""
        policy = txn.get(self._policy, policy_id)
        if policy is None:
            return None
        txn.put(outcome_of(txn, self._outcome, policy_id).but(missed=True))
        return policy.uid

    def _store(self, new: R, uid: str | None, txn: Transaction) -> None:
        policy = txn.get(self._policy, new.id)
        if policy is None or policy.uid != uid:
            return  # deleted during the run, and maybe another one was created
        before = outcome_of(txn, self._outcome, new.id)
        succeeded_at = before.succeeded_at if new.failures else new.ran_at
        run = {name: getattr(new, name) for name in ("ran_at", "failures", "missed")}
        txn.put(before.but(**run, succeeded_at=succeeded_at))
