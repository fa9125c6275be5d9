"""Plans of a client: connections, filesystems, mounts, and the paths down. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.plans.actions import down, up
from zfsilod.engine.plans.transports import steps_of
from zfsilod.engine.step import HostStep, OneWay
from zfsilod.engine.steps.filesystem import (
    FilesystemGrown,
    FilesystemUuidRegenerated,
    Formatted,
    Reported,
)
from zfsilod.engine.steps.mount import (
    BindMount,
    DeviceBindMount,
    FilesystemWorks,
    LazyUnmounted,
    MountPoint,
    StagingMount,
)
from zfsilod.engine.steps.session import (
    DiskResponsive,
    DiskSize,
    Node,
    NodeSecrets,
    SessionDropped,
    SessionSecrets,
)
from zfsilod.engine.steps.users import DiskUnused, UsersNamed
from zfsilod.model.names import transport_of
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.records import Action, Attachment, Mount, Step
    from zfsilod.model.words import FilesystemState

CLIENT_STATES = ("ABSENT", "CONNECTED", "STAGED", "MOUNTED")


# The steps of each state


def connection_steps(attachment: Attachment, lost_session_s: int = 0) -> list[Step]:
    """Return the steps of state CONNECTED: a session with the target, as its transport has it.

    `lost_session_s`: see Settings.
    """
    return steps_of(attachment.disk.target).connection(attachment, lost_session_s)


def reconnection_steps(before: Attachment, now: Attachment, lost_session_s: int = 0) -> list[Step]:
    """Return the steps of state CONNECTED for an attachment that has other portals now.

    Its node record is changed, not made: a rollback names the former portals again.
    """
    node, *rest = connection_steps(now, lost_session_s)
    if before.portals != now.portals and isinstance(node, Node):
        node = NodeSecrets(
            target=now.disk.target,
            portals=now.portals,
            previous_portals=before.portals,
            secret=now.secret,
            previous=before.secret,
            server=now.server,
            lost_session_s=lost_session_s,
        )
    return [node, *rest]


def disconnecting(attachment: Attachment, lost_session_s: int = 0) -> list[Step]:
    """Return the steps of state CONNECTED that a path down undoes."""
    steps = connection_steps(attachment, lost_session_s)
    return [step for step in steps if not isinstance(step, OneWay)]


def staging_steps(attachment: Attachment) -> list[Step]:
    """Return the steps of state STAGED: a filesystem that is mounted and as large as its disk.

    A writable disk gets its full size first. A raw block volume needs nothing else.
    """
    writable = not attachment.readonly and not attachment.stage_readonly
    size: list[Step] = [DiskSize(disk=attachment.disk)] if writable else []
    if attachment.mode == "BLOCK":
        return size
    point = _staging_point(attachment)
    staged = StagingMount(
        disk=attachment.disk,
        path=attachment.staging_path,
        fs_type=attachment.filesystem.type,
        options=attachment.mount_options,
        readonly=attachment.stage_readonly,
        untouched=attachment.filesystem.state == "CLONED" and attachment.stage_readonly,
        root=attachment.staging_root,
    )
    steps: list[Step] = [*size, *_formatting_steps(attachment), point, staged]
    if not attachment.stage_readonly:
        steps.append(FilesystemGrown(disk=attachment.disk, path=attachment.staging_path))
    return steps


def health_steps(attachment: Attachment) -> list[Step]:
    """Return the step, before those of state STAGED, that a staged filesystem has not failed."""
    if attachment.mode == "BLOCK" or attachment.state not in ("STAGED", "MOUNTED"):
        return []
    works = FilesystemWorks(
        disk=attachment.disk,
        paths=attachment.rooted_paths,
        readonly=attachment.stage_readonly,
    )
    return [works]


def _staging_point(attachment: Attachment) -> MountPoint:
    return MountPoint(path=attachment.staging_path, file=False, root=attachment.staging_root)


def _formatting_steps(attachment: Attachment) -> list[Step]:
    """Return the steps to a filesystem, with reports to the server before mkfs and the mount."""
    filesystem = attachment.filesystem
    formatted = Formatted(disk=attachment.disk, filesystem=filesystem)
    if filesystem.state == "READY":
        return [formatted]
    if filesystem.state == "CLONED":
        if attachment.stage_readonly:
            return []  # a read-only staging leaves the filesystem with the UUID that it has
        regenerated = FilesystemUuidRegenerated(disk=attachment.disk, filesystem=filesystem)
        return [regenerated, _report(attachment, "READY")]
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


def mounting_steps(attachment: Attachment, mount: Mount) -> list[Step]:
    """Return the steps of one more path in state MOUNTED: a mount point and a bind mount."""
    if attachment.mode == "BLOCK":
        bound: Step = DeviceBindMount(disk=attachment.disk, path=mount.path, root=mount.root)
    else:
        bound = BindMount(
            disk=attachment.disk,
            source=attachment.staging_path,
            path=mount.path,
            readonly=mount.readonly,
            root=mount.root,
            source_root=attachment.staging_root,
        )
    point = MountPoint(path=mount.path, file=attachment.mode == "BLOCK", root=mount.root)
    return [point, bound]


def client_facts(attachment: Attachment, lost_session_s: int = 0) -> tuple[Action, ...]:
    """Return every fact of an attachment on its client, as its record requires it."""
    reached = CLIENT_STATES.index(attachment.state)
    steps: list[Step] = []
    if reached >= CLIENT_STATES.index("CONNECTED"):
        steps += connection_steps(attachment, lost_session_s)
    if reached >= CLIENT_STATES.index("STAGED"):
        steps += [*health_steps(attachment), *staging_steps(attachment)]
    for mount in attachment.mounts:
        steps += mounting_steps(attachment, mount)
    return up(steps)


# Paths down


def unmounting(attachment: Attachment, mount: Mount) -> tuple[Action, ...]:
    """Return the removal of one path; a mount point that existed before the mount stays."""
    point, bound = mounting_steps(attachment, mount)
    # A raw device at another path may be in use there; a busy filesystem refuses its unmount.
    last = attachment.mode == "BLOCK" and len(attachment.mounts) == 1
    guards = [_unused(attachment)] if last else []
    return detach_path(attachment, [point, bound] if mount.made_path else [bound], guards)


def unstaging(attachment: Attachment) -> tuple[Action, ...]:
    """Return the path down from STAGED; the filesystem stays, and so does a foreign mount point."""
    kept = () if attachment.made_staging_path else (MountPoint,)
    undone = [
        step
        for step in staging_steps(attachment)
        if isinstance(step, HostStep) and not step.sticky and not isinstance(step, kept)
    ]
    return detach_path(attachment, undone, [_unused(attachment)] if undone else [])


def detach_path(
    attachment: Attachment, steps: Sequence[Step], guards: Sequence[Step] = ()
) -> tuple[Action, ...]:
    """Return the undoing of steps, which does not wait for a disk that does not answer."""
    return (*up([DiskResponsive(disk=attachment.disk), *guards]), *down(steps))


def _unused(attachment: Attachment) -> DiskUnused:
    """Return the guard that refuses a path down while others use the disk."""
    return DiskUnused(disk=attachment.disk, paths=attachment.paths)


def forced_unmount(attachment: Attachment, mounts: Sequence[Mount]) -> tuple[Action, ...]:
    """Return the removal of mounts even if processes still use them; these are named."""
    paths = tuple(mount.path for mount in mounts)
    named = up([UsersNamed(disk=attachment.disk, paths=paths)] if mounts else [])
    return (*named, *_lazy_unmounts(attachment, mounts))


def _lazy_unmounts(attachment: Attachment, mounts: Sequence[Mount]) -> tuple[Action, ...]:
    actions: list[Action] = []
    for mount in reversed(mounts):
        point, _bound = mounting_steps(attachment, mount)
        actions += up([LazyUnmounted(disk=attachment.disk, path=mount.path, root=mount.root)])
        actions += down([point] if mount.made_path else [])
    return tuple(actions)


def forced_detach_path(attachment: Attachment) -> tuple[Action, ...]:
    """Return the path down to CONNECTED in the other order: the session goes before the mounts.

    Pending I/O fails when the session is dropped; only then can the mounts be removed.
    """
    named = UsersNamed(disk=attachment.disk, paths=attachment.paths)
    actions = [
        *up([named, SessionDropped(disk=attachment.disk)]),
        *_lazy_unmounts(attachment, attachment.mounts),
    ]
    if attachment.mode == "FILESYSTEM" and attachment.staging_path:
        actions += up(
            [
                LazyUnmounted(
                    disk=attachment.disk,
                    path=attachment.staging_path,
                    root=attachment.staging_root,
                )
            ]
        )
        point = _staging_point(attachment)
        actions += down([point] if attachment.made_staging_path else [])
    return tuple(actions)


# Changes of an attachment


def growth(attachment: Attachment, size_bytes: int) -> tuple[Action, ...]:
    """Return the actions after which a client sees and uses the new size of a volume."""
    disk = attachment.disk.but(size_bytes=size_bytes)
    steps: list[Step] = [DiskSize(disk=disk)]
    if attachment.state in ("STAGED", "MOUNTED") and attachment.mode == "FILESYSTEM":
        steps.append(FilesystemGrown(disk=disk, path=attachment.staging_path))
    return up(steps)


def new_secrets(
    changes: Sequence[tuple[Attachment, Attachment]], lost_session_s: int = 0
) -> tuple[Action, ...]:
    """Return the change of the secrets of attachments, as pairs from before and after it.

    One step serves all sessions, because it reconnects all of them.
    """
    nodes = [
        NodeSecrets(
            target=after.disk.target,
            portals=after.portals,
            secret=after.secret,
            previous=before.secret,
            server=after.server,
            lost_session_s=lost_session_s,
        )
        for before, after in changes
        if transport_of(after.disk.target) == "ISCSI"
    ]
    secrets = pairs({after.disk.target: after.secret for _before, after in changes})
    return up([*nodes, SessionSecrets(secrets=secrets)])
