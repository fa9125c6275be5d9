"""Every step: a fact about the host, and how it is probed, made and unmade.

This is the heart. A method is one call of an adapter (host/); when to use which step is in plan.py,
and the two loops that run them are in worker.py. To add one: write the class here, its adapter
functions in host/ and the same in host/fake/, name it in a rung of plan.py, and give one example
of it in tests/examples.py: the contract and crash tests find it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.records import (
    Disk,
    Filesystem,
    FilesystemState,
    HostStep,
    RemoteStep,
    SnapshotRef,
)

if TYPE_CHECKING:
    from zfsilod.host import Host
    from zfsilod.model.chap import Chap
    from zfsilod.model.record import Pairs

# The storage host: the volume


class Zvol(HostStep, tag="Zvol"):
    """The zvol exists and is ours: its marks are local to it, and its guid is the recorded one."""

    final = (False,)
    dataset: str
    uid: str
    guid: str  # "" until it is known
    size_bytes: int
    thin: bool
    volblocksize: int
    properties: Pairs
    marks: Pairs  # ZFS user properties, set with the creation: the proof that it is ours

    def probe(self, host: Host) -> bool:
        return host.zfs.has_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def do(self, host: Host) -> None:
        host.zfs.create_zvol(
            self.dataset,
            size_bytes=self.size_bytes,
            thin=self.thin,
            volblocksize=self.volblocksize,
            properties=self.properties,
            marks=self.marks,
        )

    def undo(self, host: Host) -> None:
        host.zfs.destroy_zvol(self.dataset, uid=self.uid, guid=self.guid)

    def observed(self, host: Host, *, made: bool) -> dict[str, str]:
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid)}


class ZvolSize(HostStep, tag="ZvolSize"):
    """The zvol has this size; it only ever grows."""

    final = (True,)
    dataset: str
    size_bytes: int

    def probe(self, host: Host) -> bool:
        return host.zfs.has_size(self.dataset, self.size_bytes)

    def do(self, host: Host) -> None:
        host.zfs.set_size(self.dataset, self.size_bytes)

    def undo(self, host: Host) -> None:
        """A zvol never shrinks: there may be data behind the old end already."""


class ZvolProperty(HostStep, tag="ZvolProperty"):
    """A property of the zvol has this value; before, it had `previous` ("": inherited)."""

    dataset: str
    name: str
    value: str
    previous: str

    def probe(self, host: Host) -> bool:
        return host.zfs.has_property(self.dataset, self.name, self.value)

    def do(self, host: Host) -> None:
        host.zfs.set_property(self.dataset, self.name, self.value)

    def undo(self, host: Host) -> None:
        host.zfs.set_property(self.dataset, self.name, self.previous)


class InTrash(HostStep, tag="InTrash"):
    """The zvol lies in the trash, where its name is its uid and its old name is free."""

    dataset: str  # its old name
    trash: str
    uid: str
    guid: str

    def probe(self, host: Host) -> bool:
        return host.zfs.is_moved(self.dataset, self.trash, uid=self.uid, guid=self.guid)

    def do(self, host: Host) -> None:
        host.zfs.move(self.dataset, self.trash, uid=self.uid, guid=self.guid)

    def undo(self, host: Host) -> None:
        host.zfs.move(self.trash, self.dataset, uid=self.uid, guid=self.guid)


# The storage host: snapshots and clones


class Cut(HostStep, tag="Cut"):
    """There are snapshots of these zvols of one moment, and they are not given up."""

    final = (False,)
    refs: tuple[SnapshotRef, ...]
    uid: str  # their name comes from it
    marks: Pairs

    def probe(self, host: Host) -> bool:
        return host.snapshots.has_cut(self.refs, self.uid)

    def do(self, host: Host) -> None:
        host.snapshots.cut(self.refs, self.uid, self.marks)

    def undo(self, host: Host) -> None:
        host.snapshots.give_up(self.refs, self.uid)

    def observed(self, host: Host, *, made: bool) -> dict[str, str]:
        guids = host.snapshots.find_guids(self.refs, self.uid)
        return {f"snapshot guid {uid}": guid for uid, guid in guids.items()}


class Clone(HostStep, tag="Clone"):
    """The zvol exists, is ours, and began with what a snapshot holds.

    `own`: the snapshot is made for this clone only, and goes with it: it is given up at once.
    """

    dataset: str
    uid: str
    snapshot_ref: SnapshotRef
    cut: str  # the uid of the snapshot
    own: bool
    properties: Pairs
    marks: Pairs

    def probe(self, host: Host) -> bool:
        return host.snapshots.has_clone(
            self.dataset, uid=self.uid, snapshot_ref=self.snapshot_ref, cut=self.cut, own=self.own
        )

    def do(self, host: Host) -> None:
        host.snapshots.clone(
            self.dataset,
            uid=self.uid,
            snapshot_ref=self.snapshot_ref,
            cut=self.cut,
            own=self.own,
            properties=self.properties,
            marks=self.marks,
        )

    def undo(self, host: Host) -> None:
        host.snapshots.unclone(
            self.dataset, uid=self.uid, snapshot_ref=self.snapshot_ref, cut=self.cut, own=self.own
        )

    def observed(self, host: Host, *, made: bool) -> dict[str, str]:
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid)}


class Reserved(HostStep, tag="Thick"):
    """All room of the zvol is reserved."""

    dataset: str

    def probe(self, host: Host) -> bool:
        return host.snapshots.is_thick(self.dataset)

    def do(self, host: Host) -> None:
        host.snapshots.set_thick(self.dataset, thick=True)

    def undo(self, host: Host) -> None:
        host.snapshots.set_thick(self.dataset, thick=False)


# The storage host: the export


class Backstore(HostStep, tag="Backstore"):
    """The zvol is a backstore of the kernel's target, with the volume's serial."""

    volatile = True
    name: str
    dataset: str
    serial: str

    def probe(self, host: Host) -> bool:
        return host.lio.has_backstore(self.name, dataset=self.dataset, serial=self.serial)

    def do(self, host: Host) -> None:
        host.lio.add_backstore(self.name, dataset=self.dataset, serial=self.serial)

    def undo(self, host: Host) -> None:
        host.lio.remove_backstore(self.name)


class Target(HostStep, tag="Target"):
    """The target exists, with authentication on and no access for strangers."""

    volatile = True
    target: str

    def probe(self, host: Host) -> bool:
        return host.lio.has_target(self.target)

    def do(self, host: Host) -> None:
        host.lio.add_target(self.target)

    def undo(self, host: Host) -> None:
        host.lio.remove_target(self.target)


class Lun(HostStep, tag="Lun"):
    """The backstore is LUN 0 of the target."""

    volatile = True
    target: str
    backstore: str

    def probe(self, host: Host) -> bool:
        return host.lio.has_lun(self.target, self.backstore)

    def do(self, host: Host) -> None:
        host.lio.add_lun(self.target, self.backstore)

    def undo(self, host: Host) -> None:
        host.lio.remove_lun(self.target)


class Portals(HostStep, tag="Portals"):
    """The target listens at these addresses ("10.0.0.1:3260", "[fd00::1]:3260") and no other."""

    volatile = True
    target: str
    portals: tuple[str, ...]

    def probe(self, host: Host) -> bool:
        return host.lio.has_portals(self.target, self.portals)

    def do(self, host: Host) -> None:
        host.lio.add_portals(self.target, self.portals)

    def undo(self, host: Host) -> None:
        host.lio.remove_portals(self.target)


class Enabled(HostStep, tag="Enabled"):
    """The target answers."""

    volatile = True
    target: str

    def probe(self, host: Host) -> bool:
        return host.lio.is_enabled(self.target)

    def do(self, host: Host) -> None:
        host.lio.enable(self.target)

    def undo(self, host: Host) -> None:
        host.lio.disable(self.target)


# The storage host: a publication


class NoSession(HostStep, tag="NoSession"):
    """No session of that initiator is live: a guard, which refuses and never ends one."""

    volatile = True
    target: str
    initiator: str
    volume: str
    host: str

    def probe(self, host: Host) -> bool:
        return not host.lio.has_session(self.target, self.initiator)

    def do(self, host: Host) -> None:
        raise self.refusal()

    def undo(self, host: Host) -> None:
        """Nothing was done, so nothing is undone."""

    def refusal(self) -> FailedPrecondition:
        """The error for a session that lives."""
        return FailedPrecondition(
            f"host {self.host} is still logged in to {self.volume}: disconnect it there first",
            reason="SESSION_LIVE",
            volume=self.volume,
            host=self.host,
        )


class Fenced(HostStep, tag="Fenced"):
    """No session of that initiator is live: it may log out for a while, then its session is ended.

    Never turned back: what was cut off must not come back by itself.
    """

    volatile = True
    final = (True,)
    atomic = False
    target: str
    initiator: str
    grace_s: int

    def probe(self, host: Host) -> bool:
        return not host.lio.has_session(self.target, self.initiator)

    def do(self, host: Host) -> None:
        host.lio.end_session(self.target, self.initiator, grace_s=self.grace_s)

    def undo(self, host: Host) -> None:
        """A session that was ended is the initiator's to begin again, if it is admitted."""


