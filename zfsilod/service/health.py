"""The problems of this host: records, wishes and one look at the facts, for GetStatus."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import InvalidArgument, Unavailable, ZfsiloError
from zfsilod.model.records import Attachment, Volume
from zfsilod.model.volume_file import VolumeFile, parse
from zfsilod.security.join_file import expiry
from zfsilod.service.drift import DriftReport, compare_all, store_conditions
from zfsilod.service.pool_scan import unknown_volumes
from zfsilod.storage.summary import Attention, Summary, about_volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zfsilod.requests.adoption import AdoptVolume
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

LOOK_S = 10.0
NAMED = 3  # zvols in one sentence


class Health(NamedTuple):
    """The counts of the records, and everything that needs attention."""

    summary: Summary
    attention: list[Attention]
    states: dict[str, int]  # by state, as probed: "INCOMPLETE" for one that differs from its record


class HealthReader:
    """Compares records and wishes with the facts, when somebody asks."""

    def __init__(self, context: Context) -> None:
        self.wishes: Path | None = None  # the folder volumes.d
        self.certificate: Path | None = None  # this host's own
        self._context = context
        self._looking: asyncio.Task[tuple[list[DriftReport], list[AdoptVolume]]] | None = None

    async def read(self, sessions: dict[str, str]) -> Health:
        """Look at the host now, and return all problems. Never fails because the host does.

        `sessions`: the problems of sessions by attachment. They explain why facts are unknown.
        """
        own: list[Attention] = []
        reports: list[DriftReport] = []
        try:
            own += await self._pool()  # first: it may be the reason why the rest has no answer
            reports, strangers = await self._look()
            own += await asyncio.to_thread(self._strangers, strangers)
            await self._context.write(
                partial(
                    store_conditions,
                    reports=[one for one in reports if not one.unknown],
                    failed={},
                    repaired=False,
                )
            )
        except ZfsiloError as error:
            if error.message not in (one.sentence for one in own):
                own.append(Attention(subject="", sentence=f"not looked at: {error.message}"))
        wishes = await asyncio.to_thread(self._wishes)
        own += await asyncio.to_thread(self._own_certificate)
        shown = [one for one in reports if one.missing and one.volume not in sessions]
        health = await asyncio.to_thread(self._health, reports, shown, wishes, own)
        problems = {one.volume: one.problems[0].problem for one in reports if one.unknown}
        known = {attention.subject for attention in health.attention}
        for name, sentence in (problems | sessions).items():
            if f"volumes/{name}" not in known:
                attention = about_volume(name, sentence)
                # doctor tells why a server is not reached; the page of the volume does not.
                command = "zfsiloctl doctor" if name in sessions else attention.command
                health.attention.append(attention.but(command=command))
        return health

    def unmet_wishes(self) -> int:
        """Return how many wishes of volumes.d the records do not fulfil; does not ask the host."""
        wishes = self._wishes()
        if not wishes:
            return 0
        with self._context.read() as txn:
            attachments = {one.id: one for one in txn.scan(Attachment)}
            return len(list(_unmet(wishes, attachments, _busy(txn, wishes))))

    async def close(self) -> None:
        """End a look in progress."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> tuple[list[DriftReport], list[AdoptVolume]]:
        """Compare all volumes, and list the zvols without a record; one look runs at a time.

        Raises Unavailable after LOOK_S.
        """
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=LOOK_S)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._observe())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.wait({self._looking}, timeout=LOOK_S)
        if not self._looking.done():
            raise Unavailable(f"the host did not answer within {LOOK_S:.0f} s")
        return self._looking.result()

    async def _observe(self) -> tuple[list[DriftReport], list[AdoptVolume]]:
        reports = await compare_all(self._context)
        served = self._context.settings.root
        return reports, await unknown_volumes(self._context) if served else []

    async def _pool(self) -> list[Attention]:
        """Return the problem of the pool: suspended, read-only, without its key."""
        root = self._context.settings.root
        if not root:
            return []
        problem = await self._context.look(partial(self._context.machine.zfs.pool_problem, root))
        return [Attention(subject="", sentence=problem.message)] if problem else []

    def _strangers(self, strangers: list[AdoptVolume]) -> list[Attention]:
        """Return the problem of zvols with zfsilo's marks that have no record."""
        with self._context.read() as txn:
            names = [one.zvol.dataset for one in strangers if not _is_known(txn, one)]
        if not names:
            return []
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        sentence = (
            f"zvols with the marks of zfsilo have no record on this host: "
            f"{', '.join(names[:NAMED])}{more}"
        )
        command = "zfsiloctl adopt --all --dry-run"
        return [Attention(subject="", sentence=sentence, command=command)]

    def _wishes(self) -> list[VolumeFile | InvalidArgument]:
        """Return the files of volumes.d, or why one is invalid."""
        wishes: list[VolumeFile | InvalidArgument] = []
        for path in sorted(self.wishes.glob("*.toml")) if self.wishes else ():
            try:
                wishes.append(parse(path.stem, path.read_text(errors="replace"), path))
            except InvalidArgument as error:
                wishes.append(error)
            except OSError as error:
                wishes.append(InvalidArgument(f"cannot read {path}: {error.strerror}"))
        return wishes

    def _own_certificate(self) -> list[Attention]:
        """Return the problem of this host's own certificate."""
        if self.certificate is None or not self.certificate.exists():
            return []
        try:
            expired = expiry(self.certificate.read_text()) < time.time()
            sentence = "the certificate of this host has expired" if expired else ""
        except (ZfsiloError, OSError, UnicodeDecodeError) as error:
            sentence = f"the certificate of this host cannot be read: {error}"
        command = "zfsiloctl pki renew"
        return [Attention(subject="", sentence=sentence, command=command)] if sentence else []

    def _health(
        self,
        reports: list[DriftReport],
        shown: list[DriftReport],
        wishes: list[VolumeFile | InvalidArgument],
        own: list[Attention],
    ) -> Health:
        with self._context.read() as txn:
            summary = Summary(txn)
            attachments = {one.id: one for one in txn.scan(Attachment)}
            busy = _busy(txn, wishes)
        named = {attention.subject for attention in summary.attention}
        states = dict(summary.states)
        for report in (report for report in reports if report.missing):
            state = attachments[report.volume].state if report.volume in attachments else ""
            if states.get(state):
                states[state] -= 1
                states["INCOMPLETE"] = states.get("INCOMPLETE", 0) + 1
        attention = [
            *own,
            *self._servers(attachments, wishes),
            *summary.attention,
            *(_drifted(one) for one in shown if f"volumes/{one.volume}" not in named),
            *_unmet(wishes, attachments, busy),
        ]
        return Health(summary, attention, {name: count for name, count in states.items() if count})

    def _servers(
        self, attachments: dict[str, Attachment], wishes: list[VolumeFile | InvalidArgument]
    ) -> Iterator[Attention]:
        """Yield the servers in use that refuse this host, or that it does not know."""
        names = {one.server for one in attachments.values() if one.state != "ABSENT"}
        names |= {wish.server for wish in wishes if isinstance(wish, VolumeFile)}
        for name in sorted(names):
            if problem := self._context.servers.problem(name):
                yield Attention(subject="", sentence=problem, command="zfsiloctl doctor")


