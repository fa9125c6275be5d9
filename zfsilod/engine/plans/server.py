"""Plans of a server: volumes, snapshots, clones, exports, and the access of clients. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from zfsilod.engine.plans.actions import down, up
from zfsilod.engine.plans.transports import (
    FABRICS,
    backstore_name,
    limited,
    own_targets,
    steps_of,
)
from zfsilod.engine.steps.access import AclSecrets, Fenced, NoAcl, NoSession, NoUnknownAcls
from zfsilod.engine.steps.export import NoExport, NoOtherPath, Portals, Reopened
from zfsilod.engine.steps.keys import KeyAdded, KeyCarried, KeyChanged, KeyLoaded
from zfsilod.engine.steps.limits import Limited, SessionsLimited
from zfsilod.engine.steps.replica import KeptForPeer, ReceivedSnapshot
from zfsilod.engine.steps.snapshot import Clone, SnapshotSet, SnapshotsUnused
from zfsilod.engine.steps.zfs import (
    Epoch,
    InTrash,
    NotNewer,
    Reserved,
    Zvol,
    ZvolProperty,
    ZvolSize,
)
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.names import target_of, transport_of
from zfsilod.model.record import Pairs, Record, pairs
from zfsilod.model.zfs_properties import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zfsilod.model.host_facts import ExportPath, Filesystem, IoLimits
    from zfsilod.model.records import Action, Publication, Snapshot, Step, Volume
    from zfsilod.model.replica import KeptSnapshot
    from zfsilod.model.settings import Export
    from zfsilod.model.words import Transport

DURABLE = {"sync": "always"}
"""After a power failure of the server, a client assumes that unflushed writes are safe too: it has
no reason to repeat them, and its next flush succeeds. So every write is synchronous."""


class Fence(Record):
    """The instruction to end a live session."""

    grace_s: int  # in which the session may end by itself


class Origin(Record):
    """The source of a new volume: an existing snapshot, or (`own`) one taken only for it."""

    snapshot_ref: SnapshotRef
    snapshot_uid: str
    own: bool
    size_bytes: int


def target_name(prefix: str, volume: Volume) -> str:
    """Return the name of a volume's target; `prefix`: of a new one, which is of iSCSI."""
    return target_of(prefix, volume.uid, volume.target)


def named(volume: Volume, prefix: str, transport: Transport | None = None) -> Volume:
    """Return a volume with the names of its export recorded, of this transport."""
    target = target_name(prefix, volume)
    if transport is not None and transport_of(target) != transport:
        target = target_of(prefix, volume.uid, transport=transport)
    return volume.but(target=target, backstore=backstore_name(volume))


# Volumes


def zvol(volume: Volume, operation: str = "") -> Zvol:
    """Return the step of state CREATED: the zvol with its properties and marks."""
    return Zvol(
        dataset=volume.dataset,
        uid=volume.uid,
        guid=volume.guid,
        size_bytes=volume.capacity_bytes,
        thin=volume.thin,
        volblocksize=volume.volblocksize,
        properties=pairs(all_properties(volume)),
        marks=_first_marks(volume, operation),
        encrypted=volume.key_uid == volume.uid,
    )


def key_loaded(volume: Volume, dataset: str = "") -> list[Step]:
    """Return the step that loads the key of a volume, if it has one.

    ZFS makes the device of a zvol, and changes its size, with a loaded key only.

    `dataset`: a zvol with the same key, in place of that of the volume.
    """
    if not volume.key_uid:
        return []
    return [KeyLoaded(dataset=dataset or volume.dataset, key=volume.key_uid)]


def key_carried(volume: Volume, rotation: int) -> list[Step]:
    """Return the step by which an encryption root carries its key; none for other volumes."""
    if volume.key_uid != volume.uid:
        return []
    return [KeyCarried(dataset=volume.dataset, key=volume.uid, rotation=rotation)]


def key_change(volume: Volume, rotation: int) -> tuple[Action, ...]:
    """Return the change of the key of an encryption root.

    Each step loads the key that the zvol has: after a reboot in the middle that may be either, and
    the zvol carries both.
    """
    add = KeyAdded(dataset=volume.dataset, key=volume.uid, rotation=rotation)
    change = KeyChanged(dataset=volume.dataset, key=volume.uid, rotation=rotation)
    first = [not_newer(volume), *key_loaded(volume)]
    return up([*first, add, change, *key_carried(volume, rotation)])


def all_properties(volume: Volume) -> dict[str, str]:
    """Return the ZFS properties of a volume's zvol: those of its record, and those of zfsilo."""
    return DURABLE | dict(volume.properties) | HIDDEN


