"""Runs replication policies: sends the volumes of a policy, when its timer or a caller asks.

It submits the request that callers use, ReplicateVolume. A run may take days: a second one of the
same policy joins it. Its outcome is stored as missed when it begins, so that a run that ends with
the daemon begins again after the next start; a stream goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.policies import ReplicationOutcome, ReplicationPolicy
from zfsilod.model.records import Volume
from zfsilod.requests.policies import need_policy
from zfsilod.requests.replication import ReplicateVolume
from zfsilod.service.policy_runs import PolicyRun, PolicyRunner
from zfsilod.storage.selection import selected, volume_labels

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

AT_ONCE = 2  # streams of one run; with a rate one, so that the rate is that of the policy
RUN_DEADLINE_S = 20 * 86400.0  # the longest time of one stream

log = logging.getLogger(__name__)


class ReplicationRunner(PolicyRunner[ReplicationPolicy, ReplicationOutcome]):
    """Replicates the volumes of policies."""

    TASK = "replicate {} of its volumes"

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        super().__init__(context, submitter, ReplicationPolicy, ReplicationOutcome)
        self._runs: dict[str, asyncio.Task[PolicyRun]] = {}  # by policy

    async def run(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Send every volume that a policy selects, or wait for the run that does.

        Raises NotFound without the policy. A volume that fails does not stop the others; the run
        goes on when its caller does not wait.
        """
        with self.context.read() as txn:
            policy = need_policy(txn, ReplicationPolicy, policy_id)
        return await asyncio.shield(self._start(policy, caller))

    async def repeat(self, policy_id: str) -> None:
        """Start a run again, unless it runs, and do not wait for it. Raises NotFound."""
        with self.context.read() as txn:
            policy = need_policy(txn, ReplicationPolicy, policy_id)
        if _key(policy) in self._runs:
            return
        log.info("the run of replication policy %s begins again", policy_id)
        self._start(policy, DAEMON)

    async def close(self) -> None:
        """End the runs; what they have submitted goes on."""
        tasks = list(self._runs.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def about(self, request: Request[Any]) -> str:
        """Return the volume of a request."""
        assert isinstance(request, ReplicateVolume), request
        return request.id

    def requests(self, txn: Transaction, policy: ReplicationPolicy) -> list[Request[Any]]:
        """Return the requests of a run; one of a named volume that does not exist fails."""
        labels = volume_labels(txn)
        chosen = [*selected(policy, labels), *missing(txn, policy)]
        rate = policy.bytes_per_second
        request = ReplicateVolume(id="", peer=policy.peer, rate=rate, policy=policy.id)
        return [request.but(id=volume) for volume in chosen]

    def _start(self, policy: ReplicationPolicy, caller: Caller) -> asyncio.Task[PolicyRun]:
        key = _key(policy)
        if key not in self._runs:
            task = asyncio.get_running_loop().create_task(self._run(policy, caller))
            self._runs[key] = task
            task.add_done_callback(partial(self._ended, policy))
        return self._runs[key]

    async def _run(self, policy: ReplicationPolicy, caller: Caller) -> PolicyRun:
        due = await self._due(policy)
        requests = [
            request.but(due_at=due, due_of=policy.timer_text)
            for request in await self.all_requests(policy.id)
        ]
        at_once = 1 if policy.bytes_per_second else AT_ONCE
        run = await self.submit_all(
            policy.id, requests, caller, at_once=at_once, deadline_s=RUN_DEADLINE_S
        )
        for sentence in run.failures:
            log.warning("replication policy %s: %s", policy.id, sentence)
        return run

    async def _due(self, policy: ReplicationPolicy) -> int:
        """Return when the next run must have ended: when the one after it is due. 0: not known."""
        find = partial(self.context.machine.calendar_due, policy.calendar, self.context.now())
        try:
            due = await self.context.look(find)
        except ZfsiloError as error:
            log.warning("replication policy %s has no due time: %s", policy.id, error.message)
            return 0
        return due + policy.max_delay_seconds if due else 0

    def _ended(self, policy: ReplicationPolicy, task: asyncio.Task[PolicyRun]) -> None:
        """Forget a run. Its error is logged: maybe there is no caller that waits."""
        del self._runs[_key(policy)]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ZfsiloError):
            log.warning("replication policy %s was not run: %s", policy.id, error.message)


def _key(policy: ReplicationPolicy) -> str:
    """Return the key of a run: a policy that is created again under a name is another one."""
    return f"{policy.id}/{policy.uid}"


def missing(txn: Transaction, policy: ReplicationPolicy) -> list[str]:
    """Return the volumes that a policy names and that do not exist."""
    return [volume for volume in policy.volumes if txn.get(Volume, volume) is None]
