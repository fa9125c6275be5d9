"""New secrets for standing publications, on both sides, while their sessions go on.

A session that lives is not asked for its secrets again, but what breaks logs in anew, and must have
the new ones then. So the consumer leads: asked to rotate, the storage host changes nothing for a
host that is logged in, and only notes that a rotation is due. The host, which looks every minute,
says when: the target's secrets change, and at once those of the node record, of the session and of
iscsid do (host/session_secrets.py). Where nobody is logged in, or with force, the storage host
changes them right away, and the consumer follows at its next look.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, Publication
from zfsilod.requests.attach import Fetched
from zfsilod.requests.publications import chap_for
from zfsilod.requests.request import Plan, Request, View, drop_secret, put
from zfsilod.requests.volumes import need_publication, need_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import Host as Machine
    from zfsilod.requests.attach import Connection
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

CALLER = "zfsilod"
REFRESH_DEADLINE_S = 180
AT_ONCE = 16  # sessions: each time, iscsid is restarted once

log = logging.getLogger(__name__)


class RotateSecrets(Request):
    """Make new secrets for one publication of a volume, or for all."""

    kind = "rotate-secrets"
    resource = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    force: bool = False  # at once also where a session lives, whoever asks

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, frozenset)
        volume, how = need_volume(view.txn, self.volume), view.settings.export
        found = self.publications(view.txn)
        waiting = [each for each in found if each.id in seen]
        before = [each for each in found if each.id not in seen]
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


class RefreshSecrets(Request):
    """Take the secrets that a server has now; the service fetches them before it plans."""

    kind = "refresh-secrets"
    resource = ("servers", "server")
    server: str
    ids: tuple[str, ...]

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, dict)
        changes = [
            (each, each.but(rotation=seen[each.id].connection.rotation, updated_at=view.now))
            for each in self.attachments(view.txn)
            if each.id in seen and is_stale(each, seen[each.id].connection)
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
            secrets={new.secret: seen[new.id].chap for _before, new in changes},
        )

    def attachments(self, txn: Transaction) -> list[Attachment]:
        """Return those that it is about, as far as they are there."""
        return [each for each in (txn.get(Attachment, name) for name in self.ids) if each]


def is_stale(found: Attachment, told: Connection | Publication) -> bool:
    """Tell whether a host has other secrets than its publication, and no other publication."""
    return told.epoch == found.epoch and told.rotation != found.rotation


async def logged_in(service: Service, request: RotateSecrets) -> frozenset[str]:
    """Return the publications whose hosts are logged in, and have to be asked: none with force."""
    if request.force:
        return frozenset()
    with service.store.read() as txn:
        volume, found = need_volume(txn, request.volume), request.publications(txn)
    target, lio = plans.target_name(service.settings.export.prefix, volume), service.machine.lio
    return await service.look(
        lambda: frozenset(each.id for each in found if lio.has_session(target, each.initiator))
    )


async def known_secrets(service: Service, request: RefreshSecrets) -> dict[str, Fetched]:
    """Ask the server for the secrets of attachments, by their ids; left out: what it refuses."""
    with service.store.read() as txn:
        found = request.attachments(txn)
    answers = await asyncio.gather(*(_fetch(service, each) for each in found))
    return {each.id: answer for each, answer in zip(found, answers, strict=True) if answer}


async def follow(service: Service) -> None:
    """Take what the servers of used volumes have in new secrets, or are to make; all at once."""
    with service.store.read() as txn:
        used = [
            each
            for each in txn.scan(Attachment)
            if each.state != "ABSENT" and not txn.claimant(f"attachment/{each.id}")
        ]
    servers = dict.fromkeys(each.server for each in used)
    await asyncio.gather(
        *(
            _follow(service, name, [each for each in used if each.server == name])
            for name in servers
        )
    )


async def _follow(service: Service, server: str, used: Sequence[Attachment]) -> None:
    try:
        told = {each.volume: each for each in await service.servers.publications(server)}
        ours = [(each, told[each.volume]) for each in used if each.volume in told]
        live = await service.look(partial(_live, used, service.machine))
        stale = [each for each, there in ours if is_stale(each, there)]
        due = [
            each
            for each, there in ours
            if there.rotation_due
            and each.id in live
            and (each.epoch, each.rotation) == (there.epoch, there.rotation)
        ][:AT_ONCE]
        made = await asyncio.gather(*(_rotate(service, each) for each in due))
        stale = [each for each, done in zip(due, made, strict=True) if done] + stale
        if stale:
            request = RefreshSecrets(server=server, ids=tuple(each.id for each in stale[:AT_ONCE]))
            begun = await service.submit(request, caller=CALLER)
            await service.wait(begun.id, REFRESH_DEADLINE_S)
    except ZfsiloError as error:
        log.info("the secrets of what %s serves were not renewed: %s", server, error.message)


def _live(used: Sequence[Attachment], machine: Machine) -> set[str]:
    return {each.id for each in used if not machine.iscsi.is_lost(each.disk)}


async def _rotate(service: Service, found: Attachment) -> bool:
    """Have the server change the secrets of a volume for this host; tell whether it has."""
    try:
        await service.servers.rotate(found.server, found.volume)
    except ZfsiloError as error:
        log.info("%s makes no new secrets for %s: %s", found.server, found.volume, error.message)
        return False
    return True


async def _fetch(service: Service, found: Attachment) -> Fetched | None:
    try:
        connection, chap = await service.servers.fetch(found.server, found.volume)
    except ZfsiloError as error:
        log.info("the secrets of %s cannot be fetched now: %s", found.id, error.message)
        return None
    return Fetched(connection, chap, published="")


def _hosts(publications: Sequence[Publication]) -> str:
    return ", ".join(each.host for each in publications)
