"""Runs snapshot policies: takes the snapshots of a policy now, when its timer or a caller asks.

It submits the requests that callers use, CreateSnapshot and CreateSnapshotGroup. What the grid
does not keep is deleted by pruner.py.

A run that fails while the pool is held, such as before its import, is repeated when it is not, and
one that ends with the daemon after the next start: systemd counts both as done.
"""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any

from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.model.records import Snapshot, SnapshotGroup
from zfsilod.model.ulid import new_ulid
from zfsilod.requests.snapshots import MAX_MEMBER_ID, CreateSnapshot, CreateSnapshotGroup
from zfsilod.service.policy_runs import PolicyRun, PolicyRunner
from zfsilod.storage.selection import selected, volume_labels

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

AT_ONCE = 16  # snapshots of one run
RUN_DEADLINE_S = 600.0


class SnapshotRunner(PolicyRunner[SnapshotPolicy, PolicyOutcome]):
    """Takes the snapshots of policies."""

    TASK = "take {} of its snapshots"

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        super().__init__(context, submitter, SnapshotPolicy, PolicyOutcome)

    async def run(self, policy_id: str, *, caller: Caller) -> PolicyRun:
        """Take a snapshot of every volume that a policy selects, or one group of all.

        Raises NotFound without the policy. A snapshot that fails does not stop the others.
        """
        requests = await self.all_requests(policy_id)
        return await self.submit_all(
            policy_id, requests, caller, at_once=AT_ONCE, deadline_s=RUN_DEADLINE_S
        )

    def about(self, request: Request[Any]) -> str:
        """Return the volume of a snapshot."""
        return request.volume if isinstance(request, CreateSnapshot) else "the group"

    def requests(self, txn: Transaction, policy: SnapshotPolicy) -> list[Request[Any]]:
        """Return the requests that take the snapshots of a run."""
        volumes = selected(policy, volume_labels(txn))
        if not volumes:
            return []
        moment = free_moment(txn, policy, volumes, moment_name(policy.id, self.context.now()))
        if policy.grouped:
            names = tuple(volumes)
            return [CreateSnapshotGroup(id=moment, volumes=names, policy=policy.id)]
        return [
            CreateSnapshot(id=snapshot_id(moment, volume), volume=volume, policy=policy.id)
            for volume in volumes
        ]


def moment_name(policy_id: str, at: int) -> str:
    """Return the name of what a policy takes at a time: nightly-20260201t023000z, in UTC."""
    return f"{policy_id}-{time.strftime('%Y%m%dt%H%M%Sz', time.gmtime(at))}"


def free_moment(txn: Transaction, policy: SnapshotPolicy, volumes: list[str], moment: str) -> str:
    """Return the name of a moment, with a number when a snapshot or group has it already.

    A clock that was set back, or a second run in a second, would else find the older snapshot and
    take none.
    """
    for number in count(1):
        name = moment if number == 1 else f"{moment}-{number}"
        single = (txn.get(Snapshot, snapshot_id(name, volume)) for volume in volumes)
        if not (txn.get(SnapshotGroup, name) if policy.grouped else any(single)):
            return name
    raise AssertionError("there is always a next number")


def snapshot_id(moment: str, volume: str) -> str:
    """Return the id of a snapshot, as of the members of a group; a ULID where it is too long."""
    name = f"{moment}-{volume}"
    return name if len(name) <= MAX_MEMBER_ID else new_ulid()
