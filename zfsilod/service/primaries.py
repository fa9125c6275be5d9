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

from zfsilod.engine.step import HostStep
from zfsilod.model.errors import Busy, NotFound, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Standing, Volume
from zfsilod.model.replica import Replication
from zfsilod.requests.adoption import parse_term
from zfsilod.requests.aside import SetAside
from zfsilod.requests.peers import PROMOTING, ROLE_CHANGES, judge, known_peers, promoting
from zfsilod.storage.volume_view import standing_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from zfsilod.model.records import Operation
    from zfsilod.service.context import ServiceContext
    from zfsilod.service.executor import Executor
    from zfsilod.service.ports import Launcher, Submitter
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

    def __init__(
        self, context: ServiceContext, submitter: Submitter, executor: Executor, launcher: Launcher
    ) -> None:
        self._context = context
        self._submitter = submitter
        self._executor = executor
        self._launcher = launcher
        self.export: Callable[[tuple[str, ...]], Awaitable[object]] = _export_nothing
        self._asked: set[str] = set()  # uids, since the start of the daemon
        self._withheld: set[str] = set()  # ids of the volumes that were not served at the last look
        self._due = 0.0  # time.monotonic() of the next round
        self._asking = asyncio.Lock()

    def withhold(self, txn: Transaction) -> None:
        """Serve no volume with peers that were not asked in this boot; at the start.

        A store of a former version has the peers of a volume only in its replications.
        """
        self._asked.clear()
        for sent in list(txn.scan(Replication)):
            volume = txn.get(Volume, sent.volume)
            if volume is not None and not volume.is_replica and sent.peer not in volume.peers:
                txn.put(volume.but(peers=known_peers(volume, sent.peer)))
        for standing in list(txn.scan(Standing)):
            if standing.boot_id not in ("", self._context.boot_id):
                txn.put(Standing(id=standing.id))

    async def answer(self, volume_id: str, uid: str) -> Volume:
        """Return the volume with a uid, for a peer that asks what this server is for it.

        The uid proves that the peer has, or had, its data; it does not learn of another volume. One
        that asks may have been promoted, so it is asked in turn. Raises Busy (PROMOTING) while this
        server may begin or end to serve it, and when the zvol knows of a later term than the
        record: no answer is ever taken as "not promoted".
        """
        self._context.ownership.check_pool()  # the records of a store that is held prove nothing
        with self._context.read() as txn:
            volume = txn.get(Volume, volume_id)
            if volume is None or volume.uid != uid:
                if any(one.uid == uid for one in txn.scan(Volume)):
                    raise Busy(
                        "a volume of this server has this uid and another id",
                        reason=PROMOTING,
                        volume=volume_id,
                    )
                raise NotFound(f"there is no volume {volume_id} with this uid", volume=volume_id)
            changes = _changes_role(txn, volume)
            serves = not volume.is_replica and not self._is_withheld(txn, volume)
        if serves:  # a peer that asks may have been promoted: it is asked in turn
            self._context.suspected.add(volume_id)
        is_meant = self._context.promoting.get(uid, 0.0) > time.monotonic()
        if changes or (is_meant and not serves):
            raise promoting(volume_id)
        if volume.state != "ABSENT":
            find = partial(self._context.machine.zfs.find_mark, volume.dataset, TERM)
            if parse_term(await self._context.look(find)).get("term", 0) > volume.term:
                raise promoting(volume_id)
        return volume

    async def follow(self) -> None:
        """Ask where it is due, and export what may be served; a part of each supervisor pass."""
        if self._context.ownership.holds:
            return
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + PAUSE_S
            await self.ask_due()
        with self._context.read() as txn:
            withheld = {one.id for one in txn.scan(Volume) if self._is_withheld(txn, one)}
        served, self._withheld = self._withheld - withheld, withheld
        if served:  # as the peers said, or by a promotion
            await self.export(tuple(sorted(served)))

    def _is_withheld(self, txn: Transaction, volume: Volume) -> bool:
        standing = standing_of(txn, volume)
        return standing is not None and standing.boot_id != self._context.boot_id

    async def ask_due(self) -> None:
        """Ask the peers of each volume where it is due, and store what they say."""
        async with self._asking:
            with self._context.read() as txn:
                due = [volume for volume in txn.scan(Volume) if self._is_due(txn, volume)]
            for start in range(0, len(due), AT_ONCE):
                some = due[start : start + AT_ONCE]
                for verdict in await asyncio.gather(*map(self._judged, some)):
                    await self._apply(verdict)

    def _is_due(self, txn: Transaction, volume: Volume) -> bool:
        if standing_of(txn, volume) is None:
            return False
        is_new = volume.uid not in self._asked or volume.id in self._context.suspected
        return is_new or self._is_withheld(txn, volume)

    async def _judged(self, volume: Volume) -> Verdict:
        answers = await self._context.ask_peers(volume, volume.peers)
        return Verdict(volume, *judge(volume, answers))

    async def _apply(self, verdict: Verdict) -> None:
        """Store what the peers say of a volume; a former primary steps back."""
        volume, reason, peer = verdict
        self._asked.add(volume.uid)
        self._context.suspected.discard(volume.id)
        before, now = await self._context.write(partial(self._judge, verdict))
        if before is not None and before != now:
            say = log.warning if reason else log.info
            say("volume %s: %s", volume.id, f"{reason} ({peer})" if reason else "it is served")
        if reason == "PROMOTED_ELSEWHERE":
            await self._step_back(volume, peer)

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
        boot_id = "" if reason else self._context.boot_id
        now = Standing(id=asked.uid, boot_id=boot_id, reason=reason, peer=peer)
        if before.boot_id == self._context.boot_id and reason != "PROMOTED_ELSEWHERE":
            return before, before
        if now.but(revision=0) != before.but(revision=0):
            txn.put(now)
        return before, now

    async def _step_back(self, volume: Volume, peer: str) -> None:
        """Put the data of a former primary aside."""
        try:
            await self._abandon_stopped(volume)
            operation = await self._submitter.submit(
                SetAside(id=volume.id, peer=peer), caller=DAEMON
            )
            await self._submitter.wait(operation.id, ASIDE_S)
        except ZfsiloError as error:
            log.warning("the data of %s are not put aside yet: %s", volume.id, error.message)

    async def _abandon_stopped(self, volume: Volume) -> None:
        """Abandon an operation from before a boot, whose rollback would export the volume."""
        running = await self._launcher.running()
        with self._context.read() as txn:
            stopped = [
                one
                for one in _operations_on(txn, (volume.id,))
                if one.unit not in running and not self._executor.is_held(one.id)
            ]
        for operation in stopped:
            if operation.boot_id != self._context.boot_id:
                await self._submitter.abandon_unchanged(operation)

    def keeps_back(self, txn: Transaction, operation: Operation) -> bool:
        """Tell whether the rollback of an operation could export a volume that is not served.

        A change of the role exports nothing. One that was cancelled is that of a volume which is to
        be served whatever its peers say: PromoteVolume.preempts.
        """
        steps = (action.step for action in operation.actions)
        exports = any(isinstance(step, HostStep) and step.part == "TARGET" for step in steps)
        if not exports or operation.kind in ROLE_CHANGES or txn.is_cancelled(operation.id):
            return False
        names = [claim.removeprefix("volume/") for claim in operation.claims]
        volumes = (txn.get(Volume, name) for name in names)
        standings = (standing_of(txn, volume) for volume in volumes if volume is not None)
        return operation.boot_id != self._context.boot_id and any(
            standing is not None and standing.boot_id != self._context.boot_id
            for standing in standings
        )


async def _export_nothing(_names: tuple[str, ...]) -> None:
    """Export nothing: of a service without a reconciler."""


def _operations_on(txn: Transaction, names: Iterable[str]) -> list[Operation]:
    claims = {f"volume/{name}" for name in names}
    return [one for one in txn.live() if not claims.isdisjoint(one.claims)]


def _changes_role(txn: Transaction, volume: Volume) -> bool:
    """Tell whether an operation on a volume is about to change which server serves it."""
    return any(one.kind in ROLE_CHANGES for one in _operations_on(txn, (volume.id,)))
