"""The adapters of a client: iSCSI sessions, filesystems, and mounts."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.host_facts import Disk, Filesystem
    from zfsilod.model.words import SessionProblem


class IscsiAdapter(Protocol):
    """The kernel's iSCSI initiator: iscsiadm(8) and /sys/class/iscsi_session.

    A method that needs a live session raises FailedPrecondition (NOT_CONNECTED) without a session,
    and Unavailable (SESSION_RECOVERY) while a lost session is being recovered.
    """

    def owner(self, target: str) -> str | None:
        """Return the server for which zfsilo made the node record or the session of a target.

        "": they were not made by zfsilo, or by version 0.1.0; None: there are none.
        """

    def has_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> bool:
        """Tell whether there are records of exactly these portals, with secrets and settings.

        Raises Conflict (FOREIGN_TARGET) for records of another server, or not of zfsilo.
        """

    def add_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> None:
        """Make or update a node record for each portal, and remove those of other portals."""

    def remove_node(self, target: str) -> None:
        """Remove the node records of a target. Raises Busy (LOGGED_IN) while it has a session."""

    def has_session(self, disk: Disk) -> bool:
        """Tell whether a session is logged in, and its disk has appeared with the right serial."""

    def login(self, disk: Disk) -> None:
        """Log in and wait for the disk.

        Raises PermissionDenied (LOGIN_REFUSED), Unavailable (NO_LOGIN, NO_DEVICE),
        FailedPrecondition (NO_NODE, NO_ISCSID), Conflict for a smaller disk.
        """

    def has_loss_wait(self, disk: Disk, seconds: int) -> bool:
        """Tell whether I/O waits this long for the session of the disk when it is lost.

        0: without limit. False without a session.
        """

    def set_loss_wait(self, disk: Disk, seconds: int) -> None:
        """Set it for every live session; a lost one keeps its value, since the kernel refuses."""

    def logout(self, disk: Disk) -> None:
        """Log out. Raises Busy (IN_USE) while the disk of a live session is in use."""

    def has_any_session(self, disk: Disk) -> bool:
        """Tell whether a session with the target of the disk exists, live or lost."""

    def is_lost(self, disk: Disk) -> bool:
        """Tell whether no session with the target of the disk is logged in."""

    def is_responsive(self, disk: Disk) -> bool:
        """Tell whether a read of the disk ends within 5 s, with data or an error.

        True without a disk.
        """

    def users(self, disk: Disk) -> list[str]:
        """Return the holders of the disk and its mount points; none when there is no disk.

        Also swap, loop devices and bind mounts of its node, and processes as far as they are seen.
        """

    def users_beside(self, disk: Disk, paths: tuple[str, ...], *, settle: bool = True) -> list[str]:
        """Return all users of the disk except mounts at these paths; none when there is no disk.

        Raises Unavailable (UNKNOWN) when the descriptors of other processes cannot be seen.
        `settle`: wait for processes that use it for a moment.
        """

    def sessions(self, prefix: str = "") -> list[str]:
        """Return the targets with a session whose names start with a prefix."""

    def nodes(self, prefix: str = "") -> list[str]:
        """Return the targets with a node record whose names start with a prefix."""

    def portal(self, disk: Disk) -> str:
        """Return the portal at which the session is, or tries to be; "" without a session."""

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        """Tell whether the session is live, or none, or tries one of these portals."""

    def follow(self, disk: Disk, portals: tuple[str, ...]) -> None:
        """Make a lost session try the first of these portals that answers, with its disk in use.

        Raises Unavailable (SESSION_RECOVERY) when it does not come back.
        """

    def drop(self, disk: Disk) -> None:
        """End every session with the target of the disk, even while the disk is in use."""

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        """Tell whether kernel and iscsid would log in again with these secrets, by target.

        Only live sessions count; a target without one needs no secrets.
        """

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        """Change the secrets of live sessions, by target, in the kernel and in iscsid."""

    def has_size(self, disk: Disk) -> bool:
        """Tell whether the kernel sees the disk with its size or a larger one."""

    def rescan(self, disk: Disk) -> None:
        """Read the size of the disk again. Raises Unavailable (NOT_GROWN) when it is smaller."""

    def initiator(self) -> str:
        """Return the IQN of this host; "" when it has none."""

    def host_nqn(self) -> str:
        """Return the NVMe name of this host; "" when it has none."""

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        """Return the problems of the sessions of disks, by target, from one reading of sysfs."""


class BlockAdapter(Protocol):
    """Filesystems on block devices: mke2fs(8), mkfs.xfs(8), blkid(8), resize2fs(8)."""

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        """Tell whether the disk has a complete filesystem that the volume may use.

        Raises Conflict: FILESYSTEM_LOST when a READY one is missing or another, OTHER_FILESYSTEM
        for another type, NOT_EMPTY for other data.
        """

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        """Make the filesystem with its UUID on a disk that is proved to be empty.

        Raises Conflict as has_filesystem(), and FailedPrecondition when the filesystem is not
        FORMATTING, or the disk is too small (TOO_SMALL).
        """

    def find_filesystem(self, disk: Disk) -> Filesystem:
        """Return the filesystem of the disk. Raises FailedPrecondition when it has none."""

    def has_own_uuid(self, disk: Disk, filesystem: Filesystem) -> bool:
        """Tell whether the filesystem has its own UUID; it must have this or that of its origin."""

    def regenerate_uuid(self, disk: Disk, filesystem: Filesystem) -> None:
        """Give the filesystem of a clone its own UUID in place of that of its origin."""

    def is_grown(self, disk: Disk, path: str) -> bool:
        """Tell whether the filesystem mounted at a path is as large as its disk allows."""

    def grow(self, disk: Disk, path: str) -> None:
        """Grow the filesystem that is mounted at a path to the size of its disk."""


class MountAdapter(Protocol):
    """Mount points and mounts: mount(8), umount(8), proc_pid_mountinfo(5).

    `root` is the folder that a path may not leave; see host/places.py. A method raises Conflict
    (BAD_MOUNT_POINT) for a link on the way and PermissionDenied (PATH_NOT_ALLOWED) for a path that
    leads outside. A method that finds another mount at a path raises Conflict (OTHER_MOUNT). The
    unmounting ones raise Busy (MOUNT_BUSY) that names the processes.
    """

    def has_mountpoint(self, path: str, *, file: bool, root: str = "") -> bool:
        """Tell whether a path is an empty directory, or with `file` an empty file, or mounted on.

        Raises Conflict (BAD_MOUNT_POINT) when it is something else.
        """

    def make_mountpoint(self, path: str, *, file: bool, root: str = "") -> None: ...
    def remove_mountpoint(self, path: str, *, file: bool, root: str = "") -> None: ...
    def is_staged(
        self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool, root: str = ""
    ) -> bool:
        """Tell whether the disk is mounted at a path with these options."""

    def stage(
        self,
        disk: Disk,
        path: str,
        *,
        fs_type: str,
        options: tuple[str, ...],
        readonly: bool,
        untouched: bool,
        root: str = "",
    ) -> None:
        """Mount the filesystem of the disk, or change the options of its mount.

        `untouched`: nothing is written, so that no journal is replayed. Raises InvalidArgument
        (BAD_MOUNT_OPTION), Conflict (OTHER_FILESYSTEM), FailedPrecondition (NEEDS_FSCK,
        WRITE_PROTECTED).
        """

    def has_working_filesystem(
        self, disk: Disk, path: str, *, readonly: bool, root: str = ""
    ) -> bool:
        """Tell whether the filesystem of the disk, where it is mounted, answers without errors.

        False when it became read-only after an error, has recorded errors, or was shut down. True
        when it is not mounted at the path. It is not touched while the session is lost, and for
        5 s at most. Raises Unavailable (SESSION_RECOVERY, FILESYSTEM_HANGS).
        """

    def unmount_failed(self, disk: Disk, paths: tuple[tuple[str, str], ...]) -> None:
        """Unmount a failed filesystem from paths with their roots, the last one first.

        Raises Busy (FILESYSTEM_FAILS) with its users before anything is unmounted.
        """

    def unmount(self, disk: Disk, path: str, *, root: str = "") -> None:
        """Unmount every mount of the disk at a path, and every dead one."""

    def is_bound(self, disk: Disk, path: str, *, readonly: bool, root: str = "") -> bool:
        """Tell whether the filesystem of the disk is mounted at a path with this access."""

    def bind(
        self,
        disk: Disk,
        source: str,
        path: str,
        *,
        readonly: bool,
        root: str = "",
        source_root: str = "",
    ) -> None:
        """Make a bind mount of a staging mount. Raises FailedPrecondition (NOT_STAGED)."""

    def is_device_bound(self, disk: Disk, path: str, *, root: str = "") -> bool:
        """Tell whether a path is a bind mount of the device node of the disk."""

    def bind_device(self, disk: Disk, path: str, *, root: str = "") -> None: ...
    def unbind_device(self, disk: Disk, path: str, *, root: str = "") -> None: ...
    def is_mounted(self, disk: Disk, path: str, *, root: str = "") -> bool:
        """Tell whether a path has a mount of the disk, of its device node, or a dead mount."""

    def unmount_lazily(self, disk: Disk, path: str, *, root: str = "") -> None:
        """Unmount all of these; a busy one lazily (umount --lazy), while its users continue."""

    def stats(self, path: str) -> dict[str, int]:
        """Return bytes_ and inodes_ total, used and available of a mount: statvfs(3).

        Of a raw device only bytes_total. The call may hang when the disk does.
        """

    def processes(self, path: str) -> list[str]:
        """Return the processes that use a mount point or what is below it, as far as known."""

    def problem(self, path: str, *, readonly: bool) -> ZfsiloError | None:
        """Return the problem of a mount that is not usable.

        Only mountinfo and sysfs are read, so that the call cannot hang.
        """

    def problems(self, paths: dict[str, bool]) -> dict[str, str]:
        """Return these sentences for many paths, from one reading of mountinfo.

        `paths`: real paths, and whether each is mounted read-only.
        """
