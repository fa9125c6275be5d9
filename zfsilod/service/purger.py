"""Purges volumes from the trash when their retention time has passed."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Trashed
from zfsilod.requests.deletion import PurgeVolume
from zfsilod.requests.dependents import dependents_of, recorded_snapshots
from zfsilod.requests.lost_snapshots import pool_snapshots

if TYPE_CHECKING:
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

RETRY_S = 3600  # after a failed purge, which most often has a foreign snapshot as its cause
PURGES_AT_ONCE = 20

log = logging.getLogger(__name__)


class Purger:
    """Submits a few purges in each pass; one that fails is retried much later."""

    def __init__(self, context: ServiceContext, submitter: Submitter) -> None:
        self._context = context
        self._submitter = submitter
        self._retry_at: dict[str, float] = {}  # time.monotonic() of the next try
        self._needless: set[str] = set()  # volumes that only lost snapshots may depend on
        self._list_due = 0.0  # time.monotonic() of the next search for them

    async def purge(self) -> None:
        """Submit the purges that are due."""
        now = await self._context.retention.now()
        if now is not None:
            await self._begin_retentions(now)
        with self._context.read() as txn:
            due = [
                trashed
                for trashed in txn.scan(Trashed)
                if _is_due(trashed, now)
                and time.monotonic() >= self._retry_at.get(trashed.id, 0.0)
                and not txn.claimant(f"trash/{trashed.volume.uid}")
                and (trashed.id in self._needless or not dependents_of(txn, trashed.volume))
            ]
        for trashed in due[:PURGES_AT_ONCE]:
            self._retry_at[trashed.id] = time.monotonic() + RETRY_S
            try:
                request = PurgeVolume(id=trashed.id)
                await self._submitter.submit(request, caller=DAEMON, deadline_s=0)
            except ZfsiloError as error:
                log.warning("%s stays in the trash: %s", trashed.volume.id, error.message)

    async def find_needless(self) -> None:
        """Find the volumes that only lost snapshots may depend on: PurgeVolume looks at each.

        The pool is listed once an hour for it, and only while the trash has such records.
        """
        if time.monotonic() < self._list_due:
            return
        with self._context.read() as txn:
            recorded = {
                trashed.id: (snapshots, len(dependents_of(txn, trashed.volume)))
                for trashed in txn.scan(Trashed)
                if (snapshots := recorded_snapshots(txn, trashed.volume))
            }
        if recorded:
            self._list_due = time.monotonic() + RETRY_S
            pool = await pool_snapshots(self._context)
            self._needless = {
                trashed_id
                for trashed_id, (snapshots, count) in recorded.items()
                if count == sum(not pool.has(one) for one in snapshots)
            }

    async def _begin_retentions(self, now: int) -> None:
        """Set the times of volumes that were deleted while the clock was not trusted.

        By a clock that was behind, their retention would have passed when the clock is set, and so
        would that of their snapshots (grid_lines.py).
        """
        with self._context.read() as txn:
            untimed = [trashed.id for trashed in txn.scan(Trashed) if not trashed.clock_trusted]
        if untimed:
            await self._context.write(partial(_set_times, untimed, now))


def _set_times(trashed_ids: list[str], now: int, txn: Transaction) -> None:
    for trashed_id in trashed_ids:
        trashed = txn.get(Trashed, trashed_id)
        if trashed is None or trashed.clock_trusted:
            continue
        timed = trashed.but(clock_trusted=True, began_at=now)
        if has_retention(trashed):
            purge_at = now + trashed.purge_at - trashed.deleted_at
            timed = timed.but(purge_at=purge_at, deleted_at=min(trashed.deleted_at, now))
        txn.put(timed)


def has_retention(trashed: Trashed) -> bool:
    """Tell whether a deleted volume is kept for a time, not only for its dependents."""
    return trashed.purge_at > trashed.deleted_at


def _is_due(trashed: Trashed, now: int | None) -> bool:
    """Tell whether the retention of a deleted volume has passed by a trusted clock.

    A volume without a retention, which is in the trash because of its dependents, needs no clock.
    """
    if not has_retention(trashed):
        return True
    return now is not None and trashed.clock_trusted and trashed.purge_at <= now
