"""Deletes the snapshots of policies that their grids do not keep.

Only a snapshot that a policy took is deleted, only by the grid of that policy, and only by a clock
that can be trusted: not in the first hour after a start (retention.py). A grid counts what one
listing of the pool has (grid_lines.py); without the listing nothing is deleted. One that has a
clone or a hold stays until it has none; one that is being sent is busy, and its deletion is tried
again.

A store that was restored from a backup may have an older grid than the one under which the newest
snapshots in the pool were taken. That one deletes nothing until a caller sets the grid again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import Busy, NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.model.records import Snapshot
from zfsilod.requests.lost_snapshots import pool_snapshots
from zfsilod.requests.policies import outcome_of
from zfsilod.requests.snapshots import members_of, need_group, snapshot_steps
from zfsilod.service.grid_lines import Moment, candidates, dropped_moments, lines_of

if TYPE_CHECKING:
    from zfsilod.requests.lost_snapshots import PoolSnapshots
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.grid_lines import GridLine
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

PRUNE_S = 60  # between two looks at the snapshots
RETRY_S = 3600  # after a snapshot that is in use, or whose deletion failed
AT_ONCE = 100
DELETE_DEADLINE_S = 60.0
MAX_FAILURES = 10

log = logging.getLogger(__name__)


class Pruner:
    """Applies the grids; one pass at a time."""

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        self._context = context
        self._submitter = submitter
        self._due = 0.0  # time.monotonic() of the next pass
        self._retry_at: dict[Moment, float] = {}
        self._failures: dict[Moment, str] = {}  # until it is deleted, or kept
        self._outdated: dict[str, SnapshotPolicy] = {}  # until their grids are set

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
        due = await asyncio.to_thread(self._find_due, now)
        if due:
            pool = await pool_snapshots(self._context)
            dropped = await asyncio.to_thread(self._dropped, now, pool)
            for kept in due.difference(dropped):
                self._retry_at[kept] = time.monotonic() + RETRY_S
            pending = [one for one in dropped if one in due]
            if len(pending) > AT_ONCE:
                self._due = 0.0  # the rest follows in the next pass
            for moment in pending[:AT_ONCE]:
                self._failures.pop(moment, None)
                if sentence := await self._delete(moment):
                    self._failures[moment] = f"{moment.id}: {sentence}"
        failures = [(moment.policy, text) for moment, text in self._failures.items()]
        failures += [(name, _outdated(policy)) for name, policy in self._outdated.items()]
        await self._context.write(partial(_store_failures, failures))

    def _find_due(self, now: int) -> set[Moment]:
        """Return what may be deleted by the records alone. Most passes end here."""
        with self._context.read() as txn:
            lines = lines_of(txn)
        present = {line.policy.id: line.policy.grid_version for line in lines}
        self._outdated = {
            name: policy
            for name, policy in self._outdated.items()
            if present.get(name) == policy.grid_version
        }
        possible = candidates(self._current(lines), now)
        self._retry_at = {one: at for one, at in self._retry_at.items() if one in possible}
        self._failures = {one: text for one, text in self._failures.items() if one in possible}
        uptime = time.monotonic()
        return {one for one in possible if uptime >= self._retry_at.get(one, 0.0)}

    def _dropped(self, now: int, pool: PoolSnapshots) -> list[Moment]:
        with self._context.read() as txn:
            lines = lines_of(txn)
        outdated = {one.policy.id: one.policy for one in lines if pool.is_newer_than(one.policy)}
        self._outdated |= outdated
        return dropped_moments(self._current(lines), now, pool)

    def _current(self, lines: list[GridLine]) -> list[GridLine]:
        return [line for line in lines if line.policy.id not in self._outdated]

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


def _outdated(policy: SnapshotPolicy) -> str:
    return (
        f"nothing is deleted: snapshots of {policy.id} were taken under a later grid than the "
        f"recorded one ({policy.grid}), so the store was restored from a backup; set the grid: "
        f"zfsiloctl schedule update {policy.id} --keep '{policy.grid}'"
    )


def _store_failures(failures: list[tuple[str, str]], txn: Transaction) -> None:
    """Store the failures of each policy; they end when the deletions succeed."""
    for policy in list(txn.scan(SnapshotPolicy)):
        own = [text for name, text in failures if name == policy.id]
        sentences = tuple(own[:MAX_FAILURES])
        outcome = outcome_of(txn, PolicyOutcome, policy.id)
        if outcome.prune_failures != sentences:
            txn.put(outcome.but(prune_failures=sentences))
