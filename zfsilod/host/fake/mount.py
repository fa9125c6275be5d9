"""The mounts and mount points of the simulated host."""

from __future__ import annotations

from zfsilod.host.fake.sessions import hangs, need_session
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.host_facts import Disk


class FakeMounts:
    """Mount points and mounts as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_mountpoint(self, path: str, *, file: bool, root: str = "") -> bool:
        if self.facts.get(f"mount:{path}"):
            return True
        kind = self.facts.get(f"point:{path}")
        if kind and kind != _kind(file=file):
            raise Conflict(f"{path} is not an empty {_kind(file=file)}", path=path)
        return bool(kind)

    def make_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        self.facts.effect(f"point:{path}", _kind(file=file))

    def remove_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        if self.facts.get(f"mount:{path}"):
            raise Busy(f"{path} is a mount point", path=path)
        if self.facts.get(f"point:{path}") == _kind(file=file):
            self.facts.effect(f"point:{path}", None)

    def is_staged(
        self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool, root: str = ""
    ) -> bool:
        return self._is(path, disk, kind="staged", readonly=readonly)

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
        need_session(self.facts, disk)
        content = self.facts.get(f"content:{disk.serial}")
        assert content["type"] == fs_type, "mount of a filesystem as another type"
        if self.facts.get(f"failed:{disk.serial}") is not None:
            self.facts.effect(f"failed:{disk.serial}", None)
        self._mount(path, disk, kind="staged", readonly=readonly)

    def has_working_filesystem(
        self, disk: Disk, path: str, *, readonly: bool, root: str = ""
    ) -> bool:
        if self._mount_of(path, disk) is None:
            return True
        need_session(self.facts, disk)
        return self.facts.get(f"failed:{disk.serial}") is None

    def unmount_failed(self, disk: Disk, paths: tuple[tuple[str, str], ...]) -> None:
        users = self.facts.get(f"failed:{disk.serial}")
        if users:
            raise Busy(f"the filesystem at {paths[0][0]} failed and is in use by {users}")
        for path, root in reversed(paths):
            self.unmount(disk, path, root=root)

    def is_bound(self, disk: Disk, path: str, *, readonly: bool, root: str = "") -> bool:
        return self._is(path, disk, kind="bound", readonly=readonly)

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
        if self.facts.get(f"mount:{source}") is None:
            raise FailedPrecondition(f"{source} is not mounted", path=source)
        self._mount(path, disk, kind="bound", readonly=False)
        if readonly:
            self._mount(path, disk, kind="bound", readonly=True)

    def is_device_bound(self, disk: Disk, path: str, *, root: str = "") -> bool:
        return self._is(path, disk, kind="device", readonly=False)

    def bind_device(self, disk: Disk, path: str, *, root: str = "") -> None:
        need_session(self.facts, disk)
        self._mount(path, disk, kind="device", readonly=False)

    def unmount(self, disk: Disk, path: str, *, root: str = "") -> None:
        mount = self._mount_of(path, disk)
        if mount and hangs(self.facts, disk):
            raise Unavailable(f"umount {path} did not end in time")
        if mount:
            self.facts.effect(f"mount:{path}", None)

    def unbind_device(self, disk: Disk, path: str, *, root: str = "") -> None:
        self.unmount(disk, path)

    def is_mounted(self, disk: Disk, path: str, *, root: str = "") -> bool:
        return bool(self._mount_of(path, disk))

    def unmount_lazily(self, disk: Disk, path: str, *, root: str = "") -> None:
        self.unmount(disk, path)

    def processes(self, path: str) -> list[str]:
        return self.facts.users(path, "process")

    def _is(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> bool:
        mount = self._mount_of(path, disk)
        return bool(mount and mount["kind"] == kind and mount["readonly"] == readonly)

    def _mount_of(self, path: str, disk: Disk) -> Any:
        mount = self.facts.get(f"mount:{path}")
        if mount and mount["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        return mount

    def _mount(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> None:
        if self.facts.get(f"point:{path}") is None:
            raise FailedPrecondition(f"the mount point {path} does not exist", path=path)
        mount = {"serial": disk.serial, "kind": kind, "readonly": readonly}
        self.facts.effect(f"mount:{path}", mount)

    def problem(self, path: str, *, readonly: bool) -> ZfsiloError | None:
        mount = self.facts.get(f"mount:{path}")
        if mount is None:
            return Unavailable(f"nothing is mounted at {path}", reason="NOT_MOUNTED")
        if mount["readonly"] and not readonly:
            message = f"the filesystem at {path} became read-only after an error"
            return Unavailable(message, reason="FILESYSTEM_FAILS")
        if self.facts.get(f"failed:{mount['serial']}") is None:
            return None
        message = f"the filesystem at {path} has 1 recorded errors"
        return Unavailable(message, reason="FILESYSTEM_ERRORS")

    def problems(self, paths: dict[str, bool]) -> dict[str, str]:
        named = {path: self.problem(path, readonly=wanted) for path, wanted in paths.items()}
        return {path: problem.message for path, problem in named.items() if problem}

    def stats(self, path: str) -> dict[str, int]:
        mount = self.facts.get(f"mount:{path}")
        if mount is None:
            raise FailedPrecondition(f"{path} is not mounted", reason="NOT_MOUNTED", path=path)
        size = self.facts.get(f"content:{mount['serial']}")["size"]
        return {
            "bytes_total": size,
            "bytes_used": 0,
            "bytes_available": size,
            "inodes_total": 65536,
            "inodes_used": 11,
            "inodes_available": 65525,
        }


def _kind(*, file: bool) -> str:
    return "file" if file else "directory"
