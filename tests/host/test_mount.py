"""Mounts, with scripted tools and a scripted mountinfo; mount points, in a real directory."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.host.doubles import TARGET, UID, FakeSys, ScriptedRunner, mount
from zfsilod.host import mount as mount_module
from zfsilod.host import mountinfo, mountpoints, places, processes
from zfsilod.host.disks import Disks
from zfsilod.host.mount import RealMounts
from zfsilod.host.mount_calls import MountCalls
from zfsilod.host.superblock import Superblock
from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from zfsilod.model.host_facts import Disk

DISK = Disk(target=TARGET, serial=UID, size_bytes=64 << 20)


class MountBench:
    """Mounts with a temporary sysfs; `table` is mountinfo."""

    def __init__(self, root: Path) -> None:
        self.sys = FakeSys(root)
        self.run = ScriptedRunner()
        self.table: list[mountinfo.MountEntry] = []
        self.mounts = RealMounts(self.run, Disks(self.sys.sys, self.sys.dev, self.sys.run))
        self.path = str(root / "stage")
        self.disk = self.sys.dev / "sda"
        Path(self.path).mkdir()

    def expect(self, command: str, rc: int = 0, stderr: str = "", stdout: str = "") -> None:
        """Add a command to the script."""
        self.run.script.append((command, rc, stdout, stderr))

    def expect_mount(self, arguments: str, rc: int = 0, stderr: str = "") -> None:
        """Add a mount at the staging path to the script; utab is written before it."""
        self.expect(f"mount --fake -c {arguments} {self.path}")
        self.expect(f"mount -n -c {arguments} {self.path}", rc, stderr)
        if rc:
            self.expect(f"umount --fake -c {self.path}")

    def expect_umount(self, path: str = "") -> None:
        """Add an unmount to the script; utab is written after it."""
        self.expect(f"umount {path or self.path}")
        self.expect(f"umount --fake -c {path or self.path}")

    def is_staged(self, *options: str, readonly: bool = False) -> bool:
        """Probe the staging path."""
        return self.mounts.is_staged(DISK, self.path, options=options, readonly=readonly)

    def stage(
        self, *options: str, readonly: bool = False, fs_type: str = "ext4", untouched: bool = False
    ) -> None:
        """Mount at the staging path."""
        self.mounts.stage(
            DISK,
            self.path,
            fs_type=fs_type,
            options=options,
            readonly=readonly,
            untouched=untouched,
        )
        assert not self.run.script


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountBench:
    mounts = MountBench(tmp_path)
    present = Superblock(type="ext4", uuid="", size_bytes=0, spare_bytes=0)
    monkeypatch.setattr(mountinfo, "read", lambda: mounts.table)
    monkeypatch.setattr(mount_module, "check_unused", lambda _path, _name: None)
    monkeypatch.setattr(mount_module, "read_superblock", lambda _device: present)
    monkeypatch.setattr(MountCalls, "check_mounted", lambda *_: None)  # as tests/host/test_places
    monkeypatch.setattr(mount_module, "open_node", lambda _device: nullcontext(-1))
    monkeypatch.setattr(mount_module, "open_root", lambda _mount: nullcontext(-1))
    monkeypatch.setattr(processes, "using", lambda _path: ["bash (17)"])
    return mounts


def test_mountinfo(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_text(
        "39 26 8:0 / /srv/a\\040b\\134c rw,noatime shared:48 - ext4 /dev/sda rw,discard\n"
        "40 26 0:6 /sda//deleted /srv/\u2028d ro - devtmpfs dev rw,size=490880k\n"
    )
    first, second = mountinfo.read(path)
    assert (first.id, first.parent, first.number, first.root) == ("39", "26", "8:0", "/")
    assert (first.path, first.type, first.source) == ("/srv/a b\\c", "ext4", "/dev/sda")
    assert first.options == {"rw", "noatime"}
    assert (second.root, second.path, second.readonly) == ("/sda//deleted", "/srv/\u2028d", True)
    assert mountinfo.read()  # of this host


def test_the_topmost_mount_counts() -> None:
    table = [mount("/a", number="8:0"), mount("/a", number="8:16"), mount("/b")]
    top = mountinfo.at("/a", table)
    assert top is not None
    assert top.number == "8:16"
    assert mountinfo.at("/c", table) is None


# Staging


def test_staged_or_not(bench: MountBench) -> None:
    bench.sys.login()
    assert not bench.is_staged()
    bench.table = [mount(bench.path, options="rw,noatime")]
    assert bench.is_staged("noatime", "discard")
    assert not bench.is_staged("noexec")
    assert not bench.is_staged(readonly=True)
    bench.table = [mount(bench.path, number="8:16")]
    (bench.sys.sys / "dev/block/8:16").mkdir(parents=True)
    with pytest.raises(Conflict, match="something else is mounted"):
        bench.is_staged()


def test_a_dead_mount_counts_until_there_is_another_disk(bench: MountBench) -> None:
    bench.table = [mount(bench.path)]
    assert bench.is_staged()
    bench.sys.login(disk="sdb", number="8:16")
    assert not bench.is_staged()
    bench.table = [mount(bench.path, number="0:44", kind="tmpfs")]
    with pytest.raises(Conflict):
        bench.is_staged()


def test_another_disk_with_our_number_is_a_conflict(bench: MountBench) -> None:
    bench.sys.login(serial="f" * 32)
    bench.table = [mount(bench.path)]
    with pytest.raises(Conflict, match="serial"):
        bench.is_staged()


def test_stage(bench: MountBench) -> None:
    bench.sys.login()
    bench.expect(f"e2fsck -p {bench.disk}", 1)
    bench.expect_mount(f"-t ext4 -o noatime,rw,_netdev {bench.disk}")
    bench.stage("noatime")


def test_stage_again_changes_the_options_only(bench: MountBench) -> None:
    bench.sys.login()
    bench.table = [mount(bench.path, options="ro")]
    bench.expect(f"mount -n -c -o remount,noatime,rw,_netdev {bench.disk} {bench.path}")
    bench.stage("noatime")
    bench.table = [mount(bench.path, options="rw,noatime")]
    bench.stage("noatime")


def test_stage_read_only(bench: MountBench) -> None:
    session = bench.sys.login()
    bench.expect(f"e2fsck -p {bench.disk}")
    bench.expect_mount(f"-t ext4 -o ro,_netdev {bench.disk}")
    bench.stage(readonly=True)
    bench.expect_mount(f"-t ext4 -o ro,_netdev,noload {bench.disk}")
    bench.stage(readonly=True, untouched=True)
    (protected,) = session.glob("device/target*/*/block/*/ro")
    protected.write_text("1\n")
    bench.expect_mount(f"-t ext4 -o ro,_netdev,noload {bench.disk}")
    bench.stage(readonly=True)
    with pytest.raises(FailedPrecondition, match="write-protected"):
        bench.stage()


def test_a_filesystem_as_mkfs_made_it_is_not_checked(
    bench: MountBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = Superblock(
        type="ext4", uuid="", size_bytes=0, spare_bytes=0, never_used=True, clean=True
    )
    monkeypatch.setattr(mount_module, "read_superblock", lambda _device: present)
    bench.sys.login()
    bench.expect_mount(f"-t ext4 -o rw,_netdev {bench.disk}")
    bench.stage()
    present.clean = False
    bench.expect(f"e2fsck -p {bench.disk}", 4, stdout="UNEXPECTED INCONSISTENCY")
    with pytest.raises(FailedPrecondition, match="UNEXPECTED INCONSISTENCY"):
        bench.stage()


def test_stage_refuses_damage_and_other_types(bench: MountBench) -> None:
    bench.sys.login()
    bench.expect(f"e2fsck -p {bench.disk}", 4, stdout="UNEXPECTED INCONSISTENCY")
    with pytest.raises(FailedPrecondition, match="UNEXPECTED INCONSISTENCY"):
        bench.stage()
    with pytest.raises(Conflict, match="has ext4, not xfs"):
        bench.stage(fs_type="xfs")


def test_stage_names_a_bad_option(bench: MountBench) -> None:
    bench.sys.login()
    bench.expect(f"e2fsck -p {bench.disk}")
    bench.expect_mount(
        f"-t ext4 -o bogus,rw,_netdev {bench.disk}",
        32,
        f"mount: {bench.path}: fsconfig() failed: ext4: Unknown parameter 'bogus'.\n",
    )
    with pytest.raises(InvalidArgument, match="bogus"):
        bench.stage("bogus")


def test_stage_needs_a_session_that_works(bench: MountBench) -> None:
    with pytest.raises(FailedPrecondition, match="connect"):
        bench.stage()
    bench.sys.login(state="FAILED")
    with pytest.raises(Unavailable):
        bench.stage()


# Binding and unmounting


def test_bind(bench: MountBench, tmp_path: Path) -> None:
    bench.sys.login()
    pod = str(tmp_path / "pod")
    Path(pod).mkdir()
    with pytest.raises(FailedPrecondition, match="staged"):
        bench.mounts.bind(DISK, bench.path, pod, readonly=True)
    bench.table = [mount(bench.path)]
    assert not bench.mounts.is_bound(DISK, pod, readonly=True)
    bench.expect(f"mount --fake -c -o bind,ro,_netdev {bench.path} {pod}")
    bench.expect(f"mount -o bind,ro,_netdev {bench.path} {pod}")
    bench.mounts.bind(DISK, bench.path, pod, readonly=True)
    bench.table.append(mount(pod))
    assert not bench.mounts.is_bound(DISK, pod, readonly=True)
    bench.expect(f"mount -o remount,bind,ro {pod}")
    bench.mounts.bind(DISK, bench.path, pod, readonly=True)
    bench.table[-1] = mount(pod, options="ro")
    assert bench.mounts.is_bound(DISK, pod, readonly=True)
    assert not bench.mounts.is_bound(DISK, pod, readonly=False)


def test_unmount_leaves_other_mounts(bench: MountBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mounts.unmount(DISK, bench.path)
    bench.sys.login()
    tables = [[mount(bench.path)], []]
    monkeypatch.setattr(mountinfo, "read", lambda: tables[0] if len(tables) == 1 else tables.pop(0))
    bench.expect_umount()
    bench.mounts.unmount(DISK, bench.path)
    tables[:] = [[mount(bench.path, number="0:22", kind="proc")]]
    with pytest.raises(Conflict, match="proc"):
        bench.mounts.unmount(DISK, bench.path)


def test_unmount_of_a_dead_mount(bench: MountBench, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [[mount(bench.path)], []]
    monkeypatch.setattr(mountinfo, "read", lambda: tables[0] if len(tables) == 1 else tables.pop(0))
    bench.expect_umount()
    bench.mounts.unmount(DISK, bench.path)


def test_every_mount_of_a_former_disk_is_removed_before_the_new_one_is_mounted(
    bench: MountBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFS refuses a filesystem whose UUID is mounted, also from a disk that is gone."""
    bound = f"{bench.path}-bound"
    bench.table = [mount(bench.path), mount(bound)]
    assert bench.mounts.has_working_filesystem(DISK, bench.path, readonly=False)
    bench.sys.login(disk="sdb", number="8:16")
    assert not bench.mounts.has_working_filesystem(DISK, bench.path, readonly=False)
    monkeypatch.setattr(processes, "using", lambda _path: ["sh (77)"])
    monkeypatch.setattr(processes, "mounting", lambda _number, _ours: [])
    removed = []

    def unmount(_disk: Disk, path: str, *, root: str) -> None:
        removed.append(path)

    monkeypatch.setattr(bench.mounts, "unmount", unmount)
    bench.mounts.unmount_failed(DISK, ((bench.path, ""), (bound, "")))
    assert removed == [bound, bench.path]


