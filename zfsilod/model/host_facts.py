"""Facts about a host: the values that adapters take and return. No I/O."""

from __future__ import annotations

from typing import Literal

from zfsilod.model.record import Pairs, Record

FilesystemState = Literal["NONE", "FORMATTING", "CLONED", "READY"]
FILESYSTEMS = ("ext4", "xfs")  # types that zfsilo can make


class Disk(Record, tag="Disk"):
    """The block device of a session, told by target and proved by serial and size."""

    target: str  # IQN
    serial: str  # unit serial: the volume's uid
    size_bytes: int


class Filesystem(Record, tag="Filesystem"):
    """What is known of the filesystem on a volume; the server keeps it, so mkfs runs once."""

    state: FilesystemState = "NONE"
    type: str = ""
    uuid: str = ""
    operation: str = ""  # FORMATTING: the consumer's operation that may run mkfs
    host: str = ""
    origin: str = ""  # CLONED: the UUID that it still has, until it is given its own


class SnapshotRef(Record, tag="Shot"):
    """A snapshot of one zvol: of which, and its own guid where it is known."""

    dataset: str
    uid: str  # the volume's
    guid: str = ""


class ListedZvol(Record, tag="Listed"):
    """A zvol as a listing shows it; what a record would say, as far as the pool knows it."""

    dataset: str
    guid: str
    size_bytes: int
    volblocksize: int
    thin: bool
    marks: Pairs  # its own user properties of ours, without their prefix: what it inherits is none
    origin: str = ""  # the zvol whose snapshot it is a clone of

    @property
    def uid(self) -> str:
        """The volume that it is; "" when it is nobody's."""
        return dict(self.marks).get("uid", "")


class ListedSnapshot(Record, tag="ListedShot"):
    """A snapshot of ours as a listing shows it."""

    dataset: str  # of the zvol
    guid: str
    size_bytes: int
    created_at: int
    marks: Pairs  # as those of Listed; of a group all carry the same

    @property
    def cut(self) -> str:
        """The uid of the cut that it is of."""
        return dict(self.marks)["cut"]
