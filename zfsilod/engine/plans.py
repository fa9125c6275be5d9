"""Rungs and plans: which steps make a state, which moves lead from one to another. Pure.

    server    ABSENT -> CREATED -> PUBLISHED             plus one publication per host, which
                                                        makes people see it as PUBLISHED
    consumer  ABSENT -> CONNECTED -> STAGED -> MOUNTED  plus one mount per path

Climbing does the steps of the next rungs, descending undoes them in reverse; nothing else is
written about how to publish or to mount.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from zfsilod.engine.step import HostStep
from zfsilod.engine.steps.access import Acl, AclSecrets, Fenced, MappedLun, NoSession, NoUnknownAcls
from zfsilod.engine.steps.export import Backstore, Enabled, Lun, Portals, Target
from zfsilod.engine.steps.filesystem import (
    FilesystemGrown,
    FilesystemUuidRegenerated,
    Formatted,
    Reported,
)
from zfsilod.engine.steps.mount import (
    BindMount,
    DeviceBindMount,
    LazyUnmounted,
    MountPoint,
    StagingMount,
)
from zfsilod.engine.steps.session import (
    DiskResponsive,
    DiskSize,
    Node,
    NodeSecrets,
    Session,
    SessionDropped,
    SessionSecrets,
)
from zfsilod.engine.steps.snapshot import Clone, SnapshotSet
from zfsilod.engine.steps.zfs import InTrash, Reserved, Zvol, ZvolProperty, ZvolSize
from zfsilod.model.record import Pairs, Record, pairs
from zfsilod.model.records import (
    Action,
    Attachment,
    Mount,
    Publication,
    Snapshot,
    Step,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.host_facts import Filesystem, FilesystemState, SnapshotRef
    from zfsilod.model.settings import Export

CONSUMER = ("ABSENT", "CONNECTED", "STAGED", "MOUNTED")
# A consumer that outlives a power cut of ours takes what it has written for safe, flushed or not:
# the flush that it sends afterwards finds an empty cache, and succeeds.
DURABLE = {"sync": "always"}
HIDDEN = {"volmode": "dev", "snapdev": "hidden"}  # no partition scan, no snapshot devices on give


def up(steps: Sequence[Step]) -> tuple[Action, ...]:
    """Return the moves that make these facts true, first to last."""
    return tuple(Action(step=step, up=True) for step in steps)


def down(steps: Sequence[Step]) -> tuple[Action, ...]:
    """Return the moves that make these facts false, last to first."""
    return tuple(Action(step=step, up=False) for step in reversed(steps))


# The storage host


def target_name(prefix: str, volume: Volume) -> str:
    """Return the IQN of a volume's target: fixed length, whatever the user calls the volume."""
    return f"{prefix}:{volume.uid}"


def backstore_name(volume: Volume) -> str:
    """Return the name of a volume's backstore."""
    return f"zfsilo-{volume.uid}"


class Fence(Record):
    """That a live session shall be ended, and how long it may take to end by itself."""

    grace_s: int


class Origin(Record):
    """What a new volume begins with: a snapshot that stands, or (`own`) one made just for it."""

    snapshot_ref: SnapshotRef
    snapshot_uid: str
    own: bool
    size_bytes: int


def zvol(volume: Volume, operation: str = "") -> Zvol:
    """Return the step that is the volume itself."""
    return Zvol(
        dataset=volume.dataset,
        uid=volume.uid,
        guid=volume.guid,
        size_bytes=volume.capacity_bytes,
        thin=volume.thin,
        volblocksize=volume.volblocksize,
        properties=_settings(volume),
        marks=_first_marks(volume, operation),
    )


def _settings(volume: Volume) -> Pairs:
    return pairs(DURABLE | dict(volume.properties) | HIDDEN)


def _first_marks(volume: Volume, operation: str) -> Pairs:
    filesystem = filesystem_mark(volume.filesystem)
    return pairs(marks(volume) | {"zfsilo:operation": operation, "zfsilo:filesystem": filesystem})


def cut(uid: str, refs: tuple[SnapshotRef, ...], marks: Pairs = ()) -> SnapshotSet:
    """Return the step that is one snapshot, or those of a group."""
    return SnapshotSet(refs=refs, uid=uid, marks=marks or (("zfsilo:cut", uid),))


