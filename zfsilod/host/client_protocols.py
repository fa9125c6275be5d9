"""The adapters of a client: sessions of iSCSI and of NVMe, filesystems, and mounts."""

from __future__ import annotations

from zfsilod.host.transport_protocols import SessionAdapter
from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.errors import ZfsiloError
    from zfsilod.model.host_facts import Disk, Filesystem


class IscsiAdapter(SessionAdapter, Protocol):
    """The kernel's iSCSI initiator: iscsiadm(8) and /sys/class/iscsi_session."""

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

    def nodes(self, prefix: str = "") -> list[str]:
        """Return the targets with a node record whose names start with a prefix."""

    def follow(self, disk: Disk, portals: tuple[str, ...]) -> None:
        """Make a lost session try the first of these portals that answers, with its disk in use.

        Where the disk may have several paths: log in at each that answers, then out of others.
        Raises Unavailable (SESSION_RECOVERY) when it does not come back.
        """

    def initiator(self) -> str:
        """Return the IQN of this host; "" when it has none."""

    def host_nqn(self) -> str:
        """Return the NVMe name of this host; "" when it has none."""


class NvmeAdapter(SessionAdapter, Protocol):
    """The kernel's NVMe/TCP host: /dev/nvme-fabrics and /sys/class/nvme.

    A controller is a session; the disk is the namespace that all controllers of a subsystem share.
    """

    def is_available(self) -> bool:
        """Tell whether the kernel of this host has NVMe/TCP, or may have it."""

    def has_controller(
        self, disk: Disk, portals: tuple[str, ...], *, server: str, tls: Chap | None = None
    ) -> bool:
        """Tell whether a controller is live, and its disk has appeared with the right identity.

        `tls`: its secrets with a PSK, which the kernel's keyring has to have, too.
        False too when it is lost at none of these portals. Raises Unavailable (SESSION_RECOVERY)
        while it is lost at one of them, and Conflict (FOREIGN_TARGET) for a controller of another
        server, or not of zfsilo.
        """

    def connect(
        self,
        disk: Disk,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str,
        lost_session_s: int,
    ) -> None:
        """Connect to each of the portals that answers, and wait for the disk.

        With TLS if there is a PSK, which is put into the kernel's keyring before.
        Controllers at other portals are removed then. Without native multipath one controller is
        enough. Raises PermissionDenied (LOGIN_REFUSED), Unavailable (NO_LOGIN, NO_DEVICE),
        FailedPrecondition (NO_NVME, NO_NVME_TLS, NO_TLSHD).
        """

    def has_queue_limit(self, disk: Disk) -> bool:
        """Tell whether no request to the disk is larger than the server's target can take.

        False without a disk.
        """

    def set_queue_limit(self, disk: Disk) -> None: ...


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