class NoUnknownAcls(HostStep, tag="NobodyAdmitted"):
    """The target admits nobody: a guard. Who is admitted without a record is somebody's all the
    same, perhaps after the store was lost, and is not cut off by the way.
    """

    volatile = True
    target: str

    def probe(self, host: Host) -> bool:
        admitted = host.lio.list_acls(self.target)
        if admitted:
            raise Conflict(
                f"the target {self.target} admits {', '.join(admitted)}, which no publication "
                "names: zfsiloctl orphan list",
                target=self.target,
            )
        return True

    def do(self, host: Host) -> None:
        """The probe refuses, or it is so."""

    def undo(self, host: Host) -> None:
        """Nothing was done, so nothing is undone."""


class Acl(HostStep, tag="Acl"):
    """The target admits this initiator with these secrets, besides `admitted`, and nobody else."""

    volatile = True
    target: str
    initiator: str
    secret: str  # a name; the secret itself never leaves store and kernel
    admitted: tuple[str, ...]

    def probe(self, host: Host) -> bool:
        return host.lio.has_acl(
            self.target, self.initiator, chap=host.chap(self.secret), admitted=self.admitted
        )

    def do(self, host: Host) -> None:
        host.lio.add_acl(self.target, self.initiator, chap=host.chap(self.secret))

    def undo(self, host: Host) -> None:
        host.lio.remove_acl(self.target, self.initiator)


