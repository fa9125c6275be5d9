"""Asks the peers of volumes whether one of them was promoted, and lets a former primary step back.

After a boot no volume with peers is exported before its peers were asked. A server that runs is
told by its own replication, or by the question after a start of the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.engine.step import touches_pool
from zfsilod.model.errors import NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Standing, Volume
from zfsilod.requests.adoption import parse_term
from zfsilod.requests.aside import SetAside
from zfsilod.requests.peers import ROLE_CHANGES, ask_peers, judge, promoting
from zfsilod.storage.volume_view import standing_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.records import Operation
    from zfsilod.service.service import Service
    from zfsilod.storage.transaction import Transaction

AT_ONCE = 16  # volumes whose peers are asked at one time
PAUSE_S = 10.0  # between two rounds of questions
ASIDE_S = 600.0
TERM = "zfsilo:term"  # the mark of a zvol

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """What the peers of one volume say together."""

    volume: Volume
    reason: str  # "": it may be served
    peer: str


class Primaries:
    """Which volumes of this server may be served, as their peers say."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._context = service.context
        self._asked: set[str] = set()  # uids, since the start of the daemon
        self._due = 0.0  # time.monotonic() of the next round
        self._asking = asyncio.Lock()

    def withhold(self, txn: Transaction) -> None:
        """Serve no volume with peers that were not asked in this boot; at the start."""
        for standing in list(txn.scan(Standing)):
            if standing.boot_id not in ("", self._context.boot_id):
                txn.put(Standing(id=standing.id))

    async def answer(self, volume_id: str, uid: str) -> Volume:
        """Return the volume with a uid, for a peer that asks what this server is for it.

        The uid proves that the peer has, or had, its data; it does not learn of another volume.
        Raises Unavailable (PROMOTING) while this server may begin or end to serve it, and when the
        zvol knows of a later term than the record: no answer is never taken as "not promoted".
        """
        self._context.ownership.check_pool()  # the records of a store that is held prove nothing
        with self._context.read() as txn:
            volume = txn.get(Volume, volume_id)
            if volume is None or volume.uid != uid:
                raise NotFound(f"there is no volume {volume_id} with this uid", volume=volume_id)
            changes = _changes_role(txn, volume)
        if changes or self._context.promoting.get(uid, 0.0) > time.monotonic():
            raise promoting(volume_id)
        if volume.state != "ABSENT":
            find = partial(self._context.machine.zfs.find_mark, volume.dataset, TERM)
            if parse_term(await self._context.look(find)).get("term", 0) > volume.term:
                raise promoting(volume_id)
        return volume

    async def follow(self) -> None:
        """Ask where it is due, and export what may be served; a part of each supervisor pass."""
        if time.monotonic() < self._due or self._context.ownership.holds:
            return
        self._due = time.monotonic() + PAUSE_S
        served = await self.ask_due()
        if served:
            await self._service.reconciler.sync_some(tuple(served), DAEMON)

    def note(self, operation: Operation) -> None:
        """Look at once after a promotion, which may let a volume be served."""
        if operation.kind == "promote" and operation.ended:
            name = operation.subject.partition("/")[2]
            with self._context.read() as txn:
                volume = txn.get(Volume, name)
            if volume is not None:
                self._context.promoting.pop(volume.uid, None)
            if operation.state == "DONE" and operation.actions:
                self._service.executor.spawn(self._serve(name))

    async def _serve(self, name: str) -> None:
        try:
            await self._service.reconciler.sync_some((name,), DAEMON)
        except ZfsiloError as error:
            log.warning("%s was promoted, and is not exported: %s", name, error.message)

    async def ask_due(self) -> list[str]:
        """Ask the peers of each volume where it is due; return the ids that are served from now."""
        async with self._asking:
            with self._context.read() as txn:
                due = [volume for volume in txn.scan(Volume) if self._is_due(txn, volume)]
            served: list[str] = []
            for start in range(0, len(due), AT_ONCE):
                some = due[start : start + AT_ONCE]
                for verdict in await asyncio.gather(*map(self._judged, some)):
                    if await self._apply(verdict):
                        served.append(verdict.volume.id)
            return served

    def _is_due(self, txn: Transaction, volume: Volume) -> bool:
        standing = standing_of(txn, volume)
        if standing is None:
            return False
        is_served = standing.boot_id == self._context.boot_id
        first = volume.uid not in self._asked
        return first or not is_served or volume.id in self._context.suspected

    async def _judged(self, volume: Volume) -> Verdict:
        answers = await ask_peers(self._context, volume, volume.peers)
        return Verdict(volume, *judge(volume, answers))

    async def _apply(self, verdict: Verdict) -> bool:
        """Store what the peers say; tell whether the volume is served from now on."""
        volume, reason, peer = verdict
        self._asked.add(volume.uid)
        self._context.suspected.discard(volume.id)
        before, now = await self._context.write(partial(self._judge, verdict))
        if before is not None and before != now:
            say = log.warning if reason else log.info
            say("volume %s: %s", volume.id, f"{reason} ({peer})" if reason else "it is served")
        if reason == "PROMOTED_ELSEWHERE":
            await self._step_back(volume, peer)
        return before is not None and not before.boot_id and bool(now and now.boot_id)

    def _judge(self, verdict: Verdict, txn: Transaction) -> tuple[Standing | None, Standing | None]:
        """Store the standing of a volume; return it before and afterwards.

        A volume that is served goes on while a peer is silent: only a later promotion ends that.
        """
        asked, reason, peer = verdict
        volume = txn.get(Volume, asked.id)
        same = volume is not None and (volume.uid, volume.term, volume.peers) == (
            asked.uid,
            asked.term,
            asked.peers,
        )
        before = standing_of(txn, volume) if same and volume is not None else None
        if before is None or _changes_role(txn, asked):
            return None, None
        now = Standing(id=asked.uid, boot_id="" if reason else self._context.boot_id, reason=reason)
        now = now.but(peer=peer)
        if before.boot_id == self._context.boot_id and reason != "PROMOTED_ELSEWHERE":
            return before, before
        if now.but(revision=0) != before.but(revision=0):
            txn.put(now)
        return before, now

    async def _step_back(self, volume: Volume, peer: str) -> None:
        """Put the data of a former primary aside."""
        try:
            await self._abandon_stopped(volume)
            operation = await self._service.submit(SetAside(id=volume.id, peer=peer), caller=DAEMON)
            await self._service.wait(operation.id, ASIDE_S)
        except ZfsiloError as error:
            log.warning("the data of %s are not put aside yet: %s", volume.id, error.message)

    async def _abandon_stopped(self, volume: Volume) -> None:
        """Abandon an operation from before a boot, whose rollback would export the volume."""
        running = await self._service.launcher.running()
        with self._context.read() as txn:
            stopped = [
                one
                for one in _operations_on(txn, (volume.id,))
                if one.unit not in running and not self._service.executor.is_held(one.id)
            ]
        for operation in stopped:
            if operation.boot_id != self._context.boot_id:
                await self._service.abandon_unchanged(operation)

    def keeps_back(self, txn: Transaction, operation: Operation) -> bool:
        """Tell whether the rollback of an operation could export a volume that is not served.

        A change of the role exports nothing. One that was cancelled is that of a volume which is to
        be served whatever its peers say: PromoteVolume.preempts.
        """
        exports = touches_pool(operation) and operation.kind not in ROLE_CHANGES
        if not exports or txn.is_cancelled(operation.id):
            return False
        names = [claim.removeprefix("volume/") for claim in operation.claims]
        volumes = (txn.get(Volume, name) for name in names)
        standings = (standing_of(txn, volume) for volume in volumes if volume is not None)
        return operation.boot_id != self._context.boot_id and any(
            standing is not None and standing.boot_id != self._context.boot_id
            for standing in standings
        )


def _operations_on(txn: Transaction, names: Iterable[str]) -> list[Operation]:
    claims = {f"volume/{name}" for name in names}
    return [one for one in txn.live() if not claims.isdisjoint(one.claims)]


def _changes_role(txn: Transaction, volume: Volume) -> bool:
    """Tell whether an operation on a volume is about to change which server serves it."""
    return any(one.kind in ROLE_CHANGES for one in _operations_on(txn, (volume.id,)))
