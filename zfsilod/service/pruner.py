"""Deletes the snapshots of policies that their grids do not keep.

Only a snapshot that a policy took is deleted, only by the grid of that policy, and only by a clock
that can be trusted: not in the first hour after a start (retention.py). One that has a clone or a
hold stays until it has none; one that is being sent is busy, and its deletion is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import Busy, NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Snapshot, SnapshotGroup, SnapshotPolicy
from zfsilod.model.retention_grid import kept_times, parse_grid
from zfsilod.requests.snapshot_policies import outcome_of
from zfsilod.requests.snapshots import (
    DeleteSnapshot,
    DeleteSnapshotGroup,
    members_of,
    need_group,
    snapshot_steps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

PRUNE_S = 60  # between two looks at the snapshots
RETRY_S = 3600  # after a snapshot that is in use, or whose deletion failed
AT_ONCE = 100
DELETE_DEADLINE_S = 60.0
MAX_FAILURES = 10

log = logging.getLogger(__name__)


class Moment(NamedTuple):
    """A snapshot of a policy, or a group of one: what a grid keeps or deletes as a whole."""

    policy: str
    id: str
    at: int
    grouped: bool

    @property
    def request(self) -> DeleteSnapshot | DeleteSnapshotGroup:
        """The request that deletes it."""
        kind = DeleteSnapshotGroup if self.grouped else DeleteSnapshot
        return kind(id=self.id, pruned_by=self.policy)


class Pruner:
    """Applies the grids; one pass at a time."""

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        self._context = context
        self._submitter = submitter
        self._due = 0.0  # time.monotonic() of the next pass
        self._retry_at: dict[Moment, float] = {}
        self._failures: dict[Moment, str] = {}  # until it is deleted, or kept

    @property
    def is_due(self) -> bool:
        """Whether the next pass is due; it then counts as begun."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + PRUNE_S
        return True

    async def prune(self) -> None:
        """Delete what is due, one after the other; a failure is stored for status and metrics."""
        now = await self._context.retention.now()
        if now is None:
            return
        for moment in await asyncio.to_thread(self._read, now):
            self._failures.pop(moment, None)
            if sentence := await self._delete(moment):
                self._failures[moment] = f"{moment.id}: {sentence}"
        await self._context.write(partial(_store_failures, self._failures))

    def _read(self, now: int) -> list[Moment]:
        with self._context.read() as txn:
            dropped = dict.fromkeys(dropped_moments(txn, now))
        self._retry_at = {one: at for one, at in self._retry_at.items() if one in dropped}
        self._failures = {one: text for one, text in self._failures.items() if one in dropped}
        uptime = time.monotonic()
        return [one for one in dropped if uptime >= self._retry_at.get(one, 0.0)][:AT_ONCE]

    async def _delete(self, moment: Moment) -> str:
        """Delete a snapshot or group that is not in use; return why it failed, or ""."""
        self._retry_at[moment] = time.monotonic() + RETRY_S
        try:
            if users := await self._users(moment):
                log.info("%s stays: it is in use by %s", moment.id, ", ".join(users))
                return ""
            operation = await self._submitter.submit(
                moment.request, caller=DAEMON, deadline_s=DELETE_DEADLINE_S
            )
            await self._submitter.wait(operation.id, DELETE_DEADLINE_S)
        except (Busy, NotFound) as error:  # sent, cloned or deleted meanwhile
            log.info("%s stays for an hour: %s", moment.id, error.message)
        except ZfsiloError as error:
            log.warning("snapshot %s was not deleted: %s", moment.id, error.message)
            return error.message
        return ""

    async def _users(self, moment: Moment) -> tuple[str, ...]:
        with self._context.read() as txn:
            if moment.grouped:
                members = members_of(txn, need_group(txn, moment.id))
            else:
                members = [one for one in [txn.get(Snapshot, moment.id)] if one is not None]
            steps = snapshot_steps(txn, *members)
        snapshots = self._context.machine.snapshots
        return await self._context.look(
            lambda: tuple(user for step in steps for user in snapshots.users(step.refs, step.uid))
        )


def dropped_moments(txn: Transaction, now: int) -> Iterator[Moment]:
    """Yield what the grid of its policy does not keep, oldest first of each volume."""
    grids = {policy.id: parse_grid(policy.grid) for policy in txn.scan(SnapshotPolicy)}
    if not grids:
        return
    lines: dict[tuple[str, str], list[Moment]] = {}  # by policy and volume; groups by policy
    for snapshot in txn.scan(Snapshot):
        if snapshot.policy in grids and not snapshot.group:
            moment = Moment(snapshot.policy, snapshot.id, snapshot.created_at, grouped=False)
            lines.setdefault((snapshot.policy, snapshot.volume_uid), []).append(moment)
    for group in txn.scan(SnapshotGroup):
        if group.policy in grids:
            moment = Moment(group.policy, group.id, group.created_at, grouped=True)
            lines.setdefault((group.policy, ""), []).append(moment)
    for (policy, _volume), moments in lines.items():
        kept = kept_times((one.at for one in moments), grids[policy], now)
        yield from sorted((one for one in moments if one.at not in kept), key=lambda one: one.at)


def _store_failures(failures: dict[Moment, str], txn: Transaction) -> None:
    """Store the failures of each policy; they end when the deletions succeed."""
    for policy in list(txn.scan(SnapshotPolicy)):
        own = [text for moment, text in failures.items() if moment.policy == policy.id]
        sentences = tuple(own[:MAX_FAILURES])
        outcome = outcome_of(txn, policy.id)
        if outcome.prune_failures != sentences:
            txn.put(outcome.but(prune_failures=sentences))
