"""Mounts and mount points of the simulated consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.fake.iscsi import hangs, need_session
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.host_facts import Disk


class FakeMounts:
    """Mount points and mounts as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_point(self, path: str, *, file: bool) -> bool:
        if self.facts.get(f"mount:{path}"):
            return True
        found = self.facts.get(f"point:{path}")
        if found and found != _kind(file=file):
            raise Conflict(f"{path} is not an empty {_kind(file=file)}", path=path)
        return bool(found)

    def make_point(self, path: str, *, file: bool) -> None:
        self.facts.effect(f"point:{path}", _kind(file=file))

    def remove_point(self, path: str, *, file: bool) -> None:
        if self.facts.get(f"mount:{path}"):
            raise Busy(f"{path} is a mount point", path=path)
        if self.facts.get(f"point:{path}") == _kind(file=file):
            self.facts.effect(f"point:{path}", None)

    def is_staged(self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool) -> bool:
        return self._is(path, disk, kind="staged", readonly=readonly)

    def stage(
        self, disk: Disk, path: str, *, fs_type: str, options: tuple[str, ...], readonly: bool,
        untouched: bool,
    ) -> None:  # fmt: skip
        need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        assert found["type"] == fs_type, "mounted as another type than it is"
        self._mount(path, disk, kind="staged", readonly=readonly)

    def is_bound(self, disk: Disk, path: str, *, readonly: bool) -> bool:
        return self._is(path, disk, kind="bound", readonly=readonly)

    def bind(self, disk: Disk, source: str, path: str, *, readonly: bool) -> None:
        if self.facts.get(f"mount:{source}") is None:
            raise FailedPrecondition(f"{source} is not mounted", path=source)
        self._mount(path, disk, kind="bound", readonly=False)
        if readonly:
            self._mount(path, disk, kind="bound", readonly=True)

    def is_device_bound(self, disk: Disk, path: str) -> bool:
        return self._is(path, disk, kind="device", readonly=False)

    def bind_device(self, disk: Disk, path: str) -> None:
        need_session(self.facts, disk)
        self._mount(path, disk, kind="device", readonly=False)

    def unmount(self, disk: Disk, path: str) -> None:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        if found and hangs(self.facts, disk):
            raise Unavailable(f"umount {path} did not end in time")
        if found:
            self.facts.effect(f"mount:{path}", None)

    def unbind_device(self, disk: Disk, path: str) -> None:
        self.unmount(disk, path)

    def is_attached(self, disk: Disk, path: str) -> bool:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        return bool(found)

    def detach(self, disk: Disk, path: str) -> None:
        self.unmount(disk, path)

    def _is(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> bool:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        return bool(found and found["kind"] == kind and found["readonly"] == readonly)

    def _mount(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> None:
        if self.facts.get(f"point:{path}") is None:
            raise FailedPrecondition(f"the mount point {path} does not exist", path=path)
        mount = {"serial": disk.serial, "kind": kind, "readonly": readonly}
        self.facts.effect(f"mount:{path}", mount)

    def problem(self, path: str, *, readonly: bool) -> str:
        found = self.facts.get(f"mount:{path}")
        if found is None:
            return f"nothing is mounted at {path}"
        if found["readonly"] and not readonly:
            return f"the filesystem at {path} turned read-only after an error"
        return ""

    def stats(self, path: str) -> dict[str, int]:
        found = self.facts.get(f"mount:{path}")
        if found is None:
            raise FailedPrecondition(f"{path} is not mounted", path=path)
        size = self.facts.get(f"content:{found['serial']}")["size"]
        return {
            "bytes_total": size, "bytes_used": 0, "bytes_available": size,
            "inodes_total": 65536, "inodes_used": 11, "inodes_available": 65525,
        }  # fmt: skip


def _kind(*, file: bool) -> str:
    return "file" if file else "directory"