def first_marks(volume: Volume) -> dict[str, str]:
    """Return the marks of a zvol that becomes that of a volume, as its record has them."""
    return marks(volume) | {"zfsilo:filesystem": filesystem_mark(volume.filesystem)}


def _first_marks(volume: Volume, operation: str) -> Pairs:
    return pairs(first_marks(volume) | {"zfsilo:operation": operation})


def clone(volume: Volume, origin: Origin, operation: str) -> tuple[Action, ...]:
    """Return the creation of a volume as a clone of a snapshot."""
    steps: list[Step] = [
        *key_loaded(volume, origin.snapshot_ref.dataset),
        Clone(
            dataset=volume.dataset,
            uid=volume.uid,
            snapshot_ref=origin.snapshot_ref,
            snapshot_uid=origin.snapshot_uid,
            own=origin.own,
            properties=pairs(all_properties(volume)),
            marks=_first_marks(volume, operation),
        ),
    ]
    if not volume.thin:
        steps.append(Reserved(dataset=volume.dataset))
    if volume.capacity_bytes > origin.size_bytes:  # last, since growing is final
        steps.append(ZvolSize(dataset=volume.dataset, size_bytes=volume.capacity_bytes))
    return up(steps)


def resize(volume: Volume, size_bytes: int) -> tuple[Action, ...]:
    """Return the growth of a zvol; a live export shows the new size without another step."""
    return up([*key_loaded(volume), ZvolSize(dataset=volume.dataset, size_bytes=size_bytes)])


def properties(volume: Volume, values: dict[str, str]) -> tuple[Action, ...]:
    """Return the changes of ZFS properties; the value "" restores the default."""
    before = DURABLE | dict(volume.properties)
    after = {name: value or DURABLE.get(name, "") for name, value in sorted(values.items())}
    return up(
        [
            ZvolProperty(
                dataset=volume.dataset, name=name, value=value, previous=before.get(name, "")
            )
            for name, value in after.items()
            if before.get(name, "") != value
        ]
    )


def limits(volume: Volume, after: IoLimits) -> tuple[Action, ...]:
    """Return the change of the limits of a volume; they apply to its export over iSCSI only."""
    exported = volume.state == "PUBLISHED" and transport_of(volume.target) == "ISCSI"
    if after == volume.limits or not exported:
        return ()
    return up([limited(volume, after, volume.limits)])


def in_trash(volume: Volume, home: str, trash: str) -> InTrash:
    """Return the step that moves a volume's zvol from its home into the trash."""
    return InTrash(dataset=home, trash=trash, uid=volume.uid, guid=volume.guid)


def epoch(
    volume: Volume, number: int, operation: str, *, revokes: bool = False, trash: str = ""
) -> Epoch:
    """Return the step before a change of access: the zvol has the new epoch."""
    return Epoch(
        dataset=volume.dataset,
        volume=volume.id,
        epoch=number,
        operation=operation,
        uid=volume.uid,
        guid=volume.guid,
        revokes=revokes,
        trash=trash,
    )


def not_newer(volume: Volume) -> NotNewer:
    """Return the guard before any other change: the record is not older than the zvol."""
    return NotNewer(
        dataset=volume.dataset,
        volume=volume.id,
        epoch=volume.epoch,
        uid=volume.uid,
        guid=volume.guid,
    )


def destruction(volume: Volume) -> tuple[Action, ...]:
    """Return the destruction of a volume's zvol, unless it is newer than the record."""
    return (*up([not_exported(volume), not_newer(volume)]), *down([zvol(volume)]))


# Marks: ZFS user properties


def marks(volume: Volume) -> dict[str, str]:
    """Return a volume's record as user properties of its zvol; adoption restores it from them."""
    values = {
        "id": volume.id,
        "uid": volume.uid,
        "mode": volume.mode,
        "access_modes": ",".join(volume.access_modes),
        "hosts": ",".join(volume.hosts),
        "labels": json.dumps(dict(volume.labels)) if volume.labels else "",
        "source_snapshot": volume.source_snapshot,
        "source_volume": volume.source_volume,
        "transport": volume.transport if volume.transport != "ISCSI" else "",
        "limits": limits_mark(volume.limits),
        "tls": "yes" if volume.tls else "",
        "key": volume.key_uid,
        "replica": volume.replica.peer,
    }
    return {f"zfsilo:{name}": value for name, value in values.items() if value}


def limits_mark(limits: IoLimits) -> str:
    """Return limits as the text of a ZFS user property: "read_iops=500,write_bytes=1048576"."""
    values = {name: getattr(limits, name) for name in limits.FIELDS}
    return ",".join(f"{name}={value}" for name, value in values.items() if value)


