"""Records against facts: what is repaired after a crash, a reboot, or somebody else's hand.

`Watchman` looks after what has not ended: operations without a unit, rollbacks that failed,
releases that a server was not told yet. `SyncVolume` compares every fact of a volume with its
record and moves the differences; at start it is what brings the exports back.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod import plan
from zfsilod.errors import FailedPrecondition, NotFound, ZfsiloError
from zfsilod.model import Debt, Move, Operation, Volume
from zfsilod.steps import Zvol
from zfsilod.verbs import Plan, Settings, Verb, World, put
from zfsilod.views import View, view, views

if TYPE_CHECKING:
    from zfsilod.service import Service
    from zfsilod.store import Transaction

ROUND_S = 30
SYNC_DEADLINE_S = 120
REPAIR_PAUSES_S = (5, 15, 60, 300)
FORGET_AT_ONCE = 100
CROWDED = 0.5  # of the store: from here on the oldest ended operations go, whatever their age

log = logging.getLogger(__name__)


class SyncVolume(Verb):
    """Make the facts of a volume what its record says; a zvol is never made anew."""

    kind = "sync"
    id: str

    def plan(self, world: World, seen: object) -> Plan:
        found = view(world.txn, self.id)
        records = [each for each in (found.volume, found.attachment) if each is not None]
        moves = [m for m in truth(found, world.settings) if not isinstance(m.step, Zvol)]
        return Plan(
            title=f"sync {self.id}",
            claims=tuple(f"{each.bucket()}/{self.id}" for each in records),
            moves=tuple(moves), commit=tuple(put(each) for each in records),
        )  # fmt: skip

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Move, ...] | None:
        return truth(view(txn, self.id), settings)


def truth(found: View, settings: Settings) -> tuple[Move, ...]:
    """Return all that must be so, and must not, on this host for a volume.

    An attachment that nobody restores (`restore` NEVER) is left to whoever made it: after a reboot
    it must not come back by itself.
    """
    moves: tuple[Move, ...] = ()
    if found.volume is not None:
        moves += plan.server_truth(found.volume, found.publications, settings.export)
    if found.attachment is not None and found.attachment.restore == "BOOT":
        moves += plan.consumer_truth(found.attachment)
    return moves


async def check_not_lost(service: Service, volume_id: str) -> None:
    """Refuse to sync a volume whose zvol has vanished: it is lost, and never made anew, empty."""
    with service.store.read() as txn:
        volume = txn.get(Volume, volume_id)
    if volume is None:
        return
    if not await service.look(partial(plan.zvol(volume).probe, service.machine)):
        raise FailedPrecondition(
            f"the zvol {volume.dataset} of {volume_id} is gone: restore it (zfs rename, zfs "
            "receive), or delete the volume",
            reason="LOST", volume=volume_id,
        )  # fmt: skip


async def sync_all(service: Service, caller: str) -> dict[str, str]:
    """Sync every volume that differs, one failure stopping no other; return id -> complaint."""
    with service.store.read() as txn:
        names = [each.id for each in views(txn)]
    complaints = {}
    for name in names:
        try:
            operation = await service.sync(name, caller=caller)
            await service.wait(operation.id, SYNC_DEADLINE_S)
        except ZfsiloError as error:
            log.warning("sync of %s: %s", name, error.message)
            complaints[name] = error.message
    return complaints


class Watchman:
    """Brings to an end whatever has not ended, at start and from then on."""

    def __init__(self, service: Service, *, retention_s: int) -> None:
        self._service = service
        self._retention_s = retention_s
        self._tried: dict[str, tuple[int, float]] = {}

    async def recover(self) -> None:
        """Look at every operation that has not ended: one without a unit is rolled back."""
        # In this order: what is in nobody's hand now was launched before systemd is asked.
        with self._service.store.read() as txn:
            live = [each.id for each in txn.live() if not self._service.has_in_hand(each.id)]
        running = await self._service.launcher.running() if live else set()
        for operation_id in live:
            if operation_id not in running:
                await self._bring_on(self._service.operation(operation_id))

    async def run(self) -> None:
        """Go round for ever."""
        while True:
            try:
                await self.recover()
                await self.pay_debts()
                await self.forget()
            except ZfsiloError as error:
                log.warning("a round of the watchman: %s", error.message)
            await self._service.changed(ROUND_S)

    async def pay_debts(self) -> None:
        """Tell servers what this host no longer needs; a debt lasts until the server answers."""
        with self._service.store.read() as txn:
            debts = [each for each in txn.scan(Debt) if self._is_due(txn, each)]
        for debt in debts:
            try:
                await self._service.servers.release(debt.server, debt.volume, request=debt.id)
            except NotFound:
                log.info("%s is gone from %s, and so is its release", debt.volume, debt.server)
            except ZfsiloError as error:
                log.info("the release of %s is still owed: %s", debt.volume, error.message)
                continue
            await self._service.write(partial(_drop, "debt", debt.id))

    async def forget(self) -> None:
        """Drop the ended operations that are older than the retention, or crowd the store."""
        horizon = int(time.time()) - self._retention_s
        with self._service.store.read() as txn:
            crowded = self._service.store.used() > CROWDED
            ended = [each for each in txn.oldest(FORGET_AT_ONCE) if each.ended]
            old = [each.id for each in ended if crowded or each.ended_at < horizon]
        for operation_id in old:
            await self._service.write(partial(_drop, "operation", operation_id))

    def _is_due(self, txn: Transaction, debt: Debt) -> bool:
        operation = txn.get(Operation, debt.id)
        live = operation is not None and not operation.ended
        return not live and not self._service.has_in_hand(debt.id)

    async def _bring_on(self, operation: Operation) -> None:
        if operation.ended or (operation.state == "NEEDS_REPAIR" and not self._may_try(operation)):
            return
        if operation.state == "WAITING" and operation.boot_id == self._service.boot_id:
            self._service.poke(operation.id)
            return
        log.info("operation %s (%s) has no unit: rolling back", operation.id, operation.title)
        await self._service.launcher.rollback(operation)

    def _may_try(self, operation: Operation) -> bool:
        """Tell whether a failed rollback is due again: after 5, 15, 60, then every 300 seconds."""
        tries, last = self._tried.get(operation.id, (0, 0.0))
        pause = REPAIR_PAUSES_S[min(tries, len(REPAIR_PAUSES_S) - 1)] if tries else 0
        if time.monotonic() - last < pause:
            return False
        self._tried[operation.id] = (tries + 1, time.monotonic())
        return True


def _drop(bucket: str, key: str, txn: Transaction) -> None:
    txn.drop(bucket, key)
