"""Records against facts: what is repaired after a crash, a reboot, or somebody else's hand.

`Watchman` looks after what has not ended: operations without a unit, rollbacks that failed,
releases that a server was not told yet, what is due in the trash. `sync_all` compares every fact of
every volume with its record (survey.py) and moves the differences; at start it is what brings the
exports back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine.steps.zfs import Zvol
from zfsilod.model.errors import NotFound, ZfsiloError
from zfsilod.model.pool_space import nearly_full
from zfsilod.model.record import Pairs, Record, pairs
from zfsilod.model.records import Action, Attachment, Operation, PendingRelease
from zfsilod.requests.deletion import Purger
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.rotate_secrets import follow
from zfsilod.service.drift import UNKNOWN, DriftReport, note, survey, truth
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from zfsilod.model.settings import Settings
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

ROUND_S, LEAST_PAUSE_S = 30, 1
ROOM_S = 60  # between two looks at the room that is left
SECRETS_S = 60  # between two looks at what servers have in new secrets
SYNC_DEADLINE_S = 120
BATCH = 500  # operations in one unit
LOGINS_AT_ONCE = 4
REPAIR_PAUSES_S = (5, 15, 60, 300)
FORGET_AT_ONCE = 100
CROWDED = 0.5  # of the store: from here on the oldest ended operations go, whatever their age

log = logging.getLogger(__name__)


class SyncVolume(Request):
    """Make the facts of a volume what its record says; a zvol is never made anew."""

    kind = "sync"
    id: str

    def plan(self, view: View, seen: object) -> Plan:
        found = volume_view(view.txn, self.id)
        records = [each for each in (found.volume, found.attachment) if each is not None]
        actions = [m for m in truth(found, view.settings) if not isinstance(m.step, Zvol)]
        return Plan(
            title=f"sync {self.id}",
            claims=tuple(f"{each.bucket()}/{self.id}" for each in records),
            actions=tuple(actions),
            commit=tuple(put(each) for each in records),
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        return truth(volume_view(txn, self.id), settings)


class Report(Record):
    """What a sync of all volumes found, and what of it could not be put right."""

    volumes: int  # that were looked at
    reports: tuple[DriftReport, ...] = ()  # of those that differ
    complaints: Pairs = ()  # by volume
    unfinished: bool = False  # something was at work, failed or could not be known: look again


async def sync_all(service: Service, caller: str, *, validate_only: bool = False) -> Report:
    """Compare every volume with the host and repair what differs, one failure stopping no other."""
    reports = await survey(service)
    with service.store.read() as txn:
        left_out = sum(_may_end(txn, each) for each in volume_views(txn)) > len(reports)
    complaints = {each.volume: each.problems[0].problem for each in reports if each.problems}
    failed: dict[str, str] = {}
    if not validate_only:
        failed = await _repair(service, [f.volume for f in reports if f.repairable], caller)
        complaints |= failed
    await service.write(partial(note, reports=reports, complaints=complaints))
    differing = tuple(each for each in reports if each.differences)
    return Report(
        volumes=len(reports),
        reports=differing,
        complaints=pairs(complaints),
        unfinished=left_out
        or bool(failed)
        or any(p.reason == UNKNOWN for each in differing for p in each.problems),
    )


def _may_end(txn: Transaction, found: VolumeView) -> bool:
    """Tell whether a volume is idle, or will be: not when a person has to repair an operation."""
    operation = txn.get(Operation, found.operation) if found.operation else None
    return operation is None or operation.state != "NEEDS_REPAIR"


async def _repair(service: Service, names: list[str], caller: str) -> dict[str, str]:
    """Repair what is served, in few units, then what is used, where each login may take its time.

    In this order, so that a host which uses its own volumes finds them exported.
    """
    with service.store.read() as txn:
        used = [name for name in names if txn.get(Attachment, name)]
    served = [name for name in names if name not in set(used)]
    complaints: dict[str, str] = {}
    for start in range(0, len(served), BATCH):
        requests = [SyncVolume(id=name) for name in served[start : start + BATCH]]
        begun = await service.submit_batch(requests, caller=caller)
        for operation in begun:
            complaints |= await _complaint(service, operation)
    gate = asyncio.Semaphore(LOGINS_AT_ONCE)
    for complaint in await asyncio.gather(*(_repair_one(service, n, caller, gate) for n in used)):
        complaints |= complaint
    return complaints


async def _repair_one(
    service: Service, name: str, caller: str, gate: asyncio.Semaphore
) -> dict[str, str]:
    async with gate:
        try:
            operation = await service.submit(SyncVolume(id=name), caller=caller)
        except ZfsiloError as error:
            return {name: error.message}
        return await _complaint(service, operation)


async def _complaint(service: Service, operation: Operation) -> dict[str, str]:
    name = operation.subject.partition("/")[2]
    try:
        await service.wait(operation.id, SYNC_DEADLINE_S)
    except ZfsiloError as error:
        log.warning("sync of %s: %s", name, error.message)
        return {name: error.message}
    return {}


async def clear_leftovers(service: Service, caller: str) -> None:
    """After a reboot, take away what is left of attachments that nobody restores.

    Sessions and mounts went with the kernel; a node record, mount points and the record stay.
    """
    with service.store.read() as txn:
        found = [each for each in txn.scan(Attachment) if each.restore == "NEVER"]
    for each in found:
        if each.boot_id in ("", service.boot_id):
            continue  # of this boot, or of a version that did not tell
        try:
            request = Disconnect(id=each.id, force=True, boot_id=each.boot_id)
            operation = await service.submit(request, caller=caller)
            await service.wait(operation.id, SYNC_DEADLINE_S)
        except ZfsiloError as error:
            log.warning("what is left of %s after the reboot stays: %s", each.id, error.message)


class Supervisor:
    """Brings to an end whatever has not ended, at start and from then on."""

    def __init__(self, service: Service, *, retention_s: int) -> None:
        self._service = service
        self._retention_s = retention_s
        self._purger = Purger(service)
        self._tried: dict[str, tuple[int, float]] = {}  # how often, and when it is due again
        self._room_again = 0.0
        self._secrets_again = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._full = False

    async def recover(self) -> None:
        """Look at every operation that has not ended: one without a unit is rolled back."""
        # In this order: what is in nobody's hand now was launched before systemd is asked.
        with self._service.store.read() as txn:
            free = (each for each in txn.live() if not self._service.executor.is_held(each.id))
            live = {each.id: each.revision for each in free}
        running = await self._service.launcher.running() if live else set()
        self._tried = {each: tried for each, tried in self._tried.items() if each in live}
        for operation_id, revision in live.items():
            operation = self._service.operation(operation_id)
            if self._service.executor.is_held(operation_id) or operation.revision != revision:
                continue  # it went on since: what systemd told is of before
            if operation.unit not in running:
                await self._bring_on(operation)

    async def run(self) -> None:
        """Go round for ever."""
        while True:
            try:
                await self.recover()
                await self.retry_releases()
                await self._purger.purge()
                await self.forget()
                await self.look_at_room()
                self.look_at_secrets()
            except ZfsiloError as error:
                log.warning("a round of the watchman: %s", error.message)
            await self._service.executor.changed(self._pause())

    async def look_at_room(self) -> None:
        """Warn once when the dataset root is nearly full, and again after it was well."""
        if not self._service.settings.root or time.monotonic() < self._room_again:
            return
        self._room_again = time.monotonic() + ROOM_S
        complaint = nearly_full(await self._service.capacity(), self._service.settings)
        if bool(complaint) != self._full:
            self._full = bool(complaint)
            log.warning(complaint or "there is room for volumes again")

    def look_at_secrets(self) -> None:
        """Begin a look at what servers have in new secrets, beside this round: they may be slow."""
        if self._refreshing is not None and not self._refreshing.done():
            return
        if time.monotonic() >= self._secrets_again:
            self._secrets_again = time.monotonic() + SECRETS_S
            self._refreshing = self._service.executor.spawn(follow(self._service))

    async def retry_releases(self) -> None:
        """Tell servers what this host no longer needs; a debt lasts until the server answers."""
        with self._service.store.read() as txn:
            pending_releases = [
                each for each in txn.scan(PendingRelease) if self._is_due(txn, each)
            ]
        for pending in pending_releases:
            if await self._is_released(pending):
                await self._service.write(partial(_drop, "debt", pending.id))

    async def _is_released(self, pending: PendingRelease) -> bool:
        try:
            await self._service.servers.release(
                pending.server, pending.volume, client_operation=pending.id
            )
        except ZfsiloError as error:
            if not isinstance(error, NotFound) or error.reason == "NO_SERVER":
                log.info("the release of %s is still owed: %s", pending.volume, error.message)
                return False
            log.info("%s is gone from %s, and so is its release", pending.volume, pending.server)
        return True

    async def forget(self) -> None:
        """Drop the ended operations that are older than the retention, or crowd the store."""
        horizon = int(time.time()) - self._retention_s
        with self._service.store.read() as txn:
            crowded = self._service.store.used() > CROWDED
            ended = [each for each in txn.oldest(FORGET_AT_ONCE) if each.ended]
            old = [each.id for each in ended if crowded or each.ended_at < horizon]
        for operation_id in old:
            await self._service.write(partial(_drop, "operation", operation_id))

    def _is_due(self, txn: Transaction, pending: PendingRelease) -> bool:
        """Tell whether a release is to be asked for: not of what was connected again since."""
        operation = txn.get(Operation, pending.id)
        live = operation is not None and not operation.ended
        owed = (pending.server, pending.volume)
        used = any((each.server, each.volume) == owed for each in txn.scan(Attachment))
        return not live and not used and not self._service.executor.is_held(pending.id)

    async def _bring_on(self, operation: Operation) -> None:
        if operation.ended or (operation.state == "NEEDS_REPAIR" and not self._may_try(operation)):
            return
        if operation.state == "WAITING" and operation.boot_id == self._service.boot_id:
            self._service.executor.refresh(operation.id)
            return
        log.info("operation %s (%s) has no unit: rolling back", operation.id, operation.title)
        await self._service.launcher.rollback(operation)

    def _may_try(self, operation: Operation) -> bool:
        """Tell whether a failed rollback is due again: after 5, 15, 60, then every 300 seconds."""
        tries, due = self._tried.get(operation.id, (0, 0.0))
        now = time.monotonic()
        if now < due:
            return False
        pause = REPAIR_PAUSES_S[min(tries, len(REPAIR_PAUSES_S) - 1)]
        self._tried[operation.id] = (tries + 1, now + pause)
        return True

    def _pause(self) -> float:
        """Return how long a round may wait for news: not beyond the next rollback that is due."""
        due = min((due for _tries, due in self._tried.values()), default=math.inf)
        return max(LEAST_PAUSE_S, min(ROUND_S, due - time.monotonic()))


def _drop(bucket: str, key: str, txn: Transaction) -> None:
    txn.drop(bucket, key)