def cut_marks(members: Sequence[Snapshot], operation: str, group: str = "") -> Pairs:
    """Return what a snapshot carries, or each of a group: enough to adopt them by.

    ZFS takes them in one command, which gives all the same properties: so each tells of all.
    """
    first = members[0]
    values = {
        "cut": first.uid,
        "snapshot": group or first.id,
        "operation": operation,
        "members": _by_uid({each.volume_uid: each.id for each in members}) if group else "",
        "filesystems": _by_uid(
            {each.volume_uid: filesystem_mark(each.filesystem) for each in members}
        ),
        "labels": json.dumps(dict(first.labels)) if first.labels else "",
    }
    return pairs({f"zfsilo:{name}": value for name, value in values.items() if value})


def _by_uid(values: dict[str, str]) -> str:
    return ",".join(f"{uid}:{value}" for uid, value in values.items())


def clone(volume: Volume, origin: Origin, operation: str) -> tuple[Action, ...]:
    """Return the creation of a volume that begins with what a snapshot holds."""
    steps: list[Step] = [
        Clone(
            dataset=volume.dataset,
            uid=volume.uid,
            snapshot_ref=origin.snapshot_ref,
            snapshot_uid=origin.snapshot_uid,
            own=origin.own,
            properties=_settings(volume),
            marks=_first_marks(volume, operation),
        )
    ]
    if not volume.thin:
        steps.append(Reserved(dataset=volume.dataset))
    if volume.capacity_bytes > origin.size_bytes:  # the last one, since there is no way back
        steps.append(ZvolSize(dataset=volume.dataset, size_bytes=volume.capacity_bytes))
    return up(steps)


def in_trash(volume: Volume, home: str, trash: str) -> InTrash:
    """Return the step between a volume's own name and its place in the trash."""
    return InTrash(dataset=home, trash=trash, uid=volume.uid, guid=volume.guid)


def marks(volume: Volume) -> dict[str, str]:
    """Return a volume's record as user properties of its zvol: enough to adopt it by."""
    values = {
        "id": volume.id,
        "uid": volume.uid,
        "mode": volume.mode,
        "access_modes": ",".join(volume.access_modes),
        "hosts": ",".join(volume.hosts),
        "labels": json.dumps(dict(volume.labels)) if volume.labels else "",
        "source_snapshot": volume.source_snapshot,
        "source_volume": volume.source_volume,
    }
    return {f"zfsilo:{name}": value for name, value in values.items() if value}


def marking(before: Volume, after: Volume) -> tuple[Action, ...]:
    """Return the changes of the marks that go with a change of the record."""
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
    """Return what makes somebody else's zvol ours: its marks, and that nobody scans it."""
    chosen = dict(volume.properties)
    durable = {name: value for name, value in DURABLE.items() if name not in chosen}
    values = durable | HIDDEN | {"zfsilo:filesystem": "NONE"} | marks(volume)
    return up(
        [
            ZvolProperty(dataset=volume.dataset, name=name, value=value, previous="")
            for name, value in values.items()
        ]
    )


def export(volume: Volume, how: Export) -> list[Step]:
    """Return the rung PUBLISHED: backstore, target, LUN, and a target that answers to nobody yet."""
    target, backstore = target_name(how.prefix, volume), backstore_name(volume)
    return [
        Backstore(name=backstore, dataset=volume.dataset, serial=volume.uid),
        Target(target=target),
        Lun(target=target, backstore=backstore),
        Portals(target=target, portals=how.portals),
        Enabled(target=target),
    ]


def grant(
    volume: Volume, publication: Publication, how: Export, others: Sequence[Publication]
) -> list[Step]:
    """Return what a publication adds to the export: one initiator that is let in."""
    target = target_name(how.prefix, volume)
    return [
        Acl(
            target=target,
            initiator=publication.initiator,
            secret=publication.secret,
            allowed=tuple(sorted(each.initiator for each in others)),
        ),
        MappedLun(target=target, initiator=publication.initiator, readonly=publication.readonly),
    ]


def publish(
    volume: Volume, publication: Publication, how: Export, others: Sequence[Publication]
) -> tuple[Action, ...]:
    """Return the climb to PUBLISHED and the admission of one more host."""
    return up([*export(volume, how), *grant(volume, publication, how, others)])


def unpublish(
    volume: Volume,
    publication: Publication,
    how: Export,
    others: Sequence[Publication],
    *,
    fence: Fence | None = None,
) -> tuple[Action, ...]:
    """Return the end of an admission, and of the export when it was the last."""
    below = [] if others else export(volume, how)
    return (
        *revoke(volume, publication, how, others, fence=fence),
        *down(below),
    )