class AclSecrets(HostStep, tag="AclSecrets"):
    """The target lets this initiator in with these secrets, no longer with the previous ones.

    A session that lives goes on. An ACL that is gone gets them when it is made again.
    """

    volatile = True
    target: str
    initiator: str
    secret: str  # names, as in Acl
    previous: str

    def probe(self, host: Host) -> bool:
        return host.lio.has_secrets(self.target, self.initiator, chap=host.chap(self.secret))

    def do(self, host: Host) -> None:
        host.lio.set_secrets(self.target, self.initiator, chap=host.chap(self.secret))

    def undo(self, host: Host) -> None:
        host.lio.set_secrets(self.target, self.initiator, chap=host.chap(self.previous))


class MappedLun(HostStep, tag="MappedLun"):
    """The initiator sees LUN 0, write-protected or not."""

    volatile = True
    target: str
    initiator: str
    readonly: bool

    def probe(self, host: Host) -> bool:
        return host.lio.has_mapped_lun(self.target, self.initiator, readonly=self.readonly)

    def do(self, host: Host) -> None:
        host.lio.map_lun(self.target, self.initiator, readonly=self.readonly)

    def undo(self, host: Host) -> None:
        host.lio.unmap_lun(self.target, self.initiator)


# The storage host: what no record knows


class NoExport(HostStep, tag="NoExport"):
    """Nothing is left of an export: target, ACLs, LUN, backstore. For orphans only."""

    volatile = True
    final = (True,)
    atomic = False
    target: str
    backstore: str

    def probe(self, host: Host) -> bool:
        lio = host.lio
        return not (self.target in lio.list_targets() or self.backstore in lio.list_backstores())

    def do(self, host: Host) -> None:
        host.lio.purge(self.target, self.backstore)

    def undo(self, host: Host) -> None:
        """An export without a record is never made again."""


class NoAcl(HostStep, tag="NoAcl"):
    """The target does not admit this initiator. For orphans only."""

    volatile = True
    final = (True,)
    atomic = False
    target: str
    initiator: str

    def probe(self, host: Host) -> bool:
        return self.initiator not in host.lio.list_acls(self.target)

    def do(self, host: Host) -> None:
        host.lio.unmap_lun(self.target, self.initiator)
        host.lio.remove_acl(self.target, self.initiator)

    def undo(self, host: Host) -> None:
        """Who is let in without a record is never let in again."""


# The consumer


class Reported(RemoteStep, tag="Reported"):
    """The server's mark for the filesystem on the volume is this; it only moves forward."""

    epoch: int
    state: FilesystemState  # FORMATTING, READY
    type: str
    uuid: str


