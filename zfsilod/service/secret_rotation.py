"""Secret rotation on the client: fetches new secrets from its servers, and asks for due ones."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from zfsilod.host.transports import session_adapter
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.model.names import transport_of
from zfsilod.model.records import Attachment, Condition
from zfsilod.requests.connect import FollowServer, is_followed
from zfsilod.requests.rotate_secrets import RefreshSecrets, is_stale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Publication
    from zfsilod.model.words import Transport
    from zfsilod.requests.context import Context
    from zfsilod.service.ports import Submitter

REFRESH_DEADLINE_S = 180.0
RETRY_S = 600.0
AT_ONCE = 16  # sessions of one refresh, which restarts iscsid once

log = logging.getLogger(__name__)


class SecretRotation:
    """Polls the servers for new secrets, and lets them rotate the ones that are due."""

    def __init__(self, context: Context, submitter: Submitter) -> None:
        self._context = context
        self._submitter = submitter
        self._due: dict[str, float] = {}  # when a path of an attachment is tried again

    async def follow(self) -> None:
        """Poll all servers in parallel for the secrets of all attached volumes."""
        with self._context.read() as txn:
            attachments = [
                attachment
                for attachment in txn.scan(Attachment)
                if attachment.state != "ABSENT" and not txn.claimant(f"attachment/{attachment.id}")
            ]
        names = {attachment.id for attachment in attachments}
        self._due = {name: at for name, at in self._due.items() if name in names}
        by_server: dict[str, list[Attachment]] = {}
        for attachment in attachments:
            by_server.setdefault(attachment.server, []).append(attachment)
        await asyncio.gather(*(self._follow(*item) for item in by_server.items()))

    async def _follow(self, server: str, attachments: Sequence[Attachment]) -> None:
        try:
            publications = {
                publication.volume: publication
                for publication in await self._context.servers.publications(server)
            }
            known = [
                (attachment, publications[attachment.volume])
                for attachment in attachments
                if attachment.volume in publications
            ]
            live = await self._context.look(lambda: _live(self._context.machine, attachments))
            lost = [one for one, _publication in known if one.id not in live]
            moved = await self._moved(server, [one for one, _p in known if one.id in live])
            await asyncio.gather(
                *(self._follow_server(one, is_live=False) for one in lost),
                *(self._follow_server(one, is_live=True) for one in moved),
            )
            await asyncio.gather(*map(self._join, await self._behind(live, known)))
            stale = [one for one, publication in known if is_stale(one, publication)]
            due = [
                attachment
                for attachment, publication in known
                if publication.rotation_due
                and attachment.id in live
                and (attachment.epoch, attachment.rotation)
                == (publication.epoch, publication.rotation)
            ][:AT_ONCE]
            rotated = await asyncio.gather(*(self._rotate(attachment) for attachment in due))
            stale = [one for one, done in zip(due, rotated, strict=True) if done] + stale
            if stale:
                ids = tuple(attachment.id for attachment in stale[:AT_ONCE])
                request = RefreshSecrets(server=server, ids=ids)
                operation = await self._submitter.submit(request, caller=DAEMON)
                await self._submitter.wait(operation.id, REFRESH_DEADLINE_S)
        except ZfsiloError as error:
            log.info("secrets of the volumes of %s were not refreshed: %s", server, error.message)

    async def _moved(self, server: str, live: Sequence[Attachment]) -> list[Attachment]:
        """Return the live attachments with several paths whose server has other portals now.

        Their disks get the paths. The only session of a disk stays, with the node record of its
        portal. A failure leaves them as they are: the other work of a poll does not wait for it.
        """
        joined = await self._with_paths(live)
        try:
            portals = {
                kind: await self._context.servers.portals(server, kind[0], tls=kind[1])
                for kind in set(map(_kind, joined))
            }
        except ZfsiloError as error:
            log.info("the portals of %s are not known: %s", server, error.message)
            return []
        present = [(one, portals[_kind(one)]) for one in joined]
        return [one for one, now in present if now and one.portals != now][:AT_ONCE]

    async def _behind(
        self, live: set[str], known: Sequence[tuple[Attachment, Publication]]
    ) -> list[Attachment]:
        """Return the live attachments that lack a path to a portal that answers.

        Each is returned again after RETRY_S only: the portal may refuse this host.
        """
        machine, now = self._context.machine, time.monotonic()
        joined = await self._with_paths([one for one, _p in known if one.id in live])
        behind = await self._context.look(
            lambda: [
                one
                for one in joined
                if not session_adapter(machine, one.disk.target).follows(one.disk, one.portals)
            ]
        )
        due = [one for one in behind if self._due.get(one.id, now) <= now][:AT_ONCE]
        self._due |= {one.id: now + RETRY_S for one in due}
        return due

    async def _with_paths(self, attachments: Sequence[Attachment]) -> list[Attachment]:
        """Return the attachments whose disks may have several paths."""
        machine = self._context.machine
        return await self._context.look(
            lambda: [
                one
                for one in attachments
                if session_adapter(machine, one.disk.target).has_paths(one.disk)
            ]
        )

    async def _join(self, attachment: Attachment) -> None:
        """Connect at the portals that an attachment is not connected at yet."""
        try:
            operation = await self._submitter.submit(FollowServer(id=attachment.id), caller=DAEMON)
            await self._submitter.wait(operation.id, REFRESH_DEADLINE_S)
        except ZfsiloError as error:
            log.info("%s has no further path: %s", attachment.id, error.message)

    async def _follow_server(self, attachment: Attachment, *, is_live: bool) -> None:
        """Move an attachment to the present portals of its server, if they are others."""
        try:
            current, _chap = await self._context.servers.fetch(attachment.server, attachment.volume)
        except ZfsiloError as error:
            log.info("the portals of %s are not known: %s", attachment.id, error.message)
            return
        if not is_followed(attachment, current):
            return
        moved = (
            f"{attachment.server} has moved from {', '.join(attachment.portals)} to "
            f"{', '.join(current.portals)}"
        )
        log.warning("%s: %s follows it", moved, attachment.id)
        try:
            operation = await self._submitter.submit(FollowServer(id=attachment.id), caller=DAEMON)
            await self._submitter.wait(operation.id, REFRESH_DEADLINE_S)
        except ZfsiloError as error:
            log.warning("%s does not follow its server: %s", attachment.id, error.message)
            # A restart of the unit would unmount a volume whose disk works.
            advice = (
                "its disk stays live, and the daemon tries again each minute"
                if is_live
                else f"systemctl restart zfsilo-volume@{attachment.id}.service"
            )
            sentence = f"{moved}, and the session did not follow ({error.message}): {advice}"
            condition = Condition(
                id=attachment.disk.serial, sentences=(sentence,), reasons=("NOT_FOLLOWED",)
            )
            await self._context.write(lambda txn: txn.put(condition))

    async def _rotate(self, attachment: Attachment) -> bool:
        """Let the server change the secrets of an attachment; tell whether it did."""
        try:
            await self._context.servers.rotate(attachment.server, attachment.volume)
        except ZfsiloError as error:
            log.info(
                "%s did not rotate the secrets of %s: %s",
                attachment.server,
                attachment.volume,
                error.message,
            )
            return False
        return True


def _live(machine: HostAdapters, attachments: Sequence[Attachment]) -> set[str]:
    """Return the ids of the attachments whose sessions are live."""
    return {
        one.id
        for one in attachments
        if not session_adapter(machine, one.disk.target).is_lost(one.disk)
    }


def _kind(attachment: Attachment) -> tuple[Transport, bool]:
    """Return the transport of an attachment, and whether it has TLS."""
    return transport_of(attachment.disk.target), attachment.tls
