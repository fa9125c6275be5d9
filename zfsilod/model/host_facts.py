"""Facts about a host: the values that adapters take and return. No I/O."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import DIGITS
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs
    from zfsilod.model.words import FilesystemState, SessionFault

FILESYSTEM_STATES = ("NONE", "FORMATTING", "CLONED", "READY")  # FilesystemState, in order
FILESYSTEMS = ("ext4", "xfs")  # to add one: docs/architecture.md, "To add a filesystem"
MAX_VERSION_DIGITS = 18
CONTROLLER_IDS = (1, 65519)
"""The first and the last id of NVMe controllers that a target may give: NVMe base 2.0, 5.2.2."""
HIDDEN = "hidden by the daemon's sandbox"
"""Why a fact is unknown that only workers can probe, since it needs the device."""
SECTIONS = {
    "Zvol": "zvol",
    "NotNewer": "zvol",
    "ZvolSize": "zvol",
    "ZvolProperty": "zvol",
    "Backstore": "export",
    "Target": "export",
    "Lun": "export",
    "ControllerIds": "export",
    "Namespace": "export",
    "Portals": "export",
    "Enabled": "export",
    "Limited": "export",
    "SessionsLimited": "export",
    "NoUnknownAcls": "export",
    "Acl": "access",
    "MappedLun": "access",
    "NoReservations": "access",
    "Node": "session",
    "Session": "session",
    "SessionPortal": "session",
    "Controller": "session",
    "ControllerPortal": "session",
    "QueueLimit": "session",
    "LossWait": "session",
    "DiskSize": "session",
    "Formatted": "filesystem",
    "FilesystemUuidRegenerated": "filesystem",
    "FilesystemWorks": "filesystem",
    "StagingMount": "filesystem",
    "FilesystemGrown": "filesystem",
    "MountPoint": "mounts",
    "BindMount": "mounts",
    "DeviceBindMount": "mounts",
}
"""The section of a volume's facts by kind of fact; a kind of a newer server is a section itself."""


BlockRange = tuple[int, int, bool]
"""A part of a zvol, (offset, length, whether it reads as zeros), in bytes."""


class Disk(Record, tag="Disk"):
    """The block device of a session, identified by target, serial and size."""

    target: str  # IQN or NQN
    serial: str  # unit serial number: the uid of the volume
    size_bytes: int


class SessionProblem(Record):
    """Why a session with a disk, or one of its paths, is not usable; `portals`: of lost paths.

    `is_map`: multipathd decides how long I/O waits for a path.
    """

    fault: SessionFault
    portals: tuple[str, ...] = ()
    is_map: bool = False


class ExportPath(Record):
    """A backstore of the kernel's target on a zvol, and a target that has it as a LUN.

    Over NVMe (fabric "nvme") the namespace of a subsystem, which has no backstore.

    It is read from the kernel by the device, whatever names the objects have.
    """

    dataset: str
    backstore: str = ""
    target: str = ""  # "": the backstore is no LUN
    fabric: str = "iscsi"
    initiators: tuple[str, ...] = ()  # with an ACL on the target, or allowed hosts
    open: bool = False  # the target needs no ACL: it admits every initiator

    def admits(self, initiator: str) -> bool:
        """Tell whether an initiator can log in to the target."""
        return self.open or initiator in self.initiators


class Filesystem(Record, tag="Filesystem"):
    """The filesystem of a volume. The server stores it, so that mkfs(8) runs only once."""

    state: FilesystemState = "NONE"
    type: str = ""
    uuid: str = ""
    operation: str = ""  # FORMATTING: operation of the client that may run mkfs
    host: str = ""
    origin: str = ""  # CLONED: UUID of its source, until it gets its own


class IoLimits(Record, tag="IoLimits"):
    """The most I/O of a volume, a second: requests, and bytes; 0: no limit."""

    read_iops: int = 0
    write_iops: int = 0
    read_bytes: int = 0
    write_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.read_iops or self.write_iops or self.read_bytes or self.write_bytes)

    def __str__(self) -> str:
        figures = zip(self.FIELDS, self._values(), strict=True)
        return ", ".join(f"{name} {value}" for name, value in figures if value) or "none"


NO_LIMITS = IoLimits()


def furthest(older: Filesystem, newer: Filesystem) -> Filesystem:
    """Return the one of two memories of a filesystem whose state is further: READY wins.

    Where both are equally far, it is the second one.
    """
    return max(newer, older, key=lambda filesystem: FILESYSTEM_STATES.index(filesystem.state))


class SnapshotRef(Record, tag="Shot"):
    """A snapshot of one zvol."""

    dataset: str
    uid: str  # the volume's
    guid: str = ""  # of the snapshot; "": not known yet


class ListedZvol(Record, tag="Listed"):
    """A zvol in a listing of the pool."""

    dataset: str
    guid: str
    size_bytes: int
    volblocksize: int
    thin: bool
    marks: Pairs  # local user properties zfsilo:*, without the prefix
    origin: str = ""  # zvol whose snapshot it is a clone of

    @property
    def uid(self) -> str:
        """The uid of its volume; "" without the mark of one."""
        return dict(self.marks).get("uid", "")


class ListedSnapshot(Record, tag="ListedShot"):
    """A snapshot made by zfsilo, in a listing of the pool."""

    dataset: str  # of the zvol
    guid: str
    size_bytes: int
    created_at: int
    marks: Pairs  # as those of ListedZvol; the same on all snapshots of a group
    txg: int = 0  # transaction group of the pool that made it: their order needs no clock

    @property
    def cut(self) -> str:
        """The uid of its snapshot set."""
        return dict(self.marks)["cut"]

    @property
    def grid_version(self) -> int:
        """That of the policy that took it; 0 without one."""
        mark = dict(self.marks).get("grid_version", "")
        return int(mark) if 0 < len(mark) <= MAX_VERSION_DIGITS and DIGITS.issuperset(mark) else 0
