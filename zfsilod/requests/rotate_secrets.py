"""Requests that change the secrets of publications, on both sides, without ending sessions.

The kernel asks for the secrets at a login only, so a session survives the change. A broken session
logs in again and needs the new secrets then. Therefore the client decides when. Asked to rotate,
the server only records, for a client with a session, that a rotation is due. The client polls every
minute and then asks for it; the secrets of the target change, and directly after them those of the
node record, of the session and of iscsid (host/session_secrets.py). For a client without a session,
or with `force`, the server changes them immediately, and the client follows at its next poll.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.host.transports import target_adapter
from zfsilod.model.connection import Connection, FetchedConnection
from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, Publication
from zfsilod.requests.publications import chap_for
from zfsilod.requests.request import Plan, Request, View, drop_secret, put
from zfsilod.requests.rights import check_volume
from zfsilod.requests.volumes import need_publication, need_volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

log = logging.getLogger(__name__)


class RotateSecrets(Request[frozenset[str]]):
    """Change the secrets of one publication of a volume, or of all.

    Input: the publications whose hosts have a session and rotate later; none with `force`.
    """

    kind = "rotate-secrets"
    resource = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    force: bool = False  # immediately, also for a host that has a session

    def authorise(self, view: View) -> None:
        check_volume(view, self.volume, self.host)

    async def gather(self, context: Context, operation_id: str) -> frozenset[str]:
        if self.force:
            return frozenset()
        with context.read() as txn:
            volume, publications = need_volume(txn, self.volume), self.publications(txn)
        target = plans.target_name(context.settings.export.prefix, volume)
        adapter = target_adapter(context.machine, target)
        return await context.look(
            lambda: frozenset(
                publication.id
                for publication in publications
                if adapter.has_session(target, publication.initiator)
            )
        )

    def plan(self, view: View, inputs: frozenset[str]) -> Plan:
        volume, export = need_volume(view.txn, self.volume), view.settings.export
        publications = self.publications(view.txn)
        waiting = [publication for publication in publications if publication.id in inputs]
        before = [publication for publication in publications if publication.id not in inputs]
        after = [old.but(rotation=old.rotation + 1, rotation_due=False) for old in before]
        target = plans.target_name(export.prefix, volume)
        counted = volume.but(epoch=volume.epoch + 1)
        guards = [] if self.force else plans.no_sessions(volume, before, export)
        secrets = [
            plans.rotation(volume, old, new, export) for old, new in zip(before, after, strict=True)
        ]
        first = plans.epoch(volume, counted.epoch, view.operation_id)
        return Plan(
            title=", and ".join(self._titles(waiting, before)),
            claims=(f"volume/{self.volume}",),
            actions=plans.up([*guards, first, *secrets]) if before else (),
            commit=(
                *((put(counted),) if before else ()),
                *map(put, after),
                *(drop_secret(publication.secret) for publication in before),
                *(put(publication.but(rotation_due=True)) for publication in waiting),
            ),
            revert=(
                *((put(volume),) if before else ()),
                *(drop_secret(publication.secret) for publication in after),
            ),
            secrets={publication.secret: chap_for(publication, target) for publication in after},
        )

    def publications(self, txn: Transaction) -> list[Publication]:
        """Return the publications of the request. Raises FailedPrecondition when there is none."""
        if self.host:
            return [need_publication(txn, self.volume, self.host)]
        publications = list(txn.scan_below(Publication, self.volume))
        if not publications:
            raise FailedPrecondition(
                f"{self.volume} is published to no host: it has no secrets",
                reason="NOT_PUBLISHED",
                volume=self.volume,
            )
        return publications

    def _titles(
        self, waiting: Sequence[Publication], changed: Sequence[Publication]
    ) -> Iterator[str]:
        if changed or not waiting:
            yield f"new secrets for {self.volume} on {_hosts(changed)}"
        if waiting:
            yield f"ask {_hosts(waiting)} to use new secrets for {self.volume} within a minute"


class RefreshSecrets(Request[dict[str, FetchedConnection]]):
    """Use the current secrets of a server for attachments of this client.

    Input: the server's connections, by attachment; without those that the server refuses.
    """

    kind = "refresh-secrets"
    on_pool = False
    resource = ("servers", "server")
    server: str
    ids: tuple[str, ...]

    async def gather(self, context: Context, operation_id: str) -> dict[str, FetchedConnection]:
        with context.read() as txn:
            attachments = self.attachments(txn)
        fetched = {}
        for attachment in attachments:
            try:
                answer = await context.servers.fetch(attachment.server, attachment.volume)
            except ZfsiloError as error:
                log.info("cannot fetch the secrets of %s: %s", attachment.id, error.message)
            else:
                fetched[attachment.id] = FetchedConnection(*answer)
        return fetched

    def plan(self, view: View, inputs: dict[str, FetchedConnection]) -> Plan:
        changes: list[tuple[Attachment, Attachment]] = []
        for attachment in self.attachments(view.txn):
            fetched = inputs.get(attachment.id)
            if fetched is not None and is_stale(attachment, fetched.connection):
                rotation = fetched.connection.rotation
                changes.append((attachment, attachment.but(rotation=rotation, updated_at=view.now)))
        if not changes:
            return Plan(title=f"secrets of {self.server}", claims=())
        names = ", ".join(old.id for old, _new in changes)
        return Plan(
            title=f"use new secrets for {names}",
            claims=tuple(f"attachment/{old.id}" for old, _new in changes),
            actions=plans.new_secrets(changes, view.settings.lost_session_s),
            commit=tuple(
                change for old, new in changes for change in (put(new), drop_secret(old.secret))
            ),
            revert=tuple(drop_secret(new.secret) for _old, new in changes),
            secrets={new.secret: inputs[new.id].chap for _old, new in changes},
        )

    def attachments(self, txn: Transaction) -> list[Attachment]:
        """Return the attachments of the request that exist."""
        attachments = (txn.get(Attachment, attachment_id) for attachment_id in self.ids)
        return [attachment for attachment in attachments if attachment is not None]


def is_stale(attachment: Attachment, current: Connection | Publication) -> bool:
    """Tell whether an attachment has the current publication with former secrets."""
    return current.epoch == attachment.epoch and current.rotation != attachment.rotation


def _hosts(publications: Sequence[Publication]) -> str:
    return ", ".join(publication.host for publication in publications)
