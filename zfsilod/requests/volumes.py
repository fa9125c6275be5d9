"""Requests on volumes of this server: create and update. deletion.py has the deletion."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.disk_key import DiskKey
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from zfsilod.model.pool_space import PoolSpace, check_space
from zfsilod.model.record import pairs
from zfsilod.model.records import Action, Attachment, Host, Publication, Volume, VolumeKey
from zfsilod.model.sizes import show_exact, show_round
from zfsilod.model.validation import (
    check_etag,
    check_fit,
    check_hosts,
    check_id,
    check_labels,
    check_limits,
    check_size,
    round_up,
)
from zfsilod.model.zfs_properties import check_new, check_properties
from zfsilod.requests.clones import (
    Source,
    as_clone,
    clone_dependent,
    of_replica,
    snapshot_source,
    volume_source,
)
from zfsilod.requests.io_limits import LIMITS, check_limits_apply, limits_of, transport_in_use
from zfsilod.requests.request import Growth, Plan, Request, View, drop_secret, put
from zfsilod.storage.volume_view import standing_of, why_withheld

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs
    from zfsilod.model.records import Change, Step
    from zfsilod.model.settings import Settings
    from zfsilod.model.words import AccessMode, Mode, Transport
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction


CHANGEABLE = ("capacity_bytes", "properties", "labels", "hosts", *LIMITS)


class CreateVolume(Request[PoolSpace]):
    """Create a zvol below the dataset root. Input: the space of the root."""

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
    transport: Transport = "ISCSI"  # of publications that name none
    limit_read_iops: int = 0  # a second, of all clients together; 0: no limit
    limit_write_iops: int = 0
    limit_read_bytes: int = 0
    limit_write_bytes: int = 0
    tls: bool = False  # every publication has TLS
    source_snapshot: str = ""  # the source of the first content; at most one of both
    source_volume: str = ""
    encrypt: bool = False  # with a key that zfsilo keeps; a clone has the key of its source

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        volume = view.txn.get(Volume, self.id)
        if volume is None or volume.is_replica or self._differences(volume):
            return None
        return plans.up([plans.zvol(volume)])

    async def gather(self, context: Context, operation_id: str) -> PoolSpace:
        need_root(context.settings)
        check_id(self.id, "volume id")
        return await space(context)

    def plan(self, view: View, inputs: PoolSpace) -> Plan:
        source = self._source(view.txn)
        volume = self._volume(view, source)
        existing = view.txn.get(Volume, self.id)
        if existing is not None:
            if existing.is_replica:
                raise AlreadyExists(
                    f"volume {self.id} exists as a replica that {existing.replica.peer} sends: "
                    "use another id, or delete the replica",
                    reason="REPLICA",
                    volume=self.id,
                )
            differences = self._differences(existing)
            if differences:
                raise AlreadyExists(
                    f"volume {self.id} exists with another {', '.join(differences)}; see "
                    f"zfsiloctl volume show {self.id}",
                    volume=self.id,
                    fields=" ".join(differences),
                )
            raise FailedPrecondition(
                f"volume {self.id} is missing from the pool; it is not recreated because the new "
                "one would be empty",
                reason="LOST",
                volume=self.id,
            )
        _check_space(volume, inputs, view)
        commit: tuple[Change, ...] = (put(volume.but(state="CREATED")),)
        key = VolumeKey(id=volume.uid, created_at=view.now) if self.encrypt and not source else None
        if source is None:
            actions = plans.up([plans.zvol(volume, view.operation_id)])
            commit = (*commit, *((put(key),) if key else ()))
        else:
            actions = plans.clone(volume, source.origin, view.operation_id)
            commit = (*commit, put(clone_dependent(volume)))
        origin = f"snapshot {self.source_snapshot}" if self.source_snapshot else self.source_volume
        return Plan(
            title=f"create {self.id} from {origin}" if origin else f"create {self.id}",
            claims=(f"volume/{self.id}", *(source.claims if source else ())),
            actions=actions,
            commit=commit,
            revert=(drop_secret(key.secret),) if key else (),
            secrets={key.secret: DiskKey.make()} if key else {},
            growth=_growth(volume, volume.capacity_bytes),
        )

    def _differences(self, existing: Volume) -> list[str]:
        """Return the fields that differ in an existing volume, by their names in the API."""
        pairs = {
            "thin": (existing.thin, self.thin),
            "mode": (existing.mode, self.mode),
            "properties": (existing.properties, self._properties()),
            "hosts": (existing.hosts, self.hosts),
            "access_modes": (existing.access_modes, self.access_modes),
            "transport": (existing.transport, self.transport),
            "limits": (existing.limits, limits_of(self)),
            "tls": (existing.tls, self.tls),
            "source": (
                (existing.source_snapshot, existing.source_volume),
                (self.source_snapshot, self.source_volume),
            ),
        }
        if self.encrypt or not existing.origin:  # a clone is encrypted as its source is
            pairs["encrypted"] = (bool(existing.key_uid), self.encrypt)
        differing = [name for name, (there, asked) in pairs.items() if there != asked]
        asked = self.capacity_bytes
        size = round_up(asked, existing.volblocksize)
        if not asked and existing.origin:
            size = existing.capacity_bytes  # the size of its source
        return differing if existing.capacity_bytes == size else ["capacity_bytes", *differing]

    def _source(self, txn: Transaction) -> Source | None:
        if self.source_snapshot and self.source_volume:
            raise InvalidArgument(
                "a volume has one source, a snapshot or a volume, not both",
                reason="BAD_SOURCE",
            )
        if self.source_snapshot:
            return snapshot_source(txn, self.source_snapshot)
        return volume_source(txn, self.source_volume) if self.source_volume else None

    def _properties(self) -> Pairs:
        return tuple(pair for pair in sorted(self.properties) if pair[0] != "volblocksize")

    def _volume(self, view: View, source: Source | None) -> Volume:
        asked_block = dict(self.properties).get("volblocksize", "")
        default = source.volblocksize if source else view.settings.volblocksize
        properties, block = check_new(self.properties, default)
        asked = self.capacity_bytes or (source.origin.size_bytes if source else 0)
        size = check_size(asked, self.limit_bytes, block)
        uid = uuid.uuid4().hex
        key = source.key if source else ""
        if self.encrypt and not source:
            check_sealed(view.settings)
            key = uid
        if self.encrypt and not key:
            raise InvalidArgument(
                f"{self.id} cannot be encrypted: a clone is encrypted only if its source is",
                reason="BAD_SOURCE",
            )
        if self.tls and self.transport != "NVME":
            raise tls_needs_nvme(self.id)
        volume = Volume(
            id=self.id,
            uid=uid,
            dataset=f"{view.settings.root}/{self.id}",
            capacity_bytes=size,
            thin=self.thin,
            mode=self.mode,
            volblocksize=block,
            properties=properties,
            labels=check_labels(self.labels),
            hosts=check_hosts(self.hosts),
            access_modes=self.access_modes,
            transport=self.transport,
            limits=check_limits(limits_of(self)),
            tls=self.tls,
            source_snapshot=self.source_snapshot,
            source_volume=self.source_volume,
            key_uid=key,
            created_at=view.now,
            updated_at=view.now,
        )
        check_limits_apply(volume, self.transport)
        return _check_marks(as_clone(volume, source, asked_block) if source else volume)


class UpdateVolume(Request["PoolSpace | None"]):
    """Change the fields in `mask`, of CHANGEABLE.

    Input: the space of the root, when the volume is to grow.
    """

    kind = "update"
    id: str
    mask: tuple[str, ...]
    capacity_bytes: int = 0
    limit_bytes: int = 0
    properties: Pairs = ()
    labels: Pairs = ()
    hosts: tuple[str, ...] = ()
    limit_read_iops: int = 0  # as in CreateVolume
    limit_write_iops: int = 0
    limit_read_bytes: int = 0
    limit_write_bytes: int = 0
    etag: str = ""

    async def gather(self, context: Context, operation_id: str) -> PoolSpace | None:
        unknown = set(self.mask) - set(CHANGEABLE)
        if unknown or not self.mask:
            raise InvalidArgument(
                f"invalid update mask {', '.join(sorted(unknown)) or '(empty)'}: allowed are "
                f"{', '.join(CHANGEABLE)}",
                reason="BAD_MASK",
            )
        return await space(context) if "capacity_bytes" in self.mask else None

    def plan(self, view: View, inputs: PoolSpace | None) -> Plan:
        volume = need_primary(view.txn, self.id)
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
        limits = {LIMITS[name]: getattr(self, name) for name in self.mask if name in LIMITS}
        if limits:
            new = new.but(limits=check_limits(volume.limits.but(**limits)))
            check_limits_apply(new, transport_in_use(new))
            actions += plans.limits(volume, new.limits)
        actions += plans.mark_changes(volume, _check_marks(new))
        if "capacity_bytes" in self.mask:
            assert inputs is not None
            new = new.but(capacity_bytes=self._size(volume, inputs, view))
            if new.capacity_bytes != volume.capacity_bytes:
                actions += plans.resize(volume, new.capacity_bytes)
        first: Step = plans.not_newer(volume)
        if new.hosts != volume.hosts:  # a change of access: who may publish it to itself
            new = new.but(epoch=volume.epoch + 1)
            first = plans.epoch(volume, new.epoch, view.operation_id)
        return Plan(
            title=self._title(new),
            claims=(f"volume/{self.id}",),
            actions=(*(plans.up([first]) if actions else ()), *actions),
            commit=(put(new),),
            revert=(put(volume),) if new.epoch != volume.epoch else (),
            growth=_growth(volume, new.capacity_bytes - volume.capacity_bytes),
        )

    def _title(self, new: Volume) -> str:
        """Return what changes: the size, other fields by their names, or both."""
        others = ", ".join(name for name in self.mask if name != "capacity_bytes")
        if "capacity_bytes" not in self.mask:
            return f"update {self.id} ({others})"
        resize = f"resize {self.id} to {show_round(new.capacity_bytes)}"
        return f"{resize}, and update it ({others})" if others else resize

    def _size(self, volume: Volume, pool: PoolSpace, view: View) -> int:
        size = check_size(self.capacity_bytes, self.limit_bytes, volume.volblocksize)
        if size < volume.capacity_bytes:
            raise InvalidArgument(
                f"{volume.id} cannot shrink: its size is {show_exact(volume.capacity_bytes)}",
                reason="SHRINK",
                volume=volume.id,
            )
        grown = volume.but(capacity_bytes=size)
        _check_space(grown, pool, view, before=volume.capacity_bytes)
        return size


def _check_marks(volume: Volume) -> Volume:
    """Return the volume when its marks fit on its zvol. Raises InvalidArgument."""
    check_fit(pairs(plans.marks(volume)), volume.id)
    return volume


def _check_space(volume: Volume, pool: PoolSpace, view: View, *, before: int = 0) -> None:
    """Raise ResourceExhausted when a volume does not fit beside those that grow at this moment."""
    reserves, promises = view.txn.pending_growth(pool.revision)
    left = pool.but(available_bytes=max(0, pool.available_bytes - reserves))
    check_space(volume, left, view.settings, view.txn.promised() + promises, before=before)


def _growth(volume: Volume, size_bytes: int) -> Growth:
    return Growth(promises=size_bytes) if volume.thin else Growth(reserves=size_bytes)


async def space(context: Context) -> PoolSpace:
    """Return the available and total bytes of the dataset root."""
    root = context.settings.root
    with context.read() as txn:
        revision = txn.revision()
    available, total = await context.look(lambda: context.machine.zfs.capacity(root))
    return PoolSpace(available_bytes=available, total_bytes=total, revision=revision)


def need_root(settings: Settings) -> str:
    """Return the dataset root. Raises FailedPrecondition on a host that is not a server."""
    if not settings.root:
        raise FailedPrecondition(
            "this host serves no volumes: set server.root in /etc/zfsilo/zfsilod.toml",
            reason="NO_ROOT",
        )
    return settings.root


def check_sealed(settings: Settings) -> None:
    """Raise FailedPrecondition where the key of the store, which seals all keys, is in a file."""
    if not settings.key_is_sealed:
        raise FailedPrecondition(
            "the key of zfsilo's store is in a file, so keys of volumes would not be protected: "
            "run `zfsiloctl seal-key` on this server first",
            reason="KEY_NOT_SEALED",
        )


def check_unclaimed(txn: Transaction, volume_id: str) -> None:
    """Raise Busy while an operation has a volume: it may replace what is to be shown."""
    if operation := txn.claimant(f"volume/{volume_id}"):
        raise Busy(
            f"operation {operation} on {volume_id} is in progress",
            reason="CLAIMED",
            volume=volume_id,
            operation=operation,
        )


def need_volume(txn: Transaction, volume_id: str) -> Volume:
    """Return a volume of this host. Raises NotFound."""
    volume = txn.get(Volume, check_id(volume_id, "volume id"))
    if volume is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return volume


def check_volume_etag(txn: Transaction, volume_id: str, etag: str) -> None:
    """Raise Busy when the caller read an earlier revision of what this host has by that name.

    Raises NotFound when there is neither a volume nor an attachment.
    """
    if not etag:
        return
    check_id(volume_id, "volume id")
    record = txn.get(Volume, volume_id) or txn.get(Attachment, volume_id)
    if record is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    check_etag(etag, record.revision)


def need_primary(txn: Transaction, volume_id: str) -> Volume:
    """Return a volume of this host that is not a replica. Raises FailedPrecondition (REPLICA)."""
    volume = need_volume(txn, volume_id)
    if volume.is_replica:
        raise of_replica(volume)
    return volume


def need_served(view: View, volume_id: str) -> Volume:
    """Return a volume that this server may export now.

    Raises FailedPrecondition while it is not known whether a peer was promoted.
    """
    volume = need_primary(view.txn, volume_id)
    standing = standing_of(view.txn, volume) if volume.peers else None
    if standing is not None and standing.boot_id != view.boot_id:
        sentence, reason = why_withheld(standing.but(boot_id=""), volume_id)
        raise FailedPrecondition(sentence, reason=reason, volume=volume_id)
    return volume


def need_host(txn: Transaction, host_id: str) -> Host:
    """Return a registered host. Raises NotFound."""
    host = txn.get(Host, check_id(host_id, "host id"))
    if host is None:
        raise NotFound(f"there is no host {host_id}", host=host_id)
    return host


def _is_former(publication: Publication, host: Host | None) -> bool:
    """Tell whether a publication is to a name that its host does not have any more."""
    by_iqn = publication.transport == "ISCSI"  # over NVMe the publication has a name of its own
    return by_iqn and host is not None and host.iqn != publication.initiator


def need_publication(txn: Transaction, volume_id: str, host_id: str) -> Publication:
    """Return the publication of a volume to a host. Raises FailedPrecondition.

    A publication to a former initiator name of the host does not count: no login can use it.
    """
    publication, host = txn.get(Publication, f"{volume_id}/{host_id}"), txn.get(Host, host_id)
    if publication is None or _is_former(publication, host):
        raise FailedPrecondition(
            f"{volume_id} is not published to {host_id}",
            reason="NOT_PUBLISHED",
            volume=volume_id,
            host=host_id,
        )
    return publication


def tls_needs_nvme(volume: str) -> InvalidArgument:
    """Return the error for TLS over another transport."""
    return InvalidArgument(
        f"{volume} cannot have TLS over iscsi: use the transport nvme",
        reason="TLS_NEEDS_NVME",
        volume=volume,
    )
