"""The host as the steps see it: one protocol an adapter, met by the real host and by the fake.

A probe (the `is_`, `has_` and `find_` functions) changes nothing and answers, or raises Conflict
(something of that name, not ours) or Unavailable (it cannot be known now). The others accept every
half-made state of what they make or remove, and what is made or removed already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk, Filesystem, ListedSnapshot, ListedZvol, SnapshotRef
    from zfsilod.model.record import Pairs


class Zfs(Protocol):
    """zvols, through zfs(8)."""

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool: ...
    def create_zvol(
        self, dataset: str, *, size_bytes: int, thin: bool, volblocksize: int,
        properties: Pairs, marks: Pairs,
    ) -> None: ...  # fmt: skip
    def destroy_zvol(self, dataset: str, *, uid: str, guid: str) -> None: ...
    def find_guid(self, dataset: str, *, uid: str) -> str: ...
    def is_moved(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        """Tell at which of two names our zvol is; at neither is an error, not an answer."""

    def move(self, source: str, target: str, *, uid: str, guid: str) -> None:
        """Rename our zvol; the dataset above its new name is made when it is missing."""

    def dependents(self, dataset: str) -> tuple[str, ...]:
        """Return the snapshots of a zvol and the clones made of them, whoever made them.

        Raises FailedPrecondition (reason NO_DATASET) when there is no such zvol.
        """

    def has_size(self, dataset: str, size_bytes: int) -> bool: ...
    def set_size(self, dataset: str, size_bytes: int) -> None: ...
    def has_property(self, dataset: str, name: str, value: str) -> bool: ...
    def set_property(self, dataset: str, name: str, value: str) -> None: ...
    def capacity(self, root: str) -> tuple[int, int]:
        """Return the bytes available below a dataset, and its size in all."""

    def list_zvols(self, root: str) -> list[ListedZvol]:
        """Return every zvol below a dataset, ours and others."""

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        """Return what is set on each zvol below a dataset itself, by dataset."""

    def usage(self, dataset: str) -> dict[str, int]:
        """Return volsize, used and referenced in bytes."""

    def usages(self, root: str) -> dict[str, tuple[int, int, int]]:
        """Return volsize, used and referenced of every zvol below a dataset."""

    def pool_problem(self, root: str) -> str:
        """Return what is wrong with the pool of a dataset, one sentence; "": nothing."""


class Snapshots(Protocol):
    """Snapshots and clones of zvols, through zfs(8)."""

    def has_cut(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        """Tell whether these snapshots are there; one that is given up is there for nobody."""

    def cut(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None: ...
    def give_up(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        """Destroy snapshots, each as soon as no clone needs it."""

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]: ...
    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        """Return every snapshot of ours below a dataset that is there for somebody."""

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> bool: ...
    def clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool, properties: Pairs,
        marks: Pairs,
    ) -> None: ...  # fmt: skip
    def unclone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> None: ...
    def is_thick(self, dataset: str) -> bool: ...
    def set_thick(self, dataset: str, *, thick: bool) -> None: ...


class Lio(Protocol):
    """The kernel's iSCSI target, through configfs."""

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool: ...
    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None: ...
    def remove_backstore(self, name: str) -> None: ...
    def has_target(self, target: str) -> bool: ...
    def add_target(self, target: str) -> None: ...
    def remove_target(self, target: str) -> None: ...
    def has_lun(self, target: str, backstore: str) -> bool: ...
    def add_lun(self, target: str, backstore: str) -> None: ...
    def remove_lun(self, target: str) -> None: ...
    def has_portals(self, target: str, portals: tuple[str, ...]) -> bool: ...
    def add_portals(self, target: str, portals: tuple[str, ...]) -> None: ...
    def remove_portals(self, target: str) -> None: ...
    def is_enabled(self, target: str) -> bool: ...
    def enable(self, target: str) -> None: ...
    def disable(self, target: str) -> None: ...
    def has_acl(
        self, target: str, initiator: str, *, chap: Chap, admitted: tuple[str, ...]
    ) -> bool: ...
    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None: ...
    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool: ...
    def set_secrets(self, target: str, initiator: str, *, chap: Chap) -> None:
        """Change the secrets of an ACL in place; without an ACL there is nothing to change."""

    def remove_acl(self, target: str, initiator: str) -> None: ...
    def has_mapped_lun(self, target: str, initiator: str, *, readonly: bool) -> bool: ...
    def map_lun(self, target: str, initiator: str, *, readonly: bool) -> None: ...
    def unmap_lun(self, target: str, initiator: str) -> None: ...
    def list_backstores(self) -> list[str]: ...
    def list_targets(self) -> list[str]: ...
    def list_acls(self, target: str) -> list[str]: ...
    def purge(self, target: str, backstore: str) -> None:
        """Remove a target with all that is in it, and a backstore; each may be gone."""

    def has_session(self, target: str, initiator: str) -> bool: ...
    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        """Wait so long for a logout, then end the session, and with it the initiator's ACL."""


