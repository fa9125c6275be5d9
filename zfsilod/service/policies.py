"""Runs snapshot policies: takes the snapshots of a policy now, when its timer or a caller asks.

It submits the requests that callers use, CreateSnapshot and CreateSnapshotGroup, and stores the
outcome, which status and metrics show. What the grid does not keep is deleted by pruner.py.

A run that fails while the pool is held, such as before its import, is repeated when it is not:
systemd counts it as done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import NotFound, Unavailable, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Operation, PolicyOutcome, SnapshotPolicy, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.requests.snapshot_policies import need_policy, outcome_of
from zfsilod.requests.snapshots import MAX_MEMBER_ID, CreateSnapshot, CreateSnapshotGroup
from zfsilod.service.ownership import compare

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

    SnapshotRequest = CreateSnapshot | CreateSnapshotGroup

AT_ONCE = 16  # snapshots of one run
RUN_DEADLINE_S = 600.0
MAX_FAILURES = 10  # sentences that are kept of one run

log = logging.getLogger(__name__)


class PolicyRun(NamedTuple):
    """The operations of a run, and a sentence for each snapshot that was not taken."""

    operations: tuple[Operation, ...]
    failures: tuple[str, ...]

    def check(self, policy_id: str) -> None:
        """Raise Unavailable when a snapshot was not taken."""
        if self.failures:
            raise Unavailable(
                f"policy {policy_id} could not take {len(self.failures)} of its snapshots: "
                f"{self.failures[0]}",
                reason="POLICY_FAILED",
                policy=policy_id,
            )


class PolicyRunner:
    """Takes the snapshots of policies."""

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        self._context = context
        self._submitter = submitter

    async def plan(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Return the operations of a run without storing them."""
        planned = [
            await self._submitter.plan(request, caller=caller)
            for request in await asyncio.to_thread(self._requests, policy_id)
        ]
        return PolicyRun(tuple(planned), ())

    async def run(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Take a snapshot of every volume that a policy selects, or one group of all.

        Raises NotFound without the policy. A snapshot that fails does not stop the others.
        """
        turn = asyncio.Semaphore(AT_ONCE)
        until = time.monotonic() + RUN_DEADLINE_S
        requests = await asyncio.to_thread(self._requests, policy_id)
        taken = await asyncio.gather(
            *(self._take(request, caller, turn, until) for request in requests)
        )
        run = PolicyRun(
            tuple(one for one in taken if not isinstance(one, str)),
            tuple(one for one in taken if isinstance(one, str)),
        )
        if run.failures:
            await compare(self._context)
        outcome = PolicyOutcome(
            id=policy_id,
            ran_at=self._context.now(),
            failures=run.failures[:MAX_FAILURES],
            missed=bool(run.failures and self._context.ownership.holds),
        )
        await self._context.write(partial(_store_run, outcome))
        return run

    async def repeat_missed(self) -> None:
        """Run the policies again whose last run failed while the pool was held.

        Not before the operations that failed with it are rolled back: they have the volumes.
        """
        with self._context.read() as txn:
            missed = [outcome.id for outcome in txn.scan(PolicyOutcome) if outcome.missed]
            due = [policy_id for policy_id in missed if not _is_blocked(txn, policy_id)]
        for policy_id in due:
            log.info("the run of policy %s follows: the pool can be changed again", policy_id)
            with suppress(NotFound):  # it was deleted meanwhile
                await self.run(policy_id, caller=DAEMON)

    async def _take(
        self, request: SnapshotRequest, caller: Caller, turn: asyncio.Semaphore, until: float
    ) -> Operation | str:
        """Return the operation that took a snapshot, or a sentence when it failed."""
        async with turn:
            try:
                left_s = max(0.0, until - time.monotonic())
                operation = await self._submitter.submit(request, caller=caller, deadline_s=left_s)
                left_s = max(0.0, until - time.monotonic())
                return await self._submitter.wait(operation.id, left_s)
            except ZfsiloError as error:
                what = request.volume if isinstance(request, CreateSnapshot) else "the group"
                return f"{what}: {error.message}"

    def _requests(self, policy_id: str) -> list[SnapshotRequest]:
        with self._context.read() as txn:
            policy = need_policy(txn, policy_id)
            volumes = selected(policy, volume_labels(txn))
        moment = moment_name(policy.id, self._context.now())
        if not volumes:
            return []
        if policy.grouped:
            names = tuple(volumes)
            return [CreateSnapshotGroup(id=moment, volumes=names, policy=policy.id)]
        return [
            CreateSnapshot(id=snapshot_id(moment, volume), volume=volume, policy=policy.id)
            for volume in volumes
        ]


def volume_labels(txn: Transaction) -> dict[str, set[tuple[str, str]]]:
    """Return the labels of every volume by its id, replicas left out.

    Reads all volumes: not in the event loop.
    """
    return {
        volume["id"]: {(name, value) for name, value in volume.get("labels", ())}
        for volume in txn.scan_plain(Volume)
        if not volume.get("replica", {}).get("peer")  # its snapshots come with it
    }


def selected(policy: SnapshotPolicy, labels: dict[str, set[tuple[str, str]]]) -> list[str]:
    """Return the ids of the volumes that have all labels of the policy's selector."""
    wanted = set(policy.selector)
    return [volume for volume, own in labels.items() if wanted <= own]


def moment_name(policy_id: str, at: int) -> str:
    """Return the name of what a policy takes at a time: nightly-20260201t023000z, in UTC."""
    return f"{policy_id}-{time.strftime('%Y%m%dt%H%M%Sz', time.gmtime(at))}"


def snapshot_id(moment: str, volume: str) -> str:
    """Return the id of a snapshot, as of the members of a group; a ULID where it is too long."""
    name = f"{moment}-{volume}"
    return name if len(name) <= MAX_MEMBER_ID else new_ulid()


def _is_blocked(txn: Transaction, policy_id: str) -> bool:
    """Tell whether a failed operation has a volume of a policy."""
    policy = txn.get(SnapshotPolicy, policy_id)
    volumes = selected(policy, volume_labels(txn)) if policy is not None else []
    owners = (txn.claimant(f"volume/{volume}") for volume in volumes)
    operations = (txn.get(Operation, owner) for owner in owners if owner is not None)
    return any(one is not None and one.state in ("FAILED", "NEEDS_REPAIR") for one in operations)


def _store_run(new: PolicyOutcome, txn: Transaction) -> None:
    if txn.get(SnapshotPolicy, new.id) is None:
        return  # deleted during the run
    before = outcome_of(txn, new.id)
    succeeded_at = before.succeeded_at if new.failures else new.ran_at
    txn.put(new.but(succeeded_at=succeeded_at, prune_failures=before.prune_failures))