def _is_known(txn: Transaction, request: AdoptVolume) -> bool:
    """Tell whether a zvol has a record by now, or an operation works on it."""
    if txn.claimant(f"volume/{request.id}") or txn.claimant(f"dataset/{request.zvol.dataset}"):
        return True
    if txn.claimant(f"trash/{request.zvol.uid}"):
        return True
    volume = txn.get(Volume, request.id)
    return volume is not None and volume.uid == request.zvol.uid


def _busy(txn: Transaction, wishes: list[VolumeFile | InvalidArgument]) -> set[str]:
    """Return the names of the wanted volumes on which an operation works."""
    names = [wish.name for wish in wishes if isinstance(wish, VolumeFile)]
    return {name for name in names if txn.claimant(f"attachment/{name}")}


def _drifted(report: DriftReport) -> Attention:
    """Return the problem of a volume whose facts differ from its record."""
    facts = report.missing
    more = f" (and {len(facts) - 1} more)" if len(facts) > 1 else ""
    attention = about_volume(report.volume, f"not so now: {facts[-1]}{more}")
    return attention.but(command=f"zfsiloctl volume sync {report.volume}")


def _unmet(
    wishes: list[VolumeFile | InvalidArgument], attachments: dict[str, Attachment], busy: set[str]
) -> Iterator[Attention]:
    """Yield the wishes of volumes.d that the records do not fulfil."""
    for wish in wishes:
        if isinstance(wish, InvalidArgument):
            yield Attention(subject="", sentence=wish.message)
            continue
        attachment = attachments.get(wish.name)
        if wish.name in busy or _is_fulfilled(wish, attachment):
            continue
        where = f" at {wish.mount_path}" if wish.mount_path else ""
        state = attachment.state.lower() if attachment else "not connected"
        yield Attention(
            subject=f"volumes/{wish.name}",
            sentence=f"should be {wish.state}{where} (volumes.d/{wish.name}.toml), is {state}",
            command=f"systemctl status zfsilo-volume@{wish.name}.service",
        )


def _is_fulfilled(wish: VolumeFile, attachment: Attachment | None) -> bool:
    if attachment is None or attachment.state == "ABSENT":
        return False
    wanted = wish.state.upper()
    order = ("CONNECTED", "STAGED", "MOUNTED")
    if order.index(attachment.state) < order.index(wanted):
        return False
    paths = {mount.path for mount in attachment.mounts}
    return wanted != "MOUNTED" or not wish.mount_path or wish.mount_path in paths
