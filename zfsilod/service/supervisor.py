"""Recovers live operations, retries releases, purges, prunes and forgets what is old."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine.step import touches_pool
from zfsilod.model.errors import NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.pool_space import nearly_full
from zfsilod.model.records import Attachment, Operation, PendingRelease
from zfsilod.requests.ownership import ClaimPool
from zfsilod.service.ownership import compare
from zfsilod.service.port_gate import opens_ports
from zfsilod.service.pruner import Pruner
from zfsilod.service.purger import Purger
from zfsilod.service.secret_rotation import SecretRotation

if TYPE_CHECKING:
    from zfsilod.service.policy_timers import TimerKeeper
    from zfsilod.service.service import Service
    from zfsilod.storage.transaction import Transaction

PASS_S, LEAST_PAUSE_S = 30, 1
PACE_S = 0.5  # from one pass to the next beside many changes
SPACE_S = 60  # between two checks of the available space, and of the owner of the pool
CLAIM_S = 60.0
SECRETS_S = 60  # between two polls of servers for new secrets
REPAIR_PAUSES_S = (5, 15, 60, 300)
FORGET_AT_ONCE = 100
FORGET_S = 30  # until the next look at ended operations, when none was old and the store has space
CROWDED = 0.5  # of the store: above it the oldest ended operations are dropped at any age

log = logging.getLogger(__name__)


class Supervisor:
    """Runs passes over the store, from the start of the daemon on."""

    def __init__(self, service: Service, *, retention_s: int) -> None:
        self._service = service
        self._context = service.context
        self._executor = service.executor
        self._retention_s = retention_s
        self._purger = Purger(service.context, service)
        self._pruner = Pruner(service.context, service)
        self._rotation = SecretRotation(service.context, service)
        self.timers: TimerKeeper | None = None  # None: this daemon has no systemd
        self._tried: dict[
            str, tuple[int, float]
        ] = {}  # failed rollbacks: their number, and the time of the next
        self.compare_due = 0.0  # time.monotonic() of the next comparison of store and pool
        self._claim_due = 0.0
        self._space_due = 0.0
        self._secrets_due = 0.0
        self._forget_due = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._repeating: asyncio.Task[None] | None = None
        self._full = False

    async def run(self) -> None:
        """Run passes for ever."""
        while True:
            began = time.monotonic()
            for work in (self.follow_pool, self.act):
                try:
                    await work()
                except ZfsiloError as error:
                    log.warning("supervisor pass failed: %s", error.message)
            # Not beyond the next due rollback.
            due = min((due for _tries, due in self._tried.values()), default=math.inf)
            pause_s = max(LEAST_PAUSE_S, min(PASS_S, due - time.monotonic()))
            await self._executor.wait_for_change(pause_s)
            await asyncio.sleep(began + PACE_S - time.monotonic())

    async def act(self) -> None:
        """Do the work of one pass, unless the store belongs to another machine."""
        if self._context.ownership.machine is not None:
            return
        await self.recover()
        await self.retry_releases()
        if not self._context.ownership.holds:
            self.ask_peers()
            await self._purger.purge()
            self.prune()
            self.repeat_runs()
        if self.timers is not None:
            await self.timers.keep_when_due()
        await self.forget()
        await self.check_space()
        self._service.audit.summarise()
        self.refresh_secrets()

    async def follow_pool(self) -> None:
        """Compare store and pool again, and count the generation up once for each start."""
        ownership, root = self._context.ownership, self._context.settings.root
        if ownership.holds or time.monotonic() >= self.compare_due:
            self.compare_due = time.monotonic() + SPACE_S
            await compare(self._context)
        due = root not in ownership.claimed and time.monotonic() >= self._claim_due
        if root and due and not ownership.holds:
            self._claim_due = time.monotonic() + SPACE_S
            claimed = await self._service.submit(ClaimPool(root=root), caller=DAEMON)
            await self._service.wait(claimed.id, CLAIM_S)
            ownership.claimed.add(root)

    async def recover(self) -> None:
        """Roll back every operation that has not ended, has no unit, and is not held back."""
        ownership = self._context.ownership
        if ownership.machine is not None:
            return
        # In this order: an operation that is not held was launched before systemd is queried.
        with self._context.read() as txn:
            free = (one for one in txn.live() if not self._executor.is_held(one.id))
            live = {operation.id: operation.revision for operation in free}
        running = await self._service.launcher.running() if live else set()
        self._executor.queue.forget_others(running)
        self._tried = {name: tried for name, tried in self._tried.items() if name in live}
        for operation_id, revision in live.items():
            operation = self._service.operation(operation_id)
            if self._executor.is_held(operation_id) or operation.revision != revision:
                continue  # it changed after systemd was queried
            if operation.unit in running or operation.ended:
                continue
            if ownership.holds and touches_pool(operation):
                continue  # the store may be older than the pool: nothing is reverted
            if not self._service.port_gate.is_open and opens_ports(operation.actions):
                continue  # its rollback may complete it
            if operation.state == "WAITING" and operation.boot_id == self._context.boot_id:
                self._executor.refresh(operation.id)
                continue
            if self._is_kept_back(operation):
                continue  # it is not known yet whether a peer serves the volume
            if not self._rollback_due(operation):
                continue
            log.info("operation %s (%s) has no unit: rolling back", operation.id, operation.title)
            await self._service.launcher.rollback(operation)

    def _is_kept_back(self, operation: Operation) -> bool:
        with self._context.read() as txn:
            return self._service.primaries.keeps_back(txn, operation)

    def _rollback_due(self, operation: Operation) -> bool:
        """Tell whether a rollback is due: at once, after 5, 15, 60, then every 300 seconds."""
        tries, due = self._tried.get(operation.id, (0, 0.0))
        now = time.monotonic()
        if now < due:
            return False
        pause = REPAIR_PAUSES_S[min(tries, len(REPAIR_PAUSES_S) - 1)]
        self._tried[operation.id] = (tries + 1, now + pause)
        return True

    async def retry_releases(self) -> None:
        """Release volumes at their servers that this host does not use any more."""
        with self._context.read() as txn:
            due = [one for one in txn.scan(PendingRelease) if self._release_due(txn, one)]
        for release in due:
            if await self._is_released(release):
                await self._context.write(partial(_drop, PendingRelease.bucket(), release.id))

    def _release_due(self, txn: Transaction, release: PendingRelease) -> bool:
        """Tell whether a release is due: not while its volume is connected again."""
        operation = txn.get(Operation, release.id)
        live = operation is not None and not operation.ended
        resource = (release.server, release.volume)
        used = any((one.server, one.volume) == resource for one in txn.scan(Attachment))
        return not live and not used and not self._executor.is_held(release.id)

    async def _is_released(self, release: PendingRelease) -> bool:
        try:
            await self._context.servers.release(
                release.server, release.volume, client_operation=release.id
            )
        except ZfsiloError as error:
            if not isinstance(error, NotFound) or error.reason == "NO_SERVER":
                log.info("release of %s is still pending: %s", release.volume, error.message)
                return False
            log.info("%s does not exist on %s: nothing to release", release.volume, release.server)
        return True

    async def forget(self) -> None:
        """Drop the ended operations that are older than the retention, or fill the store."""
        crowded = self._context.store.used() > CROWDED
        if not crowded and time.monotonic() < self._forget_due:
            return
        now = await self._context.retention.now()
        horizon = -math.inf if now is None else now - self._retention_s
        with self._context.read() as txn:
            ended = [one for one in txn.oldest(FORGET_AT_ONCE) if one.ended]
            old = [one.id for one in ended if crowded or one.ended_at < horizon]
        if not old:
            self._forget_due = time.monotonic() + FORGET_S
        for operation_id in old:
            await self._context.write(partial(_drop, Operation.bucket(), operation_id))

    async def check_space(self) -> None:
        """Log once when the dataset root is nearly full, and once when it has space again."""
        if not self._context.settings.root or time.monotonic() < self._space_due:
            return
        self._space_due = time.monotonic() + SPACE_S
        complaint = nearly_full(await self._service.capacity(), self._context.settings)
        if bool(complaint) != self._full:
            self._full = bool(complaint)
            log.warning(complaint or "the dataset root has space for volumes again")

    def refresh_secrets(self) -> None:
        """Start to poll servers for new secrets, in a separate task: they may be slow."""
        if self._refreshing is not None and not self._refreshing.done():
            return
        if time.monotonic() >= self._secrets_due:
            self._secrets_due = time.monotonic() + SECRETS_S
            self._refreshing = self._executor.spawn(self._rotation.follow())

    def ask_peers(self) -> None:
        """Start to ask the peers of volumes where it is due, in a separate task."""
        if self._asking is None or self._asking.done():
            self._asking = self._executor.spawn(self._ask_peers())

    async def _ask_peers(self) -> None:
        try:
            await self._service.primaries.follow()
        except ZfsiloError as error:
            log.warning("the peers of volumes were not asked: %s", error.message)

    def prune(self) -> None:
        """Start to delete what the grids of policies do not keep, in a separate task.

        It lists the pool, also for the trash, which may take long.
        """
        if (self._pruning is None or self._pruning.done()) and self._pruner.is_due:
            self._pruning = self._executor.spawn(self._prune())

    def repeat_runs(self) -> None:
        """Start the runs of policies that were missed, in a separate task."""
        if self._repeating is None or self._repeating.done():
            self._repeating = self._executor.spawn(self._repeat_runs())

    async def _repeat_runs(self) -> None:
        try:
            await self._service.replication_policies.repeat_missed()
            await self._service.policies.repeat_missed()
        except ZfsiloError as error:
            log.warning("a missed run of a policy was not repeated: %s", error.message)

    async def _prune(self) -> None:
        try:
            await self._pruner.prune()
            await self._purger.find_needless()
        except ZfsiloError as error:
            log.warning("the snapshots of policies were not pruned: %s", error.message)


def _drop(bucket: str, key: str, txn: Transaction) -> None:
    txn.drop(bucket, key)