def revoke(
    volume: Volume,
    publication: Publication,
    how: Export,
    others: Sequence[Publication],
    *,
    fence: Fence | None = None,
) -> tuple[Action, ...]:
    """Return the end of an admission: refused while its session lives, unless it is fenced.

    Who logs in behind the guard's back is seen by the second one, and has its disk again; who
    comes later finds none, so that its login fails.
    """
    target = target_name(how.prefix, volume)
    acl, mapped = grant(volume, publication, how, others)
    if fence is not None:
        fenced = Fenced(target=target, initiator=publication.initiator, grace_s=fence.grace_s)
        return (*up([fenced]), *down([acl, mapped]))
    guard = NoSession(
        target=target,
        initiator=publication.initiator,
        volume=volume.id,
        host=publication.host,
    )
    return (*up([guard]), *down([mapped]), *up([guard]), *down([acl]))


def rotation(
    volume: Volume, before: Publication, after: Publication, how: Export, *, force: bool = False
) -> tuple[Action, ...]:
    """Return the change of the secrets with which a host is let in.

    Refused when the host logs in meanwhile, unless forced: its session goes on, under the old ones.
    """
    target = target_name(how.prefix, volume)
    guard = NoSession(target=target, initiator=after.initiator, volume=volume.id, host=after.host)
    changed = AclSecrets(
        target=target, initiator=after.initiator, secret=after.secret, previous=before.secret
    )
    return up([changed] if force else [guard, changed])


def resize(volume: Volume, size_bytes: int) -> tuple[Action, ...]:
    """Return the growth of a zvol; a live export shows the new size by itself."""
    return up([ZvolSize(dataset=volume.dataset, size_bytes=size_bytes)])


def properties(volume: Volume, values: dict[str, str]) -> tuple[Action, ...]:
    """Return the changes of ZFS properties; a value of "" goes back to the default."""
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


def mark_filesystem(volume: Volume, filesystem: Filesystem) -> tuple[Action, ...]:
    """Return the change of the mark on the zvol that says what filesystem it carries."""
    step = ZvolProperty(
        dataset=volume.dataset,
        name="zfsilo:filesystem",
        value=filesystem_mark(filesystem),
        previous=filesystem_mark(volume.filesystem),
    )
    return up([step])


def filesystem_mark(filesystem: Filesystem) -> str:
    """Return a filesystem's state as the text of a ZFS user property."""
    last = filesystem.operation or filesystem.origin
    parts = (filesystem.state, filesystem.type, filesystem.uuid, last)
    return ":".join(part for part in parts if part)


def server_truth(
    volume: Volume, publications: Sequence[Publication], how: Export
) -> tuple[Action, ...]:
    """Return all that must be so, and must not, on the storage host of a volume."""
    steps: list[Step] = [
        zvol(volume),
        ZvolSize(dataset=volume.dataset, size_bytes=volume.capacity_bytes),
    ]
    if not publications:
        steps.append(NoUnknownAcls(target=target_name(how.prefix, volume)))
        return (*up(steps), *down(export(volume, how)))
    steps += export(volume, how)
    for each in publications:
        others = [other for other in publications if other is not each]
        steps += grant(volume, each, how, others)
    return up(steps)


# The consumer


def connection(attachment: Attachment) -> list[Step]:
    """Return the rung CONNECTED: a record of the target and a session."""
    return [
        Node(target=attachment.disk.target, portals=attachment.portals, secret=attachment.secret),
        Session(disk=attachment.disk),
    ]


def staging(attachment: Attachment) -> list[Step]:
    """Return the rung STAGED: a filesystem, mounted once and as large as its disk.

    What is to be written to has its full size first. A raw block volume needs nothing else.
    """
    writable = not attachment.readonly and not attachment.stage_readonly
    size: list[Step] = [DiskSize(disk=attachment.disk)] if writable else []
    if attachment.mode == "BLOCK":
        return size
    point = MountPoint(path=attachment.staging_path, file=False)
    staged = StagingMount(
        disk=attachment.disk,
        path=attachment.staging_path,
        fs_type=attachment.filesystem.type,
        options=attachment.mount_options,
        readonly=attachment.stage_readonly,
        untouched=attachment.filesystem.state == "CLONED" and attachment.stage_readonly,
    )
    steps: list[Step] = [*size, *formatting(attachment), point, staged]
    if not attachment.stage_readonly:
        steps.append(FilesystemGrown(disk=attachment.disk, path=attachment.staging_path))
    return steps


def formatting(attachment: Attachment) -> list[Step]:
    """Return the steps to a filesystem: the server hears of it before mkfs and before a mount."""
    filesystem = attachment.filesystem
    formatted = Formatted(disk=attachment.disk, filesystem=filesystem)
    if filesystem.state == "READY":
        return [formatted]
    if filesystem.state == "CLONED":
        if attachment.stage_readonly:
            return []  # it is looked at as it is, with whichever UUID it has
        renewed = FilesystemUuidRegenerated(disk=attachment.disk, filesystem=filesystem)
        return [renewed, _report(attachment, "READY")]
    return [_report(attachment, "FORMATTING"), formatted, _report(attachment, "READY")]