def mark_changes(before: Volume, after: Volume) -> tuple[Action, ...]:
    """Return the changes of the marks that follow from a change of the record."""
    old, new = marks(before), marks(after)
    return up(
        [
            ZvolProperty(
                dataset=after.dataset,
                name=name,
                value=new.get(name, ""),
                previous=old.get(name, ""),
            )
            for name in sorted(old | new)
            if old.get(name) != new.get(name)
        ]
    )


def adoption(volume: Volume) -> tuple[Action, ...]:
    """Return the properties and marks that make an existing zvol a volume."""
    chosen = dict(volume.properties)
    durable = {name: value for name, value in DURABLE.items() if name not in chosen}
    values = durable | HIDDEN | {"zfsilo:filesystem": "NONE"} | marks(volume)
    return up(
        [
            ZvolProperty(dataset=volume.dataset, name=name, value=value, previous="")
            for name, value in values.items()
        ]
    )


def mark_filesystem(volume: Volume, filesystem: Filesystem, previous: str) -> tuple[Action, ...]:
    """Return the change of the mark that records the state of the filesystem on a volume."""
    step = ZvolProperty(
        dataset=volume.dataset,
        name="zfsilo:filesystem",
        value=filesystem_mark(filesystem),
        previous=previous,
    )
    return up([step])


def filesystem_mark(filesystem: Filesystem) -> str:
    """Return a filesystem's state as the text of a ZFS user property."""
    last = filesystem.operation or filesystem.origin
    host = filesystem.host if filesystem.state == "FORMATTING" else ""
    parts = (filesystem.state, filesystem.type, filesystem.uuid, last, host)
    return ":".join(part for part in parts if part)


# Snapshots


def snapshot_set(uid: str, refs: tuple[SnapshotRef, ...], marks: Pairs = ()) -> SnapshotSet:
    """Return the step that is one snapshot, or the snapshots of a group."""
    return SnapshotSet(refs=refs, uid=uid, marks=marks or (("zfsilo:cut", uid),))


def snapshots_unused(uid: str, refs: tuple[SnapshotRef, ...]) -> SnapshotsUnused:
    """Return the condition that nothing holds these snapshots, and that they have no clone."""
    return SnapshotsUnused(refs=refs, uid=uid)


def snapshot_marks(members: Sequence[Snapshot], operation: str, group: str = "") -> Pairs:
    """Return the marks of a snapshot, or of all snapshots of a group.

    ZFS takes a group in one command and gives all its snapshots the same properties, so these
    describe every member.
    """
    first = members[0]
    names = {snapshot.volume_uid: snapshot.id for snapshot in members}
    filesystems = {
        snapshot.volume_uid: filesystem_mark(snapshot.filesystem) for snapshot in members
    }
    values = {
        "cut": first.uid,
        "snapshot": group or first.id,
        "operation": operation,
        "members": _by_uid(names) if group else "",
        "filesystems": _by_uid(filesystems),
        "labels": json.dumps(dict(first.labels)) if first.labels else "",
        "policy": first.policy,
        "policy_uid": first.policy_uid,
        "grid_version": str(first.grid_version or ""),
        "peer": first.peer,
    }
    return pairs({f"zfsilo:{name}": value for name, value in values.items() if value})


def _by_uid(values: dict[str, str]) -> str:
    return ",".join(f"{uid}:{value}" for uid, value in values.items())


# Exports and access


def export_steps(volume: Volume, export: Export) -> list[Step]:
    """Return the steps of state PUBLISHED: a target that answers and admits no client yet."""
    return [*_closed_steps(volume, export), *_opening_steps(volume, export, [])]


def _closed_steps(volume: Volume, export: Export) -> list[Step]:
    target = target_name(export.prefix, volume)
    steps = steps_of(target)
    return [*steps.export(volume, target, export), *steps.listening(target, export)]


def forgotten(volume: Volume, export: Export, initiator: str = "") -> tuple[Action, ...]:
    """Return the removal of what the end of an initiator's access left on disk; "": of all."""
    return up(steps_of(target_name(export.prefix, volume)).forgotten(volume, initiator))


def _opening_steps(
    volume: Volume, export: Export, publications: Sequence[Publication]
) -> list[Step]:
    target = target_name(export.prefix, volume)
    return steps_of(target).opening(target, export, publications)


def grant(
    volume: Volume, publication: Publication, export: Export, others: Sequence[Publication]
) -> list[Step]:
    """Return the steps that give one client access; `others` have access already."""
    target = target_name(export.prefix, volume)
    allowed = tuple(sorted(other.initiator for other in others))
    return steps_of(target).access(target, publication, allowed)