class Node(HostStep, tag="Node"):
    """The initiator has a record of the target, with the secrets and `node.startup=manual`."""

    final = (False,)
    target: str
    portals: tuple[str, ...]
    secret: str

    def probe(self, host: Host) -> bool:
        return host.iscsi.has_node(self.target, self.portals, chap=host.chap(self.secret))

    def do(self, host: Host) -> None:
        host.iscsi.add_node(self.target, self.portals, chap=host.chap(self.secret))

    def undo(self, host: Host) -> None:
        host.iscsi.remove_node(self.target)


class NodeSecrets(HostStep, tag="NodeSecrets"):
    """The record of the target has these secrets, no longer the previous ones."""

    target: str
    portals: tuple[str, ...]
    secret: str
    previous: str

    def probe(self, host: Host) -> bool:
        return host.iscsi.has_node(self.target, self.portals, chap=host.chap(self.secret))

    def do(self, host: Host) -> None:
        host.iscsi.add_node(self.target, self.portals, chap=host.chap(self.secret))

    def undo(self, host: Host) -> None:
        host.iscsi.add_node(self.target, self.portals, chap=host.chap(self.previous))


class SessionSecrets(HostStep, tag="SessionSecrets"):
    """What logs in again when a connection breaks has these secrets; lost sessions have none.

    Never turned back: the server lets in with the new ones only.
    """

    volatile = True
    final = (True,)
    atomic = False
    secrets: Pairs  # targets, and the name of each one's secrets

    def probe(self, host: Host) -> bool:
        return host.iscsi.has_session_secrets(self._chaps(host))

    def do(self, host: Host) -> None:
        host.iscsi.set_session_secrets(self._chaps(host))

    def undo(self, host: Host) -> None:
        """With the previous ones nobody could log in."""

    def _chaps(self, host: Host) -> dict[str, Chap]:
        return {target: host.chap(name) for target, name in self.secrets}


class NoNode(HostStep, tag="NoNode"):
    """The initiator has no record of the target. For orphans only."""

    final = (True,)
    atomic = False
    target: str

    def probe(self, host: Host) -> bool:
        return self.target not in host.iscsi.nodes(self.target)

    def do(self, host: Host) -> None:
        host.iscsi.remove_node(self.target)

    def undo(self, host: Host) -> None:
        """Its secrets are gone with it."""


class Session(HostStep, tag="Session"):
    """A session is logged in, and its disk has the volume's serial."""

    volatile = True
    final = (False,)
    disk: Disk

    def probe(self, host: Host) -> bool:
        return host.iscsi.has_session(self.disk)

    def do(self, host: Host) -> None:
        host.iscsi.login(self.disk)

    def undo(self, host: Host) -> None:
        host.iscsi.logout(self.disk)


class DiskResponsive(HostStep, tag="Answering"):
    """I/O to the disk is answered, if only by an error; or no session with the target is left.

    A guard before a way down. What does not answer loses its session: what hangs on it fails now.
    """

    volatile = True
    final = (True,)
    atomic = False
    disk: Disk

    def probe(self, host: Host) -> bool:
        return host.iscsi.answers(self.disk)

    def do(self, host: Host) -> None:
        host.iscsi.drop(self.disk)

    def undo(self, host: Host) -> None:
        """To log in again is a matter of Session."""


class SessionDropped(HostStep, tag="Dropped"):
    """No session with the target is left, whoever used its disk: what hangs on it fails now.

    Never turned back: who used it has lost it.
    """

    volatile = True
    final = (True,)
    disk: Disk

    def probe(self, host: Host) -> bool:
        return not host.iscsi.is_known(self.disk)

    def do(self, host: Host) -> None:
        host.iscsi.drop(self.disk)

    def undo(self, host: Host) -> None:
        """To log in again is a matter of Session."""


class LazyUnmounted(HostStep, tag="Detached"):
    """The volume is not mounted at this path, whoever is at work there. Never turned back."""

    volatile = True
    final = (True,)
    disk: Disk
    path: str

    def probe(self, host: Host) -> bool:
        return not host.mounts.is_attached(self.disk, self.path)

    def do(self, host: Host) -> None:
        host.mounts.detach(self.disk, self.path)

    def undo(self, host: Host) -> None:
        """To mount again is a matter of StagingMount and BindMount."""


