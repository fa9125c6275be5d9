"""The requests of a storage host on volumes themselves: create and update; trash.py deletes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from zfsilod.model.pool_space import PoolSpace, check_space
from zfsilod.model.record import pairs
from zfsilod.model.records import AccessMode, Action, Host, Mode, Publication, Volume
from zfsilod.model.sizes import show_exact
from zfsilod.model.validation import (
    check_block_size,
    check_etag,
    check_fit,
    check_hosts,
    check_id,
    check_labels,
    check_size,
    round_up,
)
from zfsilod.model.zfs_properties import check_properties
from zfsilod.requests.clones import (
    Content,
    begin_with,
    clone_dependent,
    content_of_snapshot,
    content_of_volume,
)
from zfsilod.requests.request import Plan, Request, View, put

if TYPE_CHECKING:
    from zfsilod.host import Host as Machine
    from zfsilod.model.record import Pairs
    from zfsilod.model.records import Change
    from zfsilod.model.settings import Settings
    from zfsilod.storage.store import Transaction


class CreateVolume(Request):
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
    source_snapshot: str = ""  # what it begins with: a snapshot, a volume as it is now, or nothing
    source_volume: str = ""

    def look(self, host: Machine, settings: Settings) -> PoolSpace:
        need_root(settings)
        check_id(self.id, "volume id")
        available, total = host.zfs.capacity(settings.root)
        return PoolSpace(available_bytes=available, total_bytes=total)

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, PoolSpace)
        content = self._content(view.txn)
        wanted = self._volume(view, content)
        found = view.txn.get(Volume, self.id)
        if found is not None:
            raise self._taken(found)
        check_space(wanted, seen, view.settings, view.txn.promised())
        commit: tuple[Change, ...] = (put(wanted.but(state="CREATED")),)
        if content is None:
            actions = plans.up([plans.zvol(wanted, view.operation_id)])
        else:
            actions = plans.clone(wanted, content.origin, view.operation_id)
            commit = (*commit, put(clone_dependent(wanted)))
        return Plan(
            title=f"create {self.id}{self._from}",
            claims=(f"volume/{self.id}", *(content.claims if content else ())),
            actions=actions,
            commit=commit,
        )

    def standing(self, txn: Transaction, settings: Settings) -> tuple[Action, ...] | None:
        found = txn.get(Volume, self.id)
        if found is None or self._differences(found):
            return None
        return plans.up([plans.zvol(found)])

    def _taken(self, found: Volume) -> AlreadyExists | FailedPrecondition:
        differences = self._differences(found)
        if differences:
            return AlreadyExists(
                f"the volume {self.id} exists, with another {', '.join(differences)}: zfsiloctl "
                f"volume show {self.id}",
                volume=self.id,
                fields=" ".join(differences),
            )
        return FailedPrecondition(
            f"the volume {self.id} is recorded, and not to be seen in the pool: it is never made "
            "anew, since it would be empty",
            reason="LOST",
            volume=self.id,
        )

    def _differences(self, found: Volume) -> list[str]:
        """Return the fields, by their names in the API, in which a volume is not as asked for."""
        both = {
            "thin": (found.thin, self.thin),
            "mode": (found.mode, self.mode),
            "properties": (found.properties, self._properties()),
            "hosts": (found.hosts, self.hosts),
            "access_modes": (found.access_modes, self.access_modes),
            "source": (
                (found.source_snapshot, found.source_volume),
                (self.source_snapshot, self.source_volume),
            ),
        }
        differing = [name for name, (there, asked) in both.items() if there != asked]
        return differing if self._has_size(found) else ["capacity_bytes", *differing]

    def _has_size(self, found: Volume) -> bool:
        asked = self.capacity_bytes
        if not asked and found.origin:  # it took the size of what it was made from
            return True
        return found.capacity_bytes == round_up(asked, found.volblocksize)

    def _content(self, txn: Transaction) -> Content | None:
        if self.source_snapshot and self.source_volume:
            raise InvalidArgument(
                "a volume begins with a snapshot or a volume, not both", reason="BAD_SOURCE"
            )
        if self.source_snapshot:
            return content_of_snapshot(txn, self.source_snapshot)
        return content_of_volume(txn, self.source_volume) if self.source_volume else None

    @property
    def _from(self) -> str:
        if self.source_snapshot:
            return f" from the snapshot {self.source_snapshot}"
        return f" from {self.source_volume}" if self.source_volume else ""

    def _properties(self) -> Pairs:
        return tuple(pair for pair in sorted(self.properties) if pair[0] != "volblocksize")

    def _volume(self, view: View, content: Content | None) -> Volume:
        asked_block = dict(self.properties).get("volblocksize", "")
        default = content.volblocksize if content else view.settings.volblocksize
        block = check_block_size(dict(self.properties), default)
        asked = self.capacity_bytes or (content.origin.size_bytes if content else 0)
        size = check_size(asked, self.limit_bytes, block)
        volume = Volume(
            id=self.id,
            uid=uuid.uuid4().hex,
            dataset=f"{view.settings.root}/{self.id}",
            capacity_bytes=size,
            thin=self.thin,
            mode=self.mode,
            volblocksize=block,
            properties=check_properties(self._properties(), new=True),
            labels=check_labels(self.labels),
            hosts=check_hosts(self.hosts),
            access_modes=self.access_modes,
            source_snapshot=self.source_snapshot,
            source_volume=self.source_volume,
            created_at=view.now,
            updated_at=view.now,
        )
        return _check_marks(begin_with(volume, content, asked_block) if content else volume)


class UpdateVolume(Request):
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

    def look(self, host: Machine, settings: Settings) -> PoolSpace | None:
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
        return PoolSpace(available_bytes=available, total_bytes=total)

    def plan(self, view: View, seen: object) -> Plan:
        volume = need_volume(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        actions: list[Action] = []
        new = volume.but(updated_at=view.now)
        if "labels" in self.mask:
            new = new.but(labels=check_labels(self.labels))
        if "hosts" in self.mask:
            new = new.but(hosts=check_hosts(self.hosts))
        if "properties" in self.mask:
            values = dict(check_properties(self.properties, new=False))
            actions += plans.properties(volume, values)
            kept = {n: v for n, v in (dict(volume.properties) | values).items() if v}
            new = new.but(properties=tuple(sorted(kept.items())))
        actions += plans.mark_changes(volume, _check_marks(new))
        if "capacity_bytes" in self.mask:
            assert isinstance(seen, PoolSpace)
            new = new.but(capacity_bytes=self._size(volume, seen, view))
            if new.capacity_bytes != volume.capacity_bytes:
                actions += plans.resize(volume, new.capacity_bytes)
        return Plan(
            title=f"update {self.id} ({', '.join(self.mask)})",
            claims=(f"volume/{self.id}",),
            actions=tuple(actions),
            commit=(put(new),),
        )

    def _size(self, volume: Volume, room: PoolSpace, view: View) -> int:
        size = check_size(self.capacity_bytes, self.limit_bytes, volume.volblocksize)
        if size < volume.capacity_bytes:
            raise InvalidArgument(
                f"{volume.id} has {show_exact(volume.capacity_bytes)}: a volume never shrinks",
                reason="SHRINK",
                volume=volume.id,
            )
        check_space(
            volume.but(capacity_bytes=size),
            room,
            view.settings,
            view.txn.promised(),
            before=volume.capacity_bytes,
        )
        return size


def need_root(settings: Settings) -> None:
    """Refuse requests of a storage host elsewhere."""
    if not settings.root:
        raise FailedPrecondition(
            "this host serves no volumes: set server.root in /etc/zfsilo/zfsilod.toml",
            reason="NO_ROOT",
        )


def need_volume(txn: Transaction, volume_id: str) -> Volume:
    """Return a volume of this host, else raise NotFound."""
    found = txn.get(Volume, check_id(volume_id, "volume id"))
    if found is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return found


def _check_marks(volume: Volume) -> Volume:
    """Return a volume whose marks fit on its zvol, else raise InvalidArgument."""
    check_fit(pairs(plans.marks(volume)), volume.id)
    return volume


def need_host(txn: Transaction, host_id: str) -> Host:
    """Return a registered host, else raise NotFound."""
    found = txn.get(Host, check_id(host_id, "host id"))
    if found is None:
        raise NotFound(f"there is no host {host_id}", host=host_id)
    return found


def need_publication(txn: Transaction, volume_id: str, host_id: str) -> Publication:
    """Return the publication of a volume to a host, else raise FailedPrecondition.

    One to a name that the host no longer has is none: nobody can log in with it.
    """
    found, host = txn.get(Publication, f"{volume_id}/{host_id}"), txn.get(Host, host_id)
    if found is None or (host is not None and host.iqn != found.initiator):
        raise FailedPrecondition(
            f"{volume_id} is not published to {host_id}",
            reason="NOT_PUBLISHED",
            volume=volume_id,
            host=host_id,
        )
    return found


def may_publish_to_itself(volume: Volume, host_id: str) -> None:
    """Raise PermissionDenied unless the volume names this host among its `hosts`."""
    if host_id not in volume.hosts and "*" not in volume.hosts:
        raise PermissionDenied(
            f"{volume.id} does not allow {host_id} to publish it to itself: add it to its hosts",
            reason="NOT_ITS_HOST",
            volume=volume.id,
            host=host_id,
        )
