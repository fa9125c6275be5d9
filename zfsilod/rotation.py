"""New secrets for standing publications, on both sides.

The storage host changes what its target asks for; a session that lives is not asked again. But
open-iscsi has no command that gives a session other secrets: iscsid keeps them in memory, and takes
them from the kernel when it is started anew. So one whose connection breaks after a rotation is
lost, and a rotation under a live session has to be forced. The consumer takes the new ones for its
next login: it asks its server about the sessions that are lost or gone, and no other.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from zfsilod import plan
from zfsilod.errors import FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.give import need_publication, need_volume
from zfsilod.model import Attachment, Publication
from zfsilod.publish import chap_for
from zfsilod.take import Fetched, need_attachment
from zfsilod.verbs import Plan, Verb, World, drop_secret, put

if TYPE_CHECKING:
    from zfsilod.host import Host as Machine
    from zfsilod.service import Service

CALLER = "zfsilod"
REFRESH_DEADLINE_S = 90

log = logging.getLogger(__name__)


class RotateSecrets(Verb):
    """Make new secrets for one publication of a volume, or for all."""

    kind = "rotate-secrets"
    about = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    force: bool = False  # also where a session lives, which cannot come back when it breaks

    def plan(self, world: World, seen: object) -> Plan:
        volume, how = need_volume(world.txn, self.volume), world.settings.export
        before = self._publications(world)
        after = [each.but(rotation=each.rotation + 1) for each in before]
        target = plan.target_name(how.prefix, volume)
        pairs = list(zip(before, after, strict=True))
        return Plan(
            title=f"new secrets for {self.volume} on {self.host or 'all hosts'}",
            claims=(f"volume/{self.volume}",),
            moves=tuple(
                move
                for old, new in pairs
                for move in plan.rotation(volume, old, new, how, force=self.force)
            ),
            commit=(*map(put, after), *(drop_secret(each.secret) for each in before)),
            revert=tuple(drop_secret(each.secret) for each in after),
            secrets={each.secret: chap_for(each, target) for each in after},
        )  # fmt: skip

    def _publications(self, world: World) -> list[Publication]:
        if self.host:
            return [need_publication(world.txn, self.volume, self.host)]
        found = list(world.txn.scan_below(Publication, self.volume))
        if not found:
            raise FailedPrecondition(
                f"{self.volume} is published to no host: it has no secrets",
                reason="NOT_PUBLISHED", volume=self.volume,
            )  # fmt: skip
        return found


class RefreshSecrets(Verb):
    """Log in with the secrets that the server has now; the service fetches them before it plans."""

    kind = "refresh-secrets"
    id: str

    def plan(self, world: World, seen: object) -> Plan:
        assert isinstance(seen, Fetched)
        before = need_attachment(world.txn, self.id)
        after = before.but(rotation=seen.connection.rotation, updated_at=world.now)
        if not is_stale(before, seen):
            return Plan(title=f"secrets of {self.id}: already so", claims=())
        return Plan(
            title=f"take new secrets for {self.id}", claims=(f"attachment/{self.id}",),
            moves=plan.new_secrets(before, after),
            commit=(put(after), drop_secret(before.secret)), revert=(drop_secret(after.secret),),
            secrets={after.secret: seen.chap},
        )  # fmt: skip


def is_stale(found: Attachment, seen: Fetched) -> bool:
    """Tell whether a host has other secrets than its publication, and no other publication."""
    told = seen.connection
    return told.epoch == found.epoch and told.rotation != found.rotation


async def refresh_lost(service: Service) -> None:
    """Ask the servers of all lost sessions whether the secrets were rotated, and take those."""
    with service.store.read() as txn:
        used = [each for each in txn.scan(Attachment) if each.height != "ABSENT"]
    silent: set[str] = set()
    for each in await service.look(partial(_lost, used, service.machine)):
        if each.server in silent:
            continue
        try:
            await _refresh(service, each)
        except Unavailable as error:
            silent.add(each.server)
            log.info("the secrets of %s cannot be asked for now: %s", each.id, error.message)
        except ZfsiloError as error:
            log.warning("the secrets of %s were not renewed: %s", each.id, error.message)


def _lost(used: list[Attachment], machine: Machine) -> list[Attachment]:
    return [each for each in used if machine.iscsi.is_lost(each.disk)]


async def _refresh(service: Service, found: Attachment) -> None:
    connection, chap = await service.servers.fetch(found.server, found.volume)
    if is_stale(found, Fetched(connection, chap, published="")):
        begun = await service.begin(RefreshSecrets(id=found.id), caller=CALLER)
        await service.wait(begun.id, REFRESH_DEADLINE_S)
