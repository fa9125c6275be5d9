"""New secrets for standing publications, on both sides, while their sessions go on.

A session that lives is not asked for its secrets again, but what breaks logs in anew, and must have
the new ones then. So the consumer leads: asked to rotate, the storage host changes nothing for a
host that is logged in, and only notes that a rotation is due. The host, which looks every minute,
says when: the target's secrets change, and at once those of the node record, of the session and of
iscsid do (host/session_secrets.py). Where nobody is logged in, or with force, the storage host
changes them right away, and the consumer follows at its next look.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.connection import Connection, FetchedConnection
from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, Publication
from zfsilod.requests.publications import chap_for
from zfsilod.requests.request import Plan, Request, View, drop_secret, put
from zfsilod.requests.volumes import need_publication, need_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.requests.context import Context
    from zfsilod.storage.store import Transaction

log = logging.getLogger(__name__)


class RotateSecrets(Request[frozenset[str]]):
    """Make new secrets for one publication of a volume, or for all.

    Input: the publications whose hosts are logged in and must be asked first; none with `force`.
    """

    kind = "rotate-secrets"
    resource = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    force: bool = False  # at once also where a session lives, whoever asks

    async def gather(self, context: Context, operation_id: str) -> frozenset[str]:
        if self.force:
            return frozenset()
        with context.read() as txn:
            volume, publications = need_volume(txn, self.volume), self.publications(txn)
        target = plans.target_name(context.settings.export.prefix, volume)
        lio = context.machine.lio
        return await context.look(
            lambda: frozenset(
                publication.id
                for publication in publications
                if lio.has_session(target, publication.initiator)
            )
        )

    def plan(self, view: View, inputs: frozenset[str]) -> Plan:
        volume, how = need_volume(view.txn, self.volume), view.settings.export
        found = self.publications(view.txn)
        waiting = [each for each in found if each.id in inputs]
        before = [each for each in found if each.id not in inputs]
        after = [each.but(rotation=each.rotation + 1, rotation_due=False) for each in before]
        target = plans.target_name(how.prefix, volume)
        return Plan(
            title=self._title(waiting, before),
            claims=(f"volume/{self.volume}",),
            actions=tuple(
                action
                for old, new in zip(before, after, strict=True)
                for action in plans.rotation(volume, old, new, how, force=self.force)
            ),
            commit=(
                *map(put, after),
                *(drop_secret(each.secret) for each in before),
                *(put(each.but(rotation_due=True)) for each in waiting),
            ),
            revert=tuple(drop_secret(each.secret) for each in after),
            secrets={each.secret: chap_for(each, target) for each in after},
        )

    def publications(self, txn: Transaction) -> list[Publication]:
        """Return those that it is about, else raise NotFound or FailedPrecondition."""
        if self.host:
            return [need_publication(txn, self.volume, self.host)]
        found = list(txn.scan_below(Publication, self.volume))
        if not found:
            raise FailedPrecondition(
                f"{self.volume} is published to no host: it has no secrets",
                reason="NOT_PUBLISHED",
                volume=self.volume,
            )
        return found

    def _title(self, waiting: Sequence[Publication], changed: Sequence[Publication]) -> str:
        asked = f"ask {_hosts(waiting)} to use new secrets for {self.volume} within a minute"
        if waiting and not changed:
            return asked
        made = f"new secrets for {self.volume} on {_hosts(changed)}"
        return f"{made}, and {asked}" if waiting else made


class RefreshSecrets(Request[dict[str, FetchedConnection]]):
    """Take over the current secrets of a server.

    Input: the connections by attachment, as the server describes them; those it refuses are absent.
    """

    kind = "refresh-secrets"
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
        changes = [
            (each, each.but(rotation=inputs[each.id].connection.rotation, updated_at=view.now))
            for each in self.attachments(view.txn)
            if each.id in inputs and is_stale(each, inputs[each.id].connection)
        ]
        if not changes:
            return Plan(title=f"secrets of {self.server}", claims=())
        names = ", ".join(each.id for each, _after in changes)
        return Plan(
            title=f"take new secrets for {names}",
            claims=tuple(f"attachment/{each.id}" for each, _after in changes),
            actions=plans.new_secrets(changes),
            commit=tuple(
                change for old, new in changes for change in (put(new), drop_secret(old.secret))
            ),
            revert=tuple(drop_secret(new.secret) for _before, new in changes),
            secrets={new.secret: inputs[new.id].chap for _before, new in changes},
        )

    def attachments(self, txn: Transaction) -> list[Attachment]:
        """Return those that it is about, as far as they are there."""
        return [each for each in (txn.get(Attachment, name) for name in self.ids) if each]


def is_stale(found: Attachment, told: Connection | Publication) -> bool:
    """Tell whether a host has other secrets than its publication, and no other publication."""
    return told.epoch == found.epoch and told.rotation != found.rotation


def _hosts(publications: Sequence[Publication]) -> str:
    return ", ".join(each.host for each in publications)