def _report(attachment: Attachment, state: FilesystemState) -> Reported:
    return Reported(
        server=attachment.server,
        volume=attachment.volume,
        epoch=attachment.epoch,
        state=state,
        type=attachment.filesystem.type,
        uuid=attachment.filesystem.uuid,
    )


def mounting(attachment: Attachment, mount: Mount) -> list[Step]:
    """Return what one more path needs: its mount point, and the bind mount."""
    if attachment.mode == "BLOCK":
        bound: Step = DeviceBindMount(disk=attachment.disk, path=mount.path)
    else:
        bound = BindMount(
            disk=attachment.disk,
            source=attachment.staging_path,
            path=mount.path,
            readonly=mount.readonly,
        )
    return [MountPoint(path=mount.path, file=attachment.mode == "BLOCK"), bound]


def unmounting(attachment: Attachment, mount: Mount) -> tuple[Action, ...]:
    """Return the way back from one path; a mount point that was there before us stays."""
    point, bound = mounting(attachment, mount)
    return descent(attachment, [point, bound] if mount.made_path else [bound])


def unstaging(attachment: Attachment) -> tuple[Action, ...]:
    """Return the way down from STAGED; the filesystem stays, as does a path not made by us."""
    kept = () if attachment.made_staging_path else (MountPoint,)
    steps = [s for s in staging(attachment) if isinstance(s, HostStep) and not s.sticky]
    return descent(attachment, [step for step in steps if not isinstance(step, kept)])


def descent(attachment: Attachment, steps: Sequence[Step]) -> tuple[Action, ...]:
    """Return the way back from steps, which does not wait for a disk that hangs."""
    return (*up([DiskResponsive(disk=attachment.disk)]), *down(steps))


def detaching(attachment: Attachment, mounts: Sequence[Mount]) -> tuple[Action, ...]:
    """Return how mounts are taken away, whoever is at work there."""
    actions: list[Action] = []
    for mount in reversed(mounts):
        point, _bound = mounting(attachment, mount)
        actions += up([LazyUnmounted(disk=attachment.disk, path=mount.path)])
        actions += down([point] if mount.made_path else [])
    return tuple(actions)


def abandoning(attachment: Attachment) -> tuple[Action, ...]:
    """Return the descent to CONNECTED with the order turned round: what hangs must fail first."""
    actions = [
        *up([SessionDropped(disk=attachment.disk)]),
        *detaching(attachment, attachment.mounts),
    ]
    if attachment.mode == "FILESYSTEM" and attachment.staging_path:
        actions += up([LazyUnmounted(disk=attachment.disk, path=attachment.staging_path)])
        point = MountPoint(path=attachment.staging_path, file=False)
        actions += down([point] if attachment.made_staging_path else [])
    return tuple(actions)


def growth(attachment: Attachment, size_bytes: int) -> tuple[Action, ...]:
    """Return what makes a consumer see and use a volume's new size."""
    disk = attachment.disk.but(size_bytes=size_bytes)
    steps: list[Step] = [DiskSize(disk=disk)]
    if attachment.state in ("STAGED", "MOUNTED") and attachment.mode == "FILESYSTEM":
        steps.append(FilesystemGrown(disk=disk, path=attachment.staging_path))
    return up(steps)


def new_secrets(changes: Sequence[tuple[Attachment, Attachment]]) -> tuple[Action, ...]:
    """Return the change of the secrets of attachments, each as it was and as it will be.

    One step for all sessions: each time it is made, all of them are connected anew.
    """
    nodes = [
        NodeSecrets(
            target=after.disk.target,
            portals=after.portals,
            secret=after.secret,
            previous=before.secret,
        )
        for before, after in changes
    ]
    secrets = pairs({after.disk.target: after.secret for _before, after in changes})
    return up([*nodes, SessionSecrets(secrets=secrets)])


def consumer_truth(attachment: Attachment) -> tuple[Action, ...]:
    """Return all that must be so on the consumer of an attachment."""
    reached = CONSUMER.index(attachment.state)
    steps: list[Step] = []
    if reached >= CONSUMER.index("CONNECTED"):
        steps += connection(attachment)
    if reached >= CONSUMER.index("STAGED"):
        steps += staging(attachment)
    for mount in attachment.mounts:
        steps += mounting(attachment, mount)
    return up(steps)