def test_a_busy_mount_names_its_users(bench: MountBench) -> None:
    bench.sys.login()
    bench.table = [mount(bench.path)]
    bench.expect(f"umount {bench.path}", errno.EBUSY)
    with pytest.raises(Busy, match="in use by bash"):
        bench.mounts.unmount(DISK, bench.path)
    bench.expect(f"umount {bench.path}", errno.EINVAL)
    with pytest.raises(CommandFailed):
        bench.mounts.unmount(DISK, bench.path)


# Raw devices


def test_a_folder_with_the_name_of_a_disk_is_not_its_node(bench: MountBench) -> None:
    """`mount --bind /srv/sda PATH`, where /srv is a filesystem of its own."""
    bench.sys.login()
    bench.table = [mount(bench.path, number="0:44", root="/sda", kind="btrfs")]
    for call in (
        bench.mounts.is_device_bound,
        bench.mounts.unbind_device,
        bench.mounts.unmount_lazily,
    ):
        with pytest.raises(Conflict) as refused:
            call(DISK, bench.path)
        assert refused.value.reason == "OTHER_MOUNT"
    assert bench.table


def test_bind_device(bench: MountBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sys.login()
    assert not bench.mounts.is_device_bound(DISK, bench.path)
    bench.expect(f"mount --fake -c -o bind,rw,_netdev {bench.disk} {bench.path}")
    bench.expect(f"mount -o bind,rw,_netdev {bench.disk} {bench.path}")
    bench.mounts.bind_device(DISK, bench.path)
    bench.table = [mount(bench.path, number="0:6", root="/sda", kind="devtmpfs")]
    monkeypatch.setattr(mount_module, "is_node_of", lambda _path, _device: True)
    assert bench.mounts.is_device_bound(DISK, bench.path)
    bench.mounts.bind_device(DISK, bench.path)
    bench.table = [mount(bench.path, number="0:6", root="/sdx", kind="devtmpfs")]
    for action in (
        bench.mounts.is_device_bound,
        bench.mounts.bind_device,
        bench.mounts.unbind_device,
    ):
        with pytest.raises(Conflict):
            action(DISK, bench.path)


def test_a_dead_device_node(bench: MountBench, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = mount(bench.path, number="0:6", root="/sda//deleted", kind="devtmpfs")
    bench.table = [dead]
    assert bench.mounts.is_device_bound(DISK, bench.path)
    bench.sys.login()
    assert not bench.mounts.is_device_bound(DISK, bench.path)
    bench.expect_umount()
    bench.expect(f"mount --fake -c -o bind,rw,_netdev {bench.disk} {bench.path}")
    bench.expect(f"mount -o bind,rw,_netdev {bench.disk} {bench.path}")
    bench.mounts.bind_device(DISK, bench.path)
    tables = [[dead], []]
    monkeypatch.setattr(mountinfo, "read", lambda: tables[0] if len(tables) == 1 else tables.pop(0))
    bench.expect_umount()
    bench.mounts.unbind_device(DISK, bench.path)


def test_stats_are_of_mounted_filesystems_only(bench: MountBench, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="not mounted"):
        bench.mounts.stats(str(tmp_path))
    bench.table = [mount(str(tmp_path))]
    stats = bench.mounts.stats(str(tmp_path))
    assert stats["bytes_total"] >= stats["bytes_used"] + stats["bytes_available"] > 0
    assert stats["inodes_used"] + stats["inodes_available"] <= stats["inodes_total"]


# Mount points


def test_mount_points_are_made_and_removed(tmp_path: Path) -> None:
    for file, name in ((False, "a b/c/dir"), (True, "a b/c/file")):
        path = str(tmp_path / name)
        assert not mountpoints.has_mountpoint(path, file=file)
        mountpoints.make_mountpoint(path, file=file)
        mountpoints.make_mountpoint(path, file=file)
        assert mountpoints.has_mountpoint(path, file=file)
        with pytest.raises(Conflict):
            mountpoints.has_mountpoint(path, file=not file)
        with pytest.raises(Conflict):
            mountpoints.remove_mountpoint(path, file=not file)
        mountpoints.remove_mountpoint(path, file=file)
        mountpoints.remove_mountpoint(path, file=file)
        assert not Path(path).exists()
    assert (tmp_path / "a b/c").stat().st_mode & 0o777 == 0o755
    mountpoints.remove_mountpoint(str(tmp_path / "never/was"), file=False)
    assert not (tmp_path / "never").exists()


def test_other_files_are_left_in_place(tmp_path: Path) -> None:
    (tmp_path / "full/x").mkdir(parents=True)
    (tmp_path / "text").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, file in (("full", False), ("text", True), ("link", False), ("dangling", True)):
        for action in (
            mountpoints.has_mountpoint,
            mountpoints.make_mountpoint,
            mountpoints.remove_mountpoint,
        ):
            with pytest.raises(Conflict):
                action(str(tmp_path / name), file=file)
    with pytest.raises(Conflict):
        mountpoints.make_mountpoint(str(tmp_path / "text/below"), file=False)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dangling", "full", "link", "text"]


def test_links_above_a_mount_point_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    mountpoints.make_mountpoint(str(tmp_path / "link/deep/point"), file=False)
    assert (tmp_path / "real/deep/point").is_dir()
    assert places.resolved(str(tmp_path / "link/x")) == str(tmp_path / "real/x")


def test_a_used_mount_point_is_left_to_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "point"
    (path / "inside").mkdir(parents=True)
    monkeypatch.setattr(mountinfo, "read", lambda: [mount(str(path))])
    assert mountpoints.has_mountpoint(str(path), file=False)
    mountpoints.make_mountpoint(str(path), file=False)
    with pytest.raises(Busy, match="still a mount point"):
        mountpoints.remove_mountpoint(str(path), file=False)


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", "", "/a\0b"])
def test_invalid_paths(path: str) -> None:
    with pytest.raises(InvalidArgument):
        mountpoints.make_mountpoint(path, file=False)


def test_processes_that_use_a_path(tmp_path: Path) -> None:
    for pid, cwd in (("12", "/elsewhere"), ("130", f"{tmp_path}/m/sub"), ("7", f"{tmp_path}/more")):
        (tmp_path / "proc" / pid / "fd").mkdir(parents=True)
        (tmp_path / "proc" / pid / "comm").write_text("bash\n")
        (tmp_path / "proc" / pid / "cwd").symlink_to(cwd)
    (tmp_path / "proc/99").mkdir()
    assert processes.using(f"{tmp_path}/m", tmp_path / "proc") == ["bash (130)"]