def publish(
    volume: Volume, publication: Publication, export: Export, others: Sequence[Publication]
) -> tuple[Action, ...]:
    """Return the path up to PUBLISHED, with the access of one more client.

    After a boot the others may not have their access yet: they get it before the target listens,
    or a client would come in before a reservation of another one is in force.
    """
    return up([*key_loaded(volume), *published(volume, [*others, publication], export)])


def published(volume: Volume, publications: Sequence[Publication], export: Export) -> list[Step]:
    """Return the steps of state PUBLISHED with the access of all clients; the key is loaded."""
    target = target_name(export.prefix, volume)
    transport = steps_of(target)
    steps = transport.export(volume, target, export)
    for publication in publications:
        others = [other for other in publications if other is not publication]
        steps += grant(volume, publication, export, others)
    steps += transport.listening(target, export)
    return [*steps, *_opening_steps(volume, export, publications)]


def unpublish(
    volume: Volume,
    publication: Publication,
    export: Export,
    others: Sequence[Publication],
    *,
    fence: Fence | None = None,
    shared: bool = False,
) -> tuple[Action, ...]:
    """Return the end of a client's access, and of the export if it was the last client.

    `shared`: a target of another program has the backstore too, so that it cannot be removed, and
    may have reservations of its own.
    """
    opening = _opening_steps(volume, export, [publication])
    first, *rest = _revoke(volume, publication, export, others, fence=fence)
    if others:
        again = [
            Reopened(target=step.target, portals=step.portals, tls=step.tls)
            for step in opening
            if isinstance(step, Portals)
        ]
        return (first, *rest, *up(again), *forgotten(volume, export, publication.initiator))
    unused = _closed_steps(volume, export)[1 if shared else 0 :]
    last = forgotten(volume, export, publication.initiator if shared else "")
    return (first, *down(opening), *rest, *down(unused), *last)


def revoke(
    volume: Volume, publication: Publication, export: Export, others: Sequence[Publication]
) -> tuple[Action, ...]:
    """Return the end of a client's access before it gets another one."""
    ended = _revoke(volume, publication, export, others)
    return (*ended, *forgotten(volume, export, publication.initiator))


def _revoke(
    volume: Volume,
    publication: Publication,
    export: Export,
    others: Sequence[Publication],
    *,
    fence: Fence | None = None,
) -> tuple[Action, ...]:
    """Return the end of a client's access: refused while its session lives, unless it is fenced.

    An initiator of iSCSI that logs in after the first check is caught by the second one and gets
    its LUN back; a later one finds no LUN, so its login fails. Over NVMe the end of the access ends
    the controller of a client that connected meanwhile.
    """
    target = target_name(export.prefix, volume)
    acl, *mapped = grant(volume, publication, export, others)
    if fence is not None:
        fenced = Fenced(target=target, initiator=publication.initiator, grace_s=fence.grace_s)
        return (*up([fenced]), *down([acl, *mapped]))
    guard = _no_session(target, volume, publication)
    again = up([guard]) if mapped else ()
    return (*up([guard]), *down(mapped), *again, *down([acl]))


def no_other_path(
    volume: Volume, publications: Sequence[Publication], known: Sequence[str]
) -> NoOtherPath:
    """Return the guard that refuses while other targets than `known` admit these clients."""
    return NoOtherPath(
        dataset=volume.dataset,
        volume=volume.id,
        known=tuple(known),
        initiators=tuple(sorted({publication.initiator for publication in publications})),
    )


def not_exported(volume: Volume) -> NoOtherPath:
    """Return the guard that refuses while the zvol is a backstore of any target."""
    return NoOtherPath(dataset=volume.dataset, volume=volume.id)


def close_path(
    volume: Volume,
    path: ExportPath,
    publications: Sequence[Publication],
    *,
    last: bool,
    fence: Fence | None = None,
) -> tuple[Action, ...]:
    """Return the end of the access of clients by a target that is not the recorded one.

    It may be left from another host name or prefix. With `last` the target itself is removed, if
    zfsilo made it.
    """
    in_acl = path.initiators if path.fabric in FABRICS else ()
    admitted = [one for one in publications if one.initiator in in_acl]
    actions: list[Action] = []
    for one in admitted:
        if fence is None:
            actions += up([_no_session(path.target, volume, one)])
        else:
            fenced = Fenced(target=path.target, initiator=one.initiator, grace_s=fence.grace_s)
            actions += up([fenced])
        actions += up([NoAcl(target=path.target, initiator=one.initiator)])
    if last and is_ours(volume, path):
        actions += up([NoExport(target=path.target, backstore="")])
    return tuple(actions)


