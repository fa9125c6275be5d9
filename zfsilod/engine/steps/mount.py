"""Steps on mount points and mounts of a client."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import Disk


class MountPoint(HostStep, tag="MountPoint", part="MOUNTS"):
    """An empty directory exists to mount on; for a raw device an empty file."""

    path: str
    file: bool
    root: str = ""  # folder that the path may not leave, "/" for an administrator; "": 0.1.0

    def probe(self, host: HostAdapters) -> bool:
        return host.mounts.has_mountpoint(self.path, file=self.file, root=self.root)

    def do(self, host: HostAdapters) -> None:
        host.mounts.make_mountpoint(self.path, file=self.file, root=self.root)

    def undo(self, host: HostAdapters) -> None:
        host.mounts.remove_mountpoint(self.path, file=self.file, root=self.root)

    def observed(self, _host: HostAdapters, *, made: bool) -> dict[str, str]:
        return {f"made {self.path}": "yes"} if made else {}

    def fact(self) -> str:
        return f"mount point {self.path} exists"

    def describe_do(self) -> str:
        return f"create mount point {self.path}"

    def describe_undo(self) -> str:
        return f"remove mount point {self.path}"

    def resources(self) -> Resources:
        return Resources(paths=(self.path,))


class StagingMount(HostStep, tag="Staged", part="MOUNTS"):
    """The filesystem of the disk is mounted at the staging path."""

    volatile = True
    disk: Disk
    path: str
    fs_type: str
    options: tuple[str, ...]
    readonly: bool
    untouched: bool = False  # nothing is written, the journal is not replayed
    root: str = ""

    def probe(self, host: HostAdapters) -> bool:
        return host.mounts.is_staged(
            self.disk,
            self.path,
            options=self.options,
            readonly=self.readonly,
            root=self.root,
        )

    def do(self, host: HostAdapters) -> None:
        host.mounts.stage(
            self.disk,
            self.path,
            fs_type=self.fs_type,
            options=self.options,
            readonly=self.readonly,
            untouched=self.untouched,
            root=self.root,
        )

    def undo(self, host: HostAdapters) -> None:
        host.mounts.unmount(self.disk, self.path, root=self.root)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.mounts.is_mounted(self.disk, self.path, root=self.root)

    def fact(self) -> str:
        return f"filesystem is mounted at {self.path}"

    def describe_do(self) -> str:
        mode = " (read-only)" if self.readonly else ""
        return f"mount {self.fs_type} of {self.disk.target} at {self.path}{mode}"

    def describe_undo(self) -> str:
        return f"unmount {self.path}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), paths=(self.path,))


class FilesystemWorks(OneWay, tag="FilesystemWorks", part="MOUNTS"):
    """The filesystem, where it is mounted, answers and is as writable as it was mounted.

    The kernel gives a filesystem up after I/O errors; only a new mount, after a check, ends that.
    So it is unmounted where nothing uses it, and the steps after this one mount it again. One-way:
    a filesystem is never made to fail.
    """

    volatile = True
    disk: Disk
    paths: tuple[tuple[str, str], ...]  # of its mounts, the staging path first; with their roots
    readonly: bool

    def probe(self, host: HostAdapters) -> bool:
        path, root = self.paths[0]
        return host.mounts.has_working_filesystem(
            self.disk, path, readonly=self.readonly, root=root
        )

    def do(self, host: HostAdapters) -> None:
        host.mounts.unmount_failed(self.disk, self.paths)

    def fact(self) -> str:
        return f"filesystem at {self.paths[0][0]} works"

    def describe_do(self) -> str:
        return f"unmount the failed filesystem from {', '.join(path for path, _root in self.paths)}"

    def resources(self) -> Resources:
        return Resources(
            targets=(self.disk.target,), paths=tuple(path for path, _root in self.paths)
        )


class BindMount(HostStep, tag="Bound", part="MOUNTS"):
    """The staged filesystem is mounted at this path too."""

    volatile = True
    disk: Disk
    source: str
    path: str
    readonly: bool
    root: str = ""
    source_root: str = ""

    def probe(self, host: HostAdapters) -> bool:
        return host.mounts.is_bound(self.disk, self.path, readonly=self.readonly, root=self.root)

    def do(self, host: HostAdapters) -> None:
        host.mounts.bind(
            self.disk,
            self.source,
            self.path,
            readonly=self.readonly,
            root=self.root,
            source_root=self.source_root,
        )

    def undo(self, host: HostAdapters) -> None:
        host.mounts.unmount(self.disk, self.path, root=self.root)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.mounts.is_mounted(self.disk, self.path, root=self.root)

    def fact(self) -> str:
        return f"volume is mounted at {self.path}"

    def describe_do(self) -> str:
        mode = " (read-only)" if self.readonly else ""
        return f"bind-mount {self.source} at {self.path}{mode}"

    def describe_undo(self) -> str:
        return f"unmount {self.path}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), paths=(self.path,))


class DeviceBindMount(HostStep, tag="DeviceBound", part="MOUNTS"):
    """The device of the disk is mounted at this path, for raw block use."""

    volatile = True
    disk: Disk
    path: str
    root: str = ""

    def probe(self, host: HostAdapters) -> bool:
        return host.mounts.is_device_bound(self.disk, self.path, root=self.root)

    def do(self, host: HostAdapters) -> None:
        host.mounts.bind_device(self.disk, self.path, root=self.root)

    def undo(self, host: HostAdapters) -> None:
        host.mounts.unbind_device(self.disk, self.path, root=self.root)

    def safe_untried(self, host: HostAdapters) -> bool:
        return not host.mounts.is_mounted(self.disk, self.path, root=self.root)

    def fact(self) -> str:
        return f"device is mounted at {self.path}"

    def describe_do(self) -> str:
        return f"bind-mount the device of {self.disk.target} at {self.path}"

    def describe_undo(self) -> str:
        return f"unmount the device at {self.path}"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), paths=(self.path,))


class LazyUnmounted(OneWay, tag="Detached", part="MOUNTS"):
    """The volume is not mounted at this path, even if processes still use it.

    One-way: mounting is the task of StagingMount and BindMount.
    """

    volatile = True
    final = (True,)
    disk: Disk
    path: str
    root: str = ""

    def probe(self, host: HostAdapters) -> bool:
        return not host.mounts.is_mounted(self.disk, self.path, root=self.root)

    def do(self, host: HostAdapters) -> None:
        host.mounts.unmount_lazily(self.disk, self.path, root=self.root)

    def fact(self) -> str:
        return f"volume is not mounted at {self.path}"

    def describe_do(self) -> str:
        return f"unmount {self.path}, even if it is in use"

    def resources(self) -> Resources:
        return Resources(targets=(self.disk.target,), paths=(self.path,))
