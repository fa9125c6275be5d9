"""Real mounts for simulated machines whose mount points another program looks at, such as kubelet.

The fact `disks` of a machine names a folder, which all machines of a simulation share. A disk with
a filesystem is a folder in it and a raw disk a sparse file behind a loop device, both named by the
serial. What is on a disk (the facts `content`) is in that folder too, so that each machine finds
what another one wrote. A snapshot is a copy. Needs root; loop devices stay until they are detached.
"""

from __future__ import annotations

import os

from zfsilod.host import mountinfo, mountpoints
from zfsilod.host.fake.facts import Facts
from zfsilod.host.fake.mount import FakeMounts
from zfsilod.host.fake.snapshots import FakeSnapshots
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Protocol

    from zfsilod.host.fake.zfs import FakeZfs
    from zfsilod.host.run import Completed
    from zfsilod.model.host_facts import Disk, SnapshotRef
    from zfsilod.model.record import Pairs
    from zfsilod.storage.paths import AnyPath

    class Run(Protocol):
        """Runs a tool, as host/run.py does."""

        def __call__(self, argv: list[str], *, timeout_s: float) -> Completed: ...


TOOL_S = 30
SHARED = "content:"


class SharedFacts(Facts):
    """The facts of a machine, of which those of the content of disks are shared."""

    def __init__(self, path: AnyPath | None, disks: str) -> None:
        super().__init__(path)
        self._shared = Facts(f"{disks}/facts.json")

    def get(self, name: str) -> Any:
        return self._shared.get(name) if name.startswith(SHARED) else super().get(name)

    def effect(
        self,
        name: str,
        value: Any,
        *,
        instead_of: str = "",
        also: dict[str, Any] | None = None,
    ) -> None:
        if name.startswith(SHARED):
            self._shared.effect(name, value)
        else:
            super().effect(name, value, instead_of=instead_of, also=also)


class KernelMounts(FakeMounts):
    """Mount points and bind mounts that exist, each with its fact."""

    def __init__(self, facts: Facts, disks: str, run: Run) -> None:
        super().__init__(facts)
        self._disks = disks
        self._run = run

    def has_mountpoint(self, path: str, *, file: bool, root: str = "") -> bool:
        return mountpoints.has_mountpoint(path, file=file, root=root)

    def make_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        mountpoints.make_mountpoint(path, file=file, root=root)

    def remove_mountpoint(self, path: str, *, file: bool, root: str = "") -> None:
        mountpoints.remove_mountpoint(path, file=file, root=root)

    def unmount(self, disk: Disk, path: str, *, root: str = "") -> None:
        self._unmount(path)
        super().unmount(disk, path, root=root)

    def _mount_of(self, path: str, disk: Disk) -> Any:
        mount = super()._mount_of(path, disk)
        if mount and mountinfo.at(path, mountinfo.read()) is None:
            self.facts.effect(f"mount:{path}", None)  # another program has removed it
            return None
        return mount

    def _mount(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> None:
        self._unmount(path)  # of a worker that was killed, or to be mounted read-only
        source = self._device(disk) if kind == "device" else self._folder(disk)
        self._run(["mount", "--bind", source, path], timeout_s=TOOL_S)
        if readonly:
            self._run(["mount", "-o", "remount,bind,ro", path], timeout_s=TOOL_S)
        mount = {"serial": disk.serial, "kind": kind, "readonly": readonly}
        self.facts.effect(f"mount:{path}", mount)

    def _unmount(self, path: str) -> None:
        while mountinfo.at(path, mountinfo.read()):
            self._run(["umount", path], timeout_s=TOOL_S)

    def _folder(self, disk: Disk) -> str:
        folder = f"{self._disks}/{disk.serial}"
        os.makedirs(folder, exist_ok=True)
        return folder

    def _device(self, disk: Disk) -> str:
        """Return the loop device of a raw disk, which gets the size of the disk."""
        image = f"{self._disks}/{disk.serial}.img"
        with open(image, "ab"):
            pass
        os.truncate(image, disk.size_bytes)
        listing = ["losetup", "--noheadings", "--output", "NAME", "--associated", image]
        devices = self._run(listing, timeout_s=TOOL_S).stdout.split()
        if devices:
            self._run(["losetup", "--set-capacity", devices[0]], timeout_s=TOOL_S)
            return devices[0]
        attach = ["losetup", "--show", "--find", image]
        return self._run(attach, timeout_s=TOOL_S).stdout.strip()


class CopiedSnapshots(FakeSnapshots):
    """Snapshots and clones with what was written to their disks."""

    def __init__(self, zfs: FakeZfs, disks: str, run: Run) -> None:
        super().__init__(zfs)
        self._disks = disks
        self._run = run

    def take(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        if not self.has_set(refs, uid):
            for ref in refs:
                self._copy(ref.uid, f"{ref.uid}@{uid}")
        super().take(refs, uid, marks)

    def _clone(
        self,
        dataset: str,
        uid: str,
        snapshot_ref: SnapshotRef,
        snapshot_uid: str,
        values: dict[str, str],
    ) -> None:
        self._copy(f"{snapshot_ref.uid}@{snapshot_uid}", uid)
        super()._clone(dataset, uid, snapshot_ref, snapshot_uid, values)

    def _blocks(self, ref: SnapshotRef, uid: str) -> tuple[int, dict[str, str]]:
        """Add what is written to a raw disk; the folder of a filesystem has no blocks."""
        created, blocks = super()._blocks(ref, uid)
        image = f"{self._disks}/{ref.uid}@{uid}.img"
        length = int(self.facts.get(f"zvol:{ref.dataset}")["properties"]["volblocksize"])
        return created, blocks | (_written(image, length) if os.path.exists(image) else {})

    def _copy(self, source: str, target: str) -> None:
        for suffix in ("", ".img"):
            old, new = f"{self._disks}/{source}{suffix}", f"{self._disks}/{target}{suffix}"
            if os.path.exists(old):
                copy = ["cp", "--archive", "--sparse=always", "--no-target-directory", old, new]
                self._run(copy, timeout_s=TOOL_S)


def _written(path: str, length: int) -> dict[str, str]:
    """Return digests of the blocks of a file that are not zeros, by their number."""
    import hashlib

    blocks, zeros = {}, bytes(length)
    with open(path, "rb") as file:
        number = 0
        while block := file.read(length):
            if block != zeros[: len(block)]:
                blocks[str(number)] = hashlib.sha256(block).hexdigest()
            number += 1
    return blocks