def is_ours(volume: Volume, path: ExportPath) -> bool:
    """Tell whether zfsilo made the target of a path: its name ends with the uid."""
    return path.fabric in FABRICS and path.target.endswith(f":{volume.uid}")


def no_sessions(
    volume: Volume, publications: Sequence[Publication], export: Export
) -> list[NoSession]:
    """Return the guards that refuse the end of access while one of the clients has a session."""
    target = target_name(export.prefix, volume)
    return [_no_session(target, volume, publication) for publication in publications]


def _no_session(target: str, volume: Volume, publication: Publication) -> NoSession:
    return NoSession(
        target=target,
        initiator=publication.initiator,
        volume=volume.id,
        host=publication.host,
    )


def rotation(volume: Volume, before: Publication, after: Publication, export: Export) -> AclSecrets:
    """Return the change of the secrets of a client's access; its session goes on."""
    return AclSecrets(
        target=target_name(export.prefix, volume),
        initiator=after.initiator,
        secret=after.secret,
        previous=before.secret,
    )


def _durability(volume: Volume) -> list[Step]:
    """Return the properties on which acknowledged writes depend, as chosen or as zfsilo sets them.

    A rollback of their repair keeps them.
    """
    chosen = DURABLE | dict(volume.properties)
    return [
        ZvolProperty(dataset=volume.dataset, name=name, value=chosen[name], previous=chosen[name])
        for name in DURABLE
    ]


def server_facts(
    volume: Volume, publications: Sequence[Publication], export: Export
) -> tuple[Action, ...]:
    """Return every fact of a volume on its server, as its records require it."""
    if volume.is_replica:
        return replica_facts(volume, export)
    steps: list[Step] = [
        zvol(volume),
        not_newer(volume),
        *key_loaded(volume),
        ZvolSize(dataset=volume.dataset, size_bytes=volume.capacity_bytes),
        *_durability(volume),
    ]
    if publications:
        steps += published(volume, publications, export)
        is_limited = any(isinstance(step, Limited) for step in steps)
        return up([*steps, *([SessionsLimited()] if is_limited else [])])
    return (*up(steps), *_unexported(volume, export))


def _unexported(volume: Volume, export: Export) -> tuple[Action, ...]:
    """Return that a volume has no export, by any name that zfsilo gives one."""
    absent = [volume.but(target=target) for target in own_targets(export.prefix, volume)]
    guards = up([NoUnknownAcls(target=named.target) for named in absent])
    exports = (down(export_steps(named, export)) for named in absent)
    gone = (action for actions in exports for action in actions)
    return (*guards, *gone, *forgotten(volume, export))


# Replicas


def replica_facts(volume: Volume, export: Export) -> tuple[Action, ...]:
    """Return every fact of a replica: it is there, read-only, and not exported.

    One of which no snapshot is whole has no facts: its zvol may be there in part, or not at all.
    """
    if volume.state == "ABSENT":
        return ()
    readonly = ZvolProperty(dataset=volume.dataset, name="readonly", value="on", previous="on")
    return (*up([zvol(volume), readonly]), *_unexported(volume, export))


def received(volume: Volume, base_guid: str, operation: str) -> ReceivedSnapshot:
    """Return the step by which a replica has the snapshot of its record."""
    replica = volume.replica
    return ReceivedSnapshot(
        dataset=volume.dataset,
        uid=volume.uid,
        snapshot_uid=replica.snapshot_uid,
        snapshot_guid=replica.snapshot_guid,
        base_guid=base_guid,
        raw=replica.raw,
        marks=_first_marks(volume, operation),
        operation=operation,
    )


def received_gone(volume: Volume, snapshot_uids: Iterable[str]) -> tuple[Action, ...]:
    """Return the destruction of snapshots of a replica."""
    steps = [
        ReceivedSnapshot(
            dataset=volume.dataset,
            uid=volume.uid,
            snapshot_uid=uid,
            snapshot_guid="",
            base_guid="",
            raw=False,
            marks=_first_marks(volume, ""),
            operation="",
        )
        for uid in snapshot_uids
    ]
    return down(steps)


def kept_for_peer(volume: Volume, kept: KeptSnapshot, peer: str) -> KeptForPeer:
    """Return the step by which a snapshot of a volume stays until a peer has the next one."""
    ref = SnapshotRef(dataset=volume.dataset, uid=volume.uid, guid=kept.guid)
    return KeptForPeer(snapshot_ref=ref, snapshot_uid=kept.uid, peer=peer)
