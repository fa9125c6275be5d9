"""Watches the sessions and the mounts of attachments: says each change, and repairs at once.

Woken by events of the host (host/change_events.py), and every 5 s, since a lost session sends none.
A look reads sysfs and mountinfo once for all attachments. What it finds is compared and repaired by
the reconciler, as in a pass over all volumes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.host.change_events import ChangeEvents
from zfsilod.host.transports import session_adapter, session_problems
from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Attachment, journal_fields
from zfsilod.requests.detach import EndSession
from zfsilod.service.session_limits import SessionLimits

if TYPE_CHECKING:
    from zfsilod.service.service import Service

HEARTBEAT_S = 5.0
BURST_S = 0.2  # the events of one change come together
RETRY_S = 60.0  # between two repairs of what could not be repaired
ASK_S = 30.0  # between two questions whether the publication of a lost session still stands

log = logging.getLogger(__name__)


class Problems(NamedTuple):
    """What is wrong with an attachment, a sentence each; "": nothing."""

    session: str = ""
    mounts: str = ""


HEALTHY = Problems()


class HostWatch:
    """Keeps the last known problems of each attachment."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._context = service.context
        self._known: dict[str, Problems] | None = None  # None: before the first look
        self._retries: dict[str, float] = {}  # volumes with a problem, and the next repair
        self._limits = SessionLimits(service)
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Look for ever: after each event, and at least every 5 s."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        events = ChangeEvents(lambda: loop.call_soon_threadsafe(woken.set))
        try:
            while True:
                try:
                    await self.look()
                    await self._limits.look()
                except ZfsiloError as error:
                    log.warning("cannot look at sessions and mounts: %s", error.message)
                if await _wait(woken, HEARTBEAT_S):
                    await asyncio.sleep(BURST_S)
                    woken.clear()
        finally:
            events.close()

    async def look(self) -> None:
        """Compare the attachments with the last look; report and repair what changed."""
        recorded = self._attachments()
        looked_at = {one.id: one for one, is_idle in recorded if is_idle}
        self._service.stats.session_problems.keep_only(one for one, _is_idle in recorded)
        attachments = list(looked_at.values())
        now = await self._problems(attachments)
        before, self._known = self._known, {}
        changed = []
        for attachment, is_idle in self._attachments():
            name = attachment.id
            if not is_idle and name not in (before or {}):
                continue
            known = (before or {}).get(name, HEALTHY)
            self._known[name] = known
            if not is_idle or looked_at.get(name) != attachment:
                continue  # an operation works on it, or did meanwhile
            self._known[name] = now[name]
            if before is not None and now[name] != known:
                self._report(attachment, known, now[name])
                changed.append(name)
        await self._repair(changed)
        lost = [attachment for attachment in attachments if now[attachment.id].session]
        if lost and time.monotonic() - self._asked >= ASK_S:
            self._ask(lost)

    def _attachments(self) -> list[tuple[Attachment, bool]]:
        """Return the attachments, and whether no operation works on each."""
        with self._context.read() as txn:
            return [
                (attachment, not txn.claimant(f"attachment/{attachment.id}"))
                for attachment in txn.scan(Attachment)
                if attachment.state != "ABSENT"
            ]

    async def _problems(self, attachments: list[Attachment]) -> dict[str, Problems]:
        machine, words = self._context.machine, self._service.stats.session_problems
        disks = [attachment.disk for attachment in attachments]
        wanted = {path: readonly for one in attachments for path, readonly in _mounts(one)}
        broken, mounts = await self._context.look(
            lambda: (session_problems(machine, disks), machine.mounts.problems(wanted))
        )
        sessions = words.describe(attachments, broken)
        return {
            one.id: Problems(
                session=sessions.get(one.id, ""),
                mounts="; ".join(mounts[path] for path, _ro in _mounts(one) if path in mounts),
            )
            for one in attachments
        }

    def _report(self, attachment: Attachment, before: Problems, now: Problems) -> None:
        """Write one line to the journal for each kind of problem that came or went."""
        name = attachment.id
        fields = journal_fields(f"volumes/{name}")
        if now.session != before.session:
            sentence = now.session or f"the session with {attachment.server} is back"
            self._service.audit.write(f"{name}: {sentence}", fields)
        if now.mounts != before.mounts:
            sentence = now.mounts or "mounted, and its filesystem works again"
            self._service.audit.write(f"{name}: {sentence}", fields)

    async def _repair(self, changed: list[str]) -> None:
        """Repair what changed, and from time to time what could not be repaired."""
        now = time.monotonic()
        known = self._known or {}
        self._retries = {name: due for name, due in self._retries.items() if name in known}
        due = [name for name, at in self._retries.items() if at <= now and name not in changed]
        names = (*changed, *due)
        if not names:
            return
        left = await self._service.reconciler.sync_some(names, DAEMON)
        for name in names:
            self._retries.pop(name, None)
            if name in left:
                self._retries[name] = time.monotonic() + RETRY_S

    def _ask(self, lost: list[Attachment]) -> None:
        if self._asking is None or self._asking.done():
            self._asked = time.monotonic()
            self._asking = self._service.executor.spawn(self._end_withdrawn(lost))

    async def _end_withdrawn(self, lost: list[Attachment]) -> None:
        """End lost sessions whose publications were withdrawn: they will never be back."""
        for one in lost:
            adapter = session_adapter(self._context.machine, one.disk.target)
            try:
                exists = await self._context.look(partial(adapter.has_any_session, one.disk))
                if exists and await self._is_withdrawn(one):
                    request = EndSession(id=one.id, epoch=one.epoch)
                    await self._service.submit(request, caller=DAEMON)
            except ZfsiloError as error:
                log.debug("the publication of %s is not known: %s", one.id, error.message)

    async def _is_withdrawn(self, attachment: Attachment) -> bool:
        servers = self._context.servers
        try:
            connection, _chap = await servers.fetch(attachment.server, attachment.volume)
        except FailedPrecondition as error:
            return error.reason == "NOT_PUBLISHED"
        return connection.epoch > attachment.epoch


def _mounts(attachment: Attachment) -> list[tuple[str, bool]]:
    """Return the paths of an attachment, and whether each is read-only."""
    readonly = attachment.stage_readonly
    staging = [(attachment.staging_path, readonly)] if attachment.staging_path else []
    own = [(mount.path, readonly or mount.readonly) for mount in attachment.mounts]
    return [*staging, *own]


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False
