"""The verbs of a storage host: create, update, delete, publish, unpublish, report a filesystem."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from zfsilod import plan
from zfsilod.checks import (
    Room,
    check_block_size,
    check_hosts,
    check_properties,
    check_room,
    check_size,
    round_up,
)
from zfsilod.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from zfsilod.model import (
    FILESYSTEMS,
    AccessMode,
    Filesystem,
    FilesystemState,
    Host,
    Mode,
    Move,
    Publication,
    Transport,
    Volume,
)
from zfsilod.secret import Chap
from zfsilod.verbs import (
    Plan,
    Settings,
    Verb,
    World,
    check_etag,
    check_id,
    check_labels,
    drop,
    drop_secret,
    put,
)

if TYPE_CHECKING:
    from zfsilod.host import Host as Machine
    from zfsilod.record import Pairs
    from zfsilod.store import Transaction

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class CreateVolume(Verb):
    """Make a zvol below the dataset root."""

    kind = "create"
    id: str
    capacity_bytes: int
    limit_bytes: int = 0
    thin: bool = True
    mode: Mode = "FILESYSTEM"
    properties: Pairs = ()
    labels: Pairs = ()
    hosts: tuple[str, ...] = ()
    access_modes: tuple[AccessMode, ...] = ("SINGLE_NODE_WRITER",)

    def look(self, host: Machine, settings: Settings) -> Room:
        need_root(settings)
        check_id(self.id, "volume id")
        available, total = host.zfs.capacity(settings.root)
        return Room(available_bytes=available, total_bytes=total)

    def plan(self, world: World, seen: object) -> Plan:
        assert isinstance(seen, Room)
        wanted = self._volume(world)
        if world.txn.get(Volume, self.id):
            raise AlreadyExists(
                f"the volume {self.id} exists with other parameters", volume=self.id
            )
        check_room(wanted, seen, world)
        return Plan(
            title=f"create {self.id}",
            claims=(f"volume/{self.id}",), moves=plan.up([plan.zvol(wanted, world.operation_id)]),
            commit=(put(wanted.but(height="CREATED")),),
        )  # fmt: skip

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Move, ...] | None:
        found = txn.get(Volume, self.id)
        same = found is not None and (
            (found.thin, found.mode, found.properties, found.hosts, found.access_modes)
            == (self.thin, self.mode, self._properties(), self.hosts, self.access_modes)
            and found.capacity_bytes == round_up(self.capacity_bytes, found.volblocksize)
        )
        return plan.up([plan.zvol(found)]) if found is not None and same else None

    def _properties(self) -> Pairs:
        return tuple(pair for pair in sorted(self.properties) if pair[0] != "volblocksize")

    def _volume(self, world: World) -> Volume:
        block = check_block_size(dict(self.properties), world.settings.volblocksize)
        size = check_size(self.capacity_bytes, self.limit_bytes, block)
        return Volume(
            id=self.id, uid=uuid.uuid4().hex, dataset=f"{world.settings.root}/{self.id}",
            capacity_bytes=size, thin=self.thin, mode=self.mode, volblocksize=block,
            properties=check_properties(self._properties()), labels=check_labels(self.labels),
            hosts=check_hosts(self.hosts), access_modes=self.access_modes,
            created_at=world.now, updated_at=world.now,
        )  # fmt: skip


class UpdateVolume(Verb):
    """Change what `mask` names: capacity_bytes, properties, labels, hosts."""

    kind = "update"
    id: str
    mask: tuple[str, ...]
    capacity_bytes: int = 0
    limit_bytes: int = 0
    properties: Pairs = ()
    labels: Pairs = ()
    hosts: tuple[str, ...] = ()
    etag: str = ""

    def look(self, host: Machine, settings: Settings) -> Room | None:
        unknown = set(self.mask) - {"capacity_bytes", "properties", "labels", "hosts"}
        if unknown or not self.mask:
            raise InvalidArgument(
                f"the update mask names {', '.join(sorted(unknown)) or 'nothing'}: it may name "
                "capacity_bytes, properties, labels, hosts",
                reason="BAD_MASK",
            )
        if "capacity_bytes" not in self.mask:
            return None
        available, total = host.zfs.capacity(settings.root)
        return Room(available_bytes=available, total_bytes=total)

    def plan(self, world: World, seen: object) -> Plan:
        volume = need_volume(world.txn, self.id)
        check_etag(self.etag, volume.revision)
        moves: list[Move] = []
        new = volume.but(updated_at=world.now)
        if "labels" in self.mask:
            new = new.but(labels=check_labels(self.labels))
        if "hosts" in self.mask:
            new = new.but(hosts=check_hosts(self.hosts))
        if "properties" in self.mask:
            values = dict(check_properties(self.properties))
            moves += plan.properties(volume, values)
            kept = {n: v for n, v in (dict(volume.properties) | values).items() if v}
            new = new.but(properties=tuple(sorted(kept.items())))
        if "capacity_bytes" in self.mask:
            assert isinstance(seen, Room)
            new = new.but(capacity_bytes=self._size(volume, seen, world))
            if new.capacity_bytes != volume.capacity_bytes:
                moves += plan.resize(volume, new.capacity_bytes)
        return Plan(
            title=f"update {self.id} ({', '.join(self.mask)})",
            claims=(f"volume/{self.id}",), moves=tuple(moves), commit=(put(new),),
        )  # fmt: skip

    def _size(self, volume: Volume, room: Room, world: World) -> int:
        size = check_size(self.capacity_bytes, self.limit_bytes, volume.volblocksize)
        if size < volume.capacity_bytes:
            raise InvalidArgument(
                f"{volume.id} has {volume.capacity_bytes} bytes: a volume never shrinks",
                reason="SHRINK", volume=volume.id,
            )  # fmt: skip
        check_room(volume.but(capacity_bytes=size), room, world, before=volume.capacity_bytes)
        return size


class DeleteVolume(Verb):
    """Destroy an unpublished volume and its data."""

    kind = "delete"
    id: str
    etag: str = ""

    def plan(self, world: World, seen: object) -> Plan:
        volume = need_volume(world.txn, self.id)
        check_etag(self.etag, volume.revision)
        holders = [each.host for each in world.txn.scan_below(Publication, self.id)]
        if holders:
            raise FailedPrecondition(
                f"{self.id} is published to {', '.join(holders)}: unpublish it first",
                reason="PUBLISHED", volume=self.id, hosts=",".join(holders),
            )  # fmt: skip
        return Plan(
            title=f"delete {self.id}",
            claims=(f"volume/{self.id}",), moves=plan.down([plan.zvol(volume)]),
            commit=(drop(volume),),
        )  # fmt: skip


class Publish(Verb):
    """Export a volume to one host."""

    kind = "publish"
    about = ("volumes", "volume")
    volume: str
    host: str
    access_mode: AccessMode = "SINGLE_NODE_WRITER"
    readonly: bool = False
    transport: Transport = "ISCSI"
    request: str = ""  # the consumer's operation, when it publishes to itself

    def plan(self, world: World, seen: object) -> Plan:
        volume, host = need_volume(world.txn, self.volume), need_host(world.txn, self.host)
        others = list(world.txn.scan_below(Publication, self.volume))
        standing = next((each for each in others if each.host == self.host), None)
        if standing is None:
            self._check(volume, others)
            standing = self._publication(volume, host, world)
        elif not self._same(standing):
            raise AlreadyExists(
                f"{self.volume} is published to {self.host} with other parameters: unpublish it "
                "first",
                volume=self.volume, host=self.host,
            )  # fmt: skip
        new = standing.revision == 0
        others = [each for each in others if each.host != self.host]
        target = plan.target_name(world.settings.export.prefix, volume)
        return Plan(
            title=f"publish {self.volume} to {self.host} over iscsi",
            claims=(f"volume/{self.volume}",),
            moves=plan.publish(volume, standing, world.settings.export, others),
            commit=(
                put(volume.but(height="EXPORTED", epoch=max(volume.epoch, standing.epoch))),
                put(standing),
            ),
            revert=(drop_secret(standing.key),) if new else (),
            secrets={standing.key: chap_for(standing, target)} if new else {},
        )  # fmt: skip

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Move, ...] | None:
        volume = txn.get(Volume, self.volume)
        found = txn.get(Publication, f"{self.volume}/{self.host}")
        if volume is None or found is None or not self._same(found):
            return None
        others = [p for p in txn.scan_below(Publication, self.volume) if p.host != self.host]
        moves = plan.publish(volume, found, settings.export, others)
        return (*plan.up([plan.zvol(volume)]), *moves)

    def _same(self, found: Publication) -> bool:
        return (found.readonly, found.access_mode, found.transport) == (
            self.readonly, self.access_mode, self.transport,
        )  # fmt: skip

    def _check(self, volume: Volume, others: list[Publication]) -> None:
        if self.access_mode not in volume.access_modes:
            raise InvalidArgument(
                f"{volume.id} allows {', '.join(volume.access_modes)}, not {self.access_mode}",
                reason="ACCESS_MODE", volume=volume.id,
            )  # fmt: skip
        if others:
            holder = others[0].host
            raise FailedPrecondition(
                f"{volume.id} is published to {holder}: unpublish it there first",
                reason="PUBLISHED", volume=volume.id, host=holder,
            )  # fmt: skip

    def _publication(self, volume: Volume, host: Host, world: World) -> Publication:
        if not host.iqn:
            raise FailedPrecondition(
                f"the host {host.id} has no IQN: register it first", reason="NO_IQN", host=host.id
            )
        return Publication(
            id=f"{volume.id}/{host.id}", volume=volume.id, host=host.id, initiator=host.iqn,
            transport=self.transport, access_mode=self.access_mode, readonly=self.readonly,
            epoch=volume.epoch + 1,
            published_by=world.caller, request=self.request, created_at=world.now,
        )  # fmt: skip


class Unpublish(Verb):
    """Take a volume back from one host, or from all."""

    kind = "unpublish"
    about = ("volumes", "volume")
    volume: str
    host: str = ""  # "": all
    request: str = ""  # only if this operation of the consumer published it

    def plan(self, world: World, seen: object) -> Plan:
        volume = need_volume(world.txn, self.volume)
        standing = list(world.txn.scan_below(Publication, self.volume))
        gone = [each for each in standing if self._names(each)]
        left = [each for each in standing if each not in gone]
        how = world.settings.export
        moves: list[Move] = []
        for index, each in enumerate(gone):
            others = [*left, *gone[index + 1 :]]
            moves += plan.unpublish(volume, each, how, others)
        height = "EXPORTED" if left else "CREATED"
        return Plan(
            title=f"unpublish {self.volume} from {self.host or 'all hosts'}",
            claims=(f"volume/{self.volume}",), moves=tuple(moves),
            commit=(
                *(drop(each) for each in gone), *(drop_secret(each.key) for each in gone),
                *((put(volume.but(height=height)),) if gone else ()),
            ),
        )  # fmt: skip

    def _names(self, publication: Publication) -> bool:
        if self.request and publication.request != self.request:
            return False
        return self.host in ("", publication.host)


class ReportFilesystem(Verb):
    """Take note of what the holder of a volume does with its filesystem; it only moves forward."""

    kind = "report"
    about = ("volumes", "volume")
    volume: str
    host: str
    epoch: int
    state: FilesystemState
    type: str
    uuid: str
    operation: str = ""

    def plan(self, world: World, seen: object) -> Plan:
        volume = need_volume(world.txn, self.volume)
        publication = need_publication(world.txn, self.volume, self.host)
        if publication.epoch != self.epoch:
            raise FailedPrecondition(
                f"the publication of {self.volume} to {self.host} is not the one that {self.host} "
                "knows: connect again",
                reason="STALE_EPOCH", volume=self.volume,
            )  # fmt: skip
        wanted = Filesystem(
            state=self.state, type=self.type, uuid=self.uuid,
            operation=self.operation if self.state == "FORMATTING" else "", host=self.host,
        )  # fmt: skip
        self._check(volume.filesystem)
        moves = plan.mark_filesystem(volume, wanted) if wanted != volume.filesystem else ()
        return Plan(
            title=f"mark the filesystem of {self.volume} {self.state}",
            claims=(f"volume/{self.volume}",), moves=moves,
            commit=(put(volume.but(filesystem=wanted)),),
        )  # fmt: skip

    def _check(self, now: Filesystem) -> None:
        if self.type not in FILESYSTEMS or not UUID.fullmatch(self.uuid):
            raise InvalidArgument(
                f"{self.type[:40]!r} {self.uuid[:40]!r} is no filesystem that zfsilo makes",
                reason="BAD_FILESYSTEM",
            )
        if now.state == "READY" and (self.state != "READY" or now.uuid != self.uuid):
            raise FailedPrecondition(
                f"{self.volume} has a {now.type} filesystem already: {now.uuid}",
                reason="FILESYSTEM_READY", volume=self.volume, uuid=now.uuid,
            )  # fmt: skip


def chap_for(publication: Publication, target: str) -> Chap:
    """Return new secrets for a publication: each side is named by its iSCSI name."""
    return Chap.make(username=publication.initiator, mutual_username=target)


def need_root(settings: Settings) -> None:
    """Refuse verbs of a storage host elsewhere."""
    if not settings.root:
        raise FailedPrecondition(
            "this host serves no volumes: set give.root in /etc/zfsilo/zfsilod.toml",
            reason="NO_ROOT",
        )


def need_volume(txn: Transaction, volume_id: str) -> Volume:
    """Return a volume of this host, else raise NotFound."""
    found = txn.get(Volume, check_id(volume_id, "volume id"))
    if found is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return found


def need_host(txn: Transaction, host_id: str) -> Host:
    """Return a registered host, else raise NotFound."""
    found = txn.get(Host, check_id(host_id, "host id"))
    if found is None:
        raise NotFound(f"there is no host {host_id}: register it first", host=host_id)
    return found


def need_publication(txn: Transaction, volume_id: str, host_id: str) -> Publication:
    """Return the publication of a volume to a host, else raise FailedPrecondition."""
    found = txn.get(Publication, f"{volume_id}/{host_id}")
    if found is None:
        raise FailedPrecondition(
            f"{volume_id} is not published to {host_id}",
            reason="NOT_PUBLISHED", volume=volume_id, host=host_id,
        )  # fmt: skip
    return found


def may_publish_to_itself(volume: Volume, host_id: str) -> None:
    """Raise PermissionDenied unless the volume names this host among its `hosts`."""
    if host_id not in volume.hosts and "*" not in volume.hosts:
        raise PermissionDenied(
            f"{volume.id} does not allow {host_id} to publish it to itself: add it to its hosts",
            reason="NOT_ITS_HOST", volume=volume.id, host=host_id,
        )  # fmt: skip
