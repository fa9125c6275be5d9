"""Steps on the filesystem of a volume: the server's mark, creation, UUID, size."""

from __future__ import annotations

from zfsilod.engine.step import OneWay
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import RemoteStep, Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import Disk, Filesystem
    from zfsilod.model.words import FilesystemState


class Reported(RemoteStep, tag="Reported"):
    """The server's mark for the filesystem on the volume is this; it only moves forward."""

    epoch: int
    state: FilesystemState  # FORMATTING, READY
    type: str
    uuid: str

    def fact(self) -> str:
        return f"{self.server} has the filesystem of {self.volume} as {self.state}"

    def describe_do(self) -> str:
        return f"report to {self.server} that the {self.type} of {self.volume} is {self.state}"

    def describe_undo(self) -> str:
        return f"keep: {self.fact()}"

    def resources(self) -> Resources:
        return Resources()


class Formatted(OneWay, tag="Formatted", part="MOUNTS"):
    """The disk has the volume's filesystem. Created only on a disk that is proved to be empty.

    One-way: there may be data on it.
    """

    sticky = True
    disk: Disk
    filesystem: Filesystem

    def probe(self, host: HostAdapters) -> bool:
        return host.block.has_filesystem(self.disk, self.filesystem)

    def do(self, host: HostAdapters) -> None:
        host.block.make_filesystem(self.disk, self.filesystem)

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        filesystem = host.block.find_filesystem(self.disk)
        return {"fs_type": filesystem.type, "fs_uuid": filesystem.uuid}

    def fact(self) -> str:
        return f"disk has the {self.filesystem.type} filesystem"

    def describe_do(self) -> str:
        if self.filesystem.state == "READY":
            return f"check the {self.filesystem.type} filesystem on the disk of {self.disk.target}"
        return f"create {self.filesystem.type} filesystem on the disk of {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class FilesystemUuidRegenerated(OneWay, tag="Renewed", part="MOUNTS"):
    """The filesystem of a clone has a UUID of its own, no longer that of its origin.

    One-way: a later staging continues from either UUID.
    """

    sticky = True
    disk: Disk
    filesystem: Filesystem

    def probe(self, host: HostAdapters) -> bool:
        return host.block.has_own_uuid(self.disk, self.filesystem)

    def do(self, host: HostAdapters) -> None:
        host.block.regenerate_uuid(self.disk, self.filesystem)

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        filesystem = host.block.find_filesystem(self.disk)
        return {"fs_type": filesystem.type, "fs_uuid": filesystem.uuid}

    def fact(self) -> str:
        return "filesystem has a UUID of its own"

    def describe_do(self) -> str:
        return f"regenerate the filesystem UUID on the disk of {self.disk.target}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,))


class FilesystemGrown(OneWay, tag="Fills", part="MOUNTS"):
    """The mounted filesystem is as large as its disk. One-way: a filesystem is never shrunk."""

    sticky = True
    disk: Disk
    path: str

    def probe(self, host: HostAdapters) -> bool:
        return host.block.is_grown(self.disk, self.path)

    def do(self, host: HostAdapters) -> None:
        host.block.grow(self.disk, self.path)

    def fact(self) -> str:
        return "filesystem is as large as its disk"

    def describe_do(self) -> str:
        return f"grow the filesystem at {self.path} to the size of its disk"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), paths=(self.path,))