class DiskSize(HostStep, tag="DiskSize"):
    """The kernel sees the disk at its size."""

    volatile = True
    sticky = True
    disk: Disk

    def probe(self, host: Host) -> bool:
        return host.iscsi.has_size(self.disk)

    def do(self, host: Host) -> None:
        host.iscsi.rescan(self.disk)

    def undo(self, host: Host) -> None:
        """A size that was seen cannot be unseen."""


class Formatted(HostStep, tag="Formatted"):
    """The disk carries the volume's filesystem. Made only on a disk proved empty and ours."""

    sticky = True
    disk: Disk
    filesystem: Filesystem

    def probe(self, host: Host) -> bool:
        return host.block.has_filesystem(self.disk, self.filesystem)

    def do(self, host: Host) -> None:
        host.block.make_filesystem(self.disk, self.filesystem)

    def undo(self, host: Host) -> None:
        """A filesystem stays: there may be data on it."""

    def observed(self, host: Host, *, made: bool) -> dict[str, str]:
        found = host.block.find_filesystem(self.disk)
        return {"fs_type": found.type, "fs_uuid": found.uuid}


class FilesystemUuidRegenerated(HostStep, tag="Renewed"):
    """The filesystem of a clone has a UUID of its own, no longer that of its origin."""

    sticky = True
    disk: Disk
    filesystem: Filesystem

    def probe(self, host: Host) -> bool:
        return host.block.is_renewed(self.disk, self.filesystem)

    def do(self, host: Host) -> None:
        host.block.renew(self.disk, self.filesystem)

    def undo(self, host: Host) -> None:
        """Whoever stages it next goes on from whichever UUID it has."""

    def observed(self, host: Host, *, made: bool) -> dict[str, str]:
        found = host.block.find_filesystem(self.disk)
        return {"fs_type": found.type, "fs_uuid": found.uuid}


class MountPoint(HostStep, tag="MountPoint"):
    """An empty directory, or for a raw device an empty file, is there to be mounted on."""

    path: str
    file: bool

    def probe(self, host: Host) -> bool:
        return host.mounts.has_point(self.path, file=self.file)

    def do(self, host: Host) -> None:
        host.mounts.make_point(self.path, file=self.file)

    def undo(self, host: Host) -> None:
        host.mounts.remove_point(self.path, file=self.file)

    def observed(self, _host: Host, *, made: bool) -> dict[str, str]:
        return {f"made {self.path}": "yes"} if made else {}


class StagingMount(HostStep, tag="Staged"):
    """The disk's filesystem is mounted at the staging path."""

    volatile = True
    disk: Disk
    path: str
    fs_type: str
    options: tuple[str, ...]
    readonly: bool
    untouched: bool = False  # nothing is written, not even what a journal holds

    def probe(self, host: Host) -> bool:
        return host.mounts.is_staged(
            self.disk, self.path, options=self.options, readonly=self.readonly
        )

    def do(self, host: Host) -> None:
        host.mounts.stage(
            self.disk,
            self.path,
            fs_type=self.fs_type,
            options=self.options,
            readonly=self.readonly,
            untouched=self.untouched,
        )

    def undo(self, host: Host) -> None:
        host.mounts.unmount(self.disk, self.path)


class FilesystemGrown(HostStep, tag="Fills"):
    """The mounted filesystem is as large as its disk."""

    sticky = True
    disk: Disk
    path: str

    def probe(self, host: Host) -> bool:
        return host.block.fills(self.disk, self.path)

    def do(self, host: Host) -> None:
        host.block.grow(self.disk, self.path)

    def undo(self, host: Host) -> None:
        """A filesystem is never shrunk."""


class BindMount(HostStep, tag="Bound"):
    """What is staged appears at this path too."""

    volatile = True
    disk: Disk
    source: str
    path: str
    readonly: bool

    def probe(self, host: Host) -> bool:
        return host.mounts.is_bound(self.disk, self.path, readonly=self.readonly)

    def do(self, host: Host) -> None:
        host.mounts.bind(self.disk, self.source, self.path, readonly=self.readonly)

    def undo(self, host: Host) -> None:
        host.mounts.unmount(self.disk, self.path)


class DeviceBindMount(HostStep, tag="DeviceBound"):
    """The disk itself appears at this path, for raw block use."""

    volatile = True
    disk: Disk
    path: str

    def probe(self, host: Host) -> bool:
        return host.mounts.is_device_bound(self.disk, self.path)

    def do(self, host: Host) -> None:
        host.mounts.bind_device(self.disk, self.path)

    def undo(self, host: Host) -> None:
        host.mounts.unbind_device(self.disk, self.path)
