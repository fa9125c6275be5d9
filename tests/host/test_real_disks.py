"""A simulated host with real mounts, over a table of mounts; `make kubernetes` runs it as root."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import chap
from zfsilod.host import mountinfo
from zfsilod.host.fake import FakeHost
from zfsilod.host.fake.real_disks import CopiedSnapshots, KernelMounts, SharedFacts
from zfsilod.host.fake.zfs import FakeZfs
from zfsilod.host.run import Completed
from zfsilod.model.host_facts import Disk, SnapshotRef

if TYPE_CHECKING:
    from pathlib import Path

SERIAL = "5e7f"
DISK = Disk(target="iqn.2026-01.org.example:t", serial=SERIAL, size_bytes=1 << 20)
CONTENT = {"type": "ext4", "uuid": "u", "size": 1 << 20, "whole": True}
LINE = "1 0 0:1 / {path} {options} - tmpfs tmpfs rw"


class MountTable:
    """Mounts and loop devices in memory: the tools change them, mountinfo reads them."""

    def __init__(self) -> None:
        self.mounts: list[tuple[str, str, str]] = []  # source, path, options
        self.loops: dict[str, str] = {}

    def __call__(self, argv: list[str], *, timeout_s: float) -> Completed:
        output = ""
        match argv:
            case ["mount", "--bind", source, path]:
                self.mounts.append((source, path, "rw"))
            case ["mount", "-o", "remount,bind,ro", path]:
                source, _path, _options = self.mounts.pop()
                self.mounts.append((source, path, "ro"))
            case ["umount", path]:
                self.mounts = [mount for mount in self.mounts if mount[1] != path]
            case ["losetup", "--show", "--find", image]:
                output = self.loops[image] = f"/dev/loop{len(self.loops)}"
            case ["losetup", "--noheadings", *_options, image]:
                output = self.loops.get(image, "")
            case ["losetup", "--set-capacity", _device]:
                pass
            case _:
                subprocess.run(argv, check=True, timeout=timeout_s)
        return Completed(tuple(argv), 0, output, "")

    def read(self) -> list[mountinfo.MountEntry]:
        return [
            mountinfo.MountEntry(LINE.format(path=path, options=options))
            for _source, path, options in self.mounts
        ]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> MountTable:
    kernel = MountTable()
    monkeypatch.setattr(mountinfo, "read", kernel.read)
    return kernel


@pytest.fixture
def facts(tmp_path: Path) -> SharedFacts:
    """The facts of a machine that is logged in to a disk with a filesystem."""
    (tmp_path / "disks").mkdir()
    facts = SharedFacts(tmp_path / "facts.json", f"{tmp_path}/disks")
    facts.effect(f"session:{DISK.target}", {"serial": SERIAL, "size": DISK.size_bytes})
    facts.effect(f"content:{SERIAL}", CONTENT)
    return facts


@pytest.fixture
def mounts(kernel: MountTable, facts: SharedFacts, tmp_path: Path) -> KernelMounts:
    return KernelMounts(facts, f"{tmp_path}/disks", kernel)


def stage(mounts: KernelMounts, path: str, *, readonly: bool = False) -> None:
    mounts.make_mountpoint(path, file=False)
    mounts.stage(DISK, path, fs_type="ext4", options=(), readonly=readonly, untouched=False)


def test_a_filesystem_is_a_folder_that_machines_share(
    kernel: MountTable, mounts: KernelMounts, tmp_path: Path
) -> None:
    path = f"{tmp_path}/point"
    stage(mounts, path)
    assert kernel.mounts == [(f"{tmp_path}/disks/{SERIAL}", path, "rw")]
    assert mounts.is_staged(DISK, path, options=(), readonly=False)
    other = SharedFacts(tmp_path / "other.json", f"{tmp_path}/disks")
    assert other.get(f"content:{SERIAL}") == CONTENT
    assert other.get(f"mount:{path}") is None
    mounts.unmount(DISK, path)
    mounts.remove_mountpoint(path, file=False)
    assert kernel.mounts == []
    assert not mounts.has_mountpoint(path, file=False)


def test_a_mount_of_a_killed_worker_is_replaced(
    kernel: MountTable, mounts: KernelMounts, tmp_path: Path
) -> None:
    path = f"{tmp_path}/point"
    kernel.mounts = [("elsewhere", path, "rw")]
    stage(mounts, path, readonly=True)
    assert kernel.mounts == [(f"{tmp_path}/disks/{SERIAL}", path, "ro")]


def test_a_mount_that_another_program_removed_is_known(
    kernel: MountTable, mounts: KernelMounts, facts: SharedFacts, tmp_path: Path
) -> None:
    path = f"{tmp_path}/point"
    stage(mounts, path)
    kernel.mounts = []
    assert not mounts.is_mounted(DISK, path)
    assert facts.get(f"mount:{path}") is None


def test_a_raw_disk_has_one_loop_device(
    kernel: MountTable, mounts: KernelMounts, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        mounts.make_mountpoint(f"{tmp_path}/{name}", file=True)
        mounts.bind_device(DISK, f"{tmp_path}/{name}")
    assert [source for source, _path, _options in kernel.mounts] == ["/dev/loop0", "/dev/loop0"]
    assert (tmp_path / f"disks/{SERIAL}.img").stat().st_size == DISK.size_bytes


def test_a_clone_has_what_was_written(
    kernel: MountTable, facts: SharedFacts, tmp_path: Path
) -> None:
    disks = tmp_path / "disks"
    zfs = FakeZfs(facts)
    snapshots = CopiedSnapshots(zfs, str(disks), kernel)
    zvol = {"uid": SERIAL, "guid": "1", "size": 1 << 20, "thin": True}
    facts.effect("zvol:tank/a", zvol | {"properties": {"volblocksize": "16384"}})
    (disks / SERIAL).mkdir()
    (disks / SERIAL / "file").write_text("before")
    ref = SnapshotRef(dataset="tank/a", uid=SERIAL)
    snapshots.take((ref,), "s", ())
    (disks / SERIAL / "file").write_text("after")
    snapshots.take((ref,), "s", ())  # repeated: changes nothing
    snapshots.clone(
        "tank/b", uid="c", snapshot_ref=ref, snapshot_uid="s", own=False, properties=(), marks=()
    )
    assert (disks / "c/file").read_text() == "before"
    assert facts.get("content:c") == CONTENT


def test_the_blocks_of_raw_disks_are_compared(kernel: MountTable, tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    zfs = FakeZfs(SharedFacts(tmp_path / "facts.json", str(disks)))
    size, block = 64 << 14, 1 << 14
    marks = (("zfsilo:uid", SERIAL),)
    zfs.create_zvol(
        "tank/a", size_bytes=size, thin=True, volblocksize=block, properties=(), marks=marks
    )
    snapshots = CopiedSnapshots(zfs, str(disks), kernel)
    ref = SnapshotRef(dataset="tank/a", uid=SERIAL)
    image = disks / f"{SERIAL}.img"
    image.write_bytes(bytes(block) + b"a" * 3 * block + bytes(60 * block))
    snapshots.take((ref,), "one", ())
    image.write_bytes(
        bytes(2 * block) + b"b" + b"a" * (2 * block - 1) + b"c" + bytes(60 * block - 1)
    )
    snapshots.take((ref,), "two", ())
    allocated = snapshots.read_blocks(ref, "one", base=None, base_uid="", start=0)
    assert list(allocated) == [(block, 3 * block, False)]
    changed = snapshots.read_blocks(ref, "two", base=ref, base_uid="one", start=0)
    assert list(changed) == [
        (block, block, True),
        (2 * block, block, False),
        (4 * block, block, False),
    ]


def test_the_fact_disks_makes_mounts_real(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(f'{{"disks": "{tmp_path}"}}')
    host = FakeHost(tmp_path / "facts.json", chap=lambda _name: chap())
    assert isinstance(host.mounts, KernelMounts)
    assert isinstance(host.snapshots, CopiedSnapshots)
    assert not isinstance(FakeHost(chap=lambda _name: chap()).mounts, KernelMounts)
