"""The requests of a storage host about who uses a volume: publish, unpublish, report a filesystem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.chap import Chap
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zfsilod.model.host_facts import FILESYSTEMS, Filesystem, FilesystemState
from zfsilod.model.names import UUID
from zfsilod.model.records import AccessMode, Action, Host, Publication, Transport, Volume
from zfsilod.model.validation import check_id
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.volumes import need_publication, need_volume

if TYPE_CHECKING:
    from zfsilod.model.settings import Settings
    from zfsilod.storage.store import Transaction

GRACE_S = 5  # that a fenced host has to log out, when the caller does not say
MAX_GRACE_S = 60
WRITERS = {  # how many hosts may write, in the modes that admit several hosts
    "MULTI_NODE_READER_ONLY": 0,
    "MULTI_NODE_SINGLE_WRITER": 1,
    "MULTI_NODE_MULTI_WRITER": 1 << 20,
}
READERS = ("SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY")


class Publish(Request):
    """Export a volume to one host.

    `force`: the service first takes it back from every host that stands in the way, with a fence.
    """

    kind = "publish"
    resource = ("volumes", "volume")
    volume: str
    host: str
    access_mode: AccessMode = "SINGLE_NODE_WRITER"
    readonly: bool = False
    transport: Transport = "ISCSI"
    force: bool = False
    client_operation: str = ""  # the consumer's operation, when it publishes to itself

    def plan(self, view: View, seen: object) -> Plan:
        volume, host = need_volume(view.txn, self.volume), _registered(view.txn, self.host)
        standing = view.txn.get(Publication, f"{self.volume}/{self.host}")
        fenced = [each.host for each in view.before if isinstance(each, Unpublish)]
        others = [each for each in self._others(view.txn) if each.host not in fenced]
        if standing is not None and not self._same(standing):
            raise AlreadyExists(
                f"{self.volume} is published to {self.host} {_manner(standing)}, not "
                f"{_manner(self)}: unpublish it first",
                volume=self.volume,
                host=self.host,
            )
        wanted = standing
        if standing is None or standing.initiator != host.iqn:
            self._check(view, volume, host, others)
            rotation = standing.rotation + 1 if standing else 0
            wanted = self._publication(volume, host, view).but(rotation=rotation)
        assert wanted is not None
        how, new = view.settings.export, wanted is not standing
        actions = plans.publish(volume, wanted, how, others)
        if standing is not None and new:  # the host has another name now: it is let in anew
            actions = (*plans.revoke(volume, standing, how, others), *actions)
        target = plans.target_name(how.prefix, volume)
        return Plan(
            title=f"publish {self.volume} to {self.host} over iscsi",
            claims=(f"volume/{self.volume}",),
            actions=actions,
            commit=(
                put(volume.but(state="PUBLISHED", epoch=max(volume.epoch, wanted.epoch))),
                put(wanted),
                *((drop_secret(standing.secret),) if standing is not None and new else ()),
            ),
            revert=(drop_secret(wanted.secret),) if new else (),
            secrets={wanted.secret: chap_for(wanted, target)} if new else {},
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        volume, host = txn.get(Volume, self.volume), txn.get(Host, self.host)
        found = txn.get(Publication, f"{self.volume}/{self.host}")
        if volume is None or host is None or found is None or not self._same(found):
            return None
        if found.initiator != host.iqn:
            return None
        actions = plans.publish(volume, found, settings.export, self._others(txn))
        return (*plans.up([plans.zvol(volume)]), *actions)

    def fences(self, txn: Transaction) -> list[Unpublish]:
        """Return what must be done first, with `force`: take it from those that are in the way."""
        others = self._others(txn) if self.force else []
        if not others or not self._problem(others):
            return []
        return [
            Unpublish(volume=self.volume, host=each.host, fence=True, grace_s=0) for each in others
        ]

    def _others(self, txn: Transaction) -> list[Publication]:
        found = txn.scan_below(Publication, self.volume)
        return [each for each in found if each.host != self.host]

    @property
    def _readonly(self) -> bool:
        return self.readonly or self.access_mode in READERS

    def _same(self, found: Publication) -> bool:
        return (found.readonly, found.access_mode, found.transport) == (
            self._readonly,
            self.access_mode,
            self.transport,
        )

    def _check(self, view: View, volume: Volume, host: Host, others: list[Publication]) -> None:
        if self.access_mode not in volume.access_modes:
            raise InvalidArgument(
                f"{volume.id} allows {', '.join(volume.access_modes)}, not {self.access_mode}",
                reason="ACCESS_MODE",
                volume=volume.id,
            )
        if self.access_mode in WRITERS and volume.mode == "FILESYSTEM" and not self._readonly:
            raise InvalidArgument(
                f"{volume.id} carries a filesystem, which several hosts would destroy if one "
                f"writes: publish it readonly, or with another mode than {self.access_mode}",
                reason="ACCESS_MODE",
                volume=volume.id,
            )
        problem = self._problem(others) if others else ""
        if problem:
            holder = others[0].host
            raise FailedPrecondition(
                f"{volume.id} is published to {holder}{problem}: unpublish it there first, or "
                "publish with --force",
                reason="PUBLISHED",
                volume=volume.id,
                host=holder,
            )
        self._check_room(view, host)

    def _problem(self, others: list[Publication]) -> str:
        """Return why this publication cannot stand beside these others; "": it can."""
        modes = {self.access_mode, *(each.access_mode for each in others)}
        if not modes <= set(WRITERS):
            return ", for itself alone"
        writers = [self._readonly, *(each.readonly for each in others)].count(False)
        allowed = min(WRITERS[mode] for mode in modes)
        return f", and {allowed} of them may write" if writers > allowed else ""

    def _check_room(self, view: View, host: Host) -> None:
        if not host.max_attachments:
            return
        held = sum(
            each.volume != self.volume for each in view.txn.scan_ending(Publication, host.id)
        )
        if held >= host.max_attachments:
            raise ResourceExhausted(
                f"{host.id} holds {held} volumes, and may hold no more (max_attachments)",
                reason="MAX_ATTACHMENTS",
                host=host.id,
            )

    def _publication(self, volume: Volume, host: Host, view: View) -> Publication:
        if not host.iqn:
            raise FailedPrecondition(
                f"the host {host.id} has no IQN: register it first", reason="NO_IQN", host=host.id
            )
        return Publication(
            id=f"{volume.id}/{host.id}",
            volume=volume.id,
            host=host.id,
            initiator=host.iqn,
            transport=self.transport,
            access_mode=self.access_mode,
            readonly=self._readonly,
            epoch=volume.epoch + 1,
            published_by=view.caller,
            client_operation=self.client_operation,
            created_at=view.now,
        )


class Unpublish(Request):
    """Take a volume back from one host, or from all.

    `fence`: also from a host that is logged in, which may log out within the grace; else refused.
    """

    kind = "unpublish"
    resource = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    client_operation: str = ""  # only if this operation of the consumer published it
    fence: bool = False
    grace_s: int = GRACE_S

    def plan(self, view: View, seen: object) -> Plan:
        if not 0 <= self.grace_s <= MAX_GRACE_S:
            raise InvalidArgument(
                f"the grace is {self.grace_s} s: it may be 0 to {MAX_GRACE_S}", reason="BAD_GRACE"
            )
        volume = need_volume(view.txn, self.volume)
        standing = list(view.txn.scan_below(Publication, self.volume))
        gone = [each for each in standing if self._names(each)]
        left = [each for each in standing if each not in gone]
        how = view.settings.export
        actions: list[Action] = []
        for index, each in enumerate(gone):
            others = [*left, *gone[index + 1 :]]
            fence = plans.Fence(grace_s=self.grace_s) if self.fence else None
            actions += plans.unpublish(volume, each, how, others, fence=fence)
        state = "PUBLISHED" if left else "CREATED"
        return Plan(
            title=f"{'fence' if self.fence else 'unpublish'} {self.volume} from "
            f"{self.host or 'all hosts'}",
            claims=(f"volume/{self.volume}",),
            actions=tuple(actions),
            commit=(
                *(drop(each) for each in gone),
                *(drop_secret(each.secret) for each in gone),
                *((put(volume.but(state=state)),) if gone else ()),
            ),
        )

    def _names(self, publication: Publication) -> bool:
        if self.client_operation and publication.client_operation != self.client_operation:
            return False
        return self.host in ("", publication.host)


class ReportFilesystem(Request):
    """Take note of what the holder of a volume does with its filesystem; it only moves forward."""

    kind = "report"
    resource = ("volumes", "volume")
    volume: str
    host: str
    epoch: int
    state: FilesystemState
    type: str
    uuid: str
    operation: str = ""

    def plan(self, view: View, seen: object) -> Plan:
        volume = need_volume(view.txn, self.volume)
        publication = need_publication(view.txn, self.volume, self.host)
        if publication.epoch != self.epoch:
            raise FailedPrecondition(
                f"the publication of {self.volume} to {self.host} is not the one that {self.host} "
                "knows: connect again",
                reason="STALE_EPOCH",
                volume=self.volume,
            )
        wanted = Filesystem(
            state=self.state,
            type=self.type,
            uuid=self.uuid,
            operation=self.operation if self.state == "FORMATTING" else "",
            host=self.host,
        )
        self._check(volume.filesystem)
        actions = plans.mark_filesystem(volume, wanted) if wanted != volume.filesystem else ()
        return Plan(
            title=f"mark the filesystem of {self.volume} {self.state}",
            claims=(f"volume/{self.volume}",),
            actions=actions,
            commit=(put(volume.but(filesystem=wanted)),),
        )

    def _check(self, now: Filesystem) -> None:
        if self.type not in FILESYSTEMS or not UUID.fullmatch(self.uuid):
            raise InvalidArgument(
                f"{self.type[:40]!r} {self.uuid[:40]!r} is no filesystem that zfsilo makes",
                reason="BAD_FILESYSTEM",
            )
        there = now.state in ("READY", "CLONED")
        if there and (self.state != "READY" or now.uuid != self.uuid):
            raise FailedPrecondition(
                f"{self.volume} has a {now.type} filesystem already: {now.uuid}",
                reason="FILESYSTEM_READY",
                volume=self.volume,
                uuid=now.uuid,
            )


def _registered(txn: Transaction, host_id: str) -> Host:
    """Return a host to publish to, else raise NotFound."""
    found = txn.get(Host, check_id(host_id, "host id"))
    if found is None:
        raise NotFound(
            f"there is no host {host_id}: register it first", reason="NO_HOST", host=host_id
        )
    return found


def _manner(how: Publish | Publication) -> str:
    readonly = how.readonly or how.access_mode in READERS
    return f"as {how.access_mode}, {'read-only' if readonly else 'writable'}"


def chap_for(publication: Publication, target: str) -> Chap:
    """Return new secrets for a publication: each side is named by its iSCSI name."""
    return Chap.make(username=publication.initiator, mutual_username=target)