class Iscsi(Protocol):
    """The kernel's iSCSI initiator, through iscsiadm(8) and sysfs."""

    def has_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> bool: ...
    def add_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> None: ...
    def remove_node(self, target: str) -> None: ...
    def has_session(self, disk: Disk) -> bool: ...
    def login(self, disk: Disk) -> None: ...
    def logout(self, disk: Disk) -> None: ...
    def is_known(self, disk: Disk) -> bool:
        """Tell whether the initiator knows any session with the disk's target, working or not."""

    def is_lost(self, disk: Disk) -> bool:
        """Tell whether the session is gone, or does not work now."""

    def answers(self, disk: Disk) -> bool:
        """Tell whether I/O to the disk ends within seconds, if there is one."""

    def users(self, disk: Disk) -> list[str]:
        """Return who uses the disk, if there is one: devices made of it, and mount points."""

    def sessions(self, prefix: str = "") -> list[str]:
        """Return the targets that this host has sessions with."""

    def nodes(self, prefix: str = "") -> list[str]:
        """Return the targets that this host has a node record of."""

    def drop(self, disk: Disk) -> None:
        """End every session with the disk's target, whoever uses the disk."""

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        """Tell whether what logs in again when a connection breaks has these secrets, by target.

        Of sessions that live; a target without one has nothing to ask for.
        """

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None: ...
    def has_size(self, disk: Disk) -> bool: ...
    def rescan(self, disk: Disk) -> None: ...
    def initiator(self) -> str:
        """Return this host's IQN; "" when it has none."""

    def problem(self, disk: Disk) -> str:
        """Return what is wrong with a session, one sentence; "": nothing."""


class Block(Protocol):
    """Filesystems on block devices: blkid(8), mkfs(8), resize2fs(8), xfs_growfs(8)."""

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool: ...
    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None: ...
    def find_filesystem(self, disk: Disk) -> Filesystem: ...
    def is_renewed(self, disk: Disk, filesystem: Filesystem) -> bool: ...
    def renew(self, disk: Disk, filesystem: Filesystem) -> None: ...
    def fills(self, disk: Disk, path: str) -> bool: ...
    def grow(self, disk: Disk, path: str) -> None: ...


class Mounts(Protocol):
    """Mount points and mounts, by mount(8) and /proc/self/mountinfo."""

    def has_point(self, path: str, *, file: bool) -> bool: ...
    def make_point(self, path: str, *, file: bool) -> None: ...
    def remove_point(self, path: str, *, file: bool) -> None: ...
    def is_staged(
        self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool
    ) -> bool: ...
    def stage(
        self, disk: Disk, path: str, *, fs_type: str, options: tuple[str, ...], readonly: bool,
        untouched: bool,
    ) -> None: ...  # fmt: skip
    def unmount(self, disk: Disk, path: str) -> None: ...
    def is_bound(self, disk: Disk, path: str, *, readonly: bool) -> bool: ...
    def bind(self, disk: Disk, source: str, path: str, *, readonly: bool) -> None: ...
    def is_device_bound(self, disk: Disk, path: str) -> bool: ...
    def bind_device(self, disk: Disk, path: str) -> None: ...
    def unbind_device(self, disk: Disk, path: str) -> None: ...
    def is_attached(self, disk: Disk, path: str) -> bool:
        """Tell whether the disk, or what is left of it, is mounted there in any way."""

    def detach(self, disk: Disk, path: str) -> None:
        """Unmount whatever of the disk is there, and hide it from those who are still at work."""

    def stats(self, path: str) -> dict[str, int]:
        """Return bytes_ and inodes_ total, used and available: statvfs(3), which may hang."""

    def problem(self, path: str, *, readonly: bool) -> str:
        """Return what is wrong with a mount, one sentence; "": nothing. Asks no filesystem."""


class Host(Protocol):
    """All adapters of one machine."""

    @property
    def zfs(self) -> Zfs: ...
    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def lio(self) -> Lio: ...
    @property
    def iscsi(self) -> Iscsi: ...
    @property
    def block(self) -> Block: ...
    @property
    def mounts(self) -> Mounts: ...
    @property
    def chap(self) -> Callable[[str], Chap]:
        """Return CHAP secrets by name, from the store."""

    def surveyed(self, datasets: tuple[str, ...]) -> Host:
        """Return the host with these datasets looked at all at once, for many probes."""
