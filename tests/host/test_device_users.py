"""The users of a block device: in made-up /sys and /proc, and of real loop devices as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zfsilod.host import disks
from zfsilod.host.device_users import DeviceUsers, open_descriptors, static_users
from zfsilod.model.errors import Busy, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNTS = (
    "20 1 8:1 / /srv/part rw - ext4 /dev/sdb1 rw",
    "21 1 0:5 /sdb /var/lib/kubelet/dev/pvc-1 rw - devtmpfs devtmpfs rw",
    "22 1 0:5 /sdc /var/lib/kubelet/dev/pvc-2 rw - devtmpfs devtmpfs rw",
    "23 1 8:16 / /srv/whole rw - xfs /dev/sdb rw",
)


class MadeUpHost:
    """/sys and /proc of a host with the disk sdb, which has one partition."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc = folder / "sys", folder / "proc"
        for name, number, more in (("sdb", "8:16", "sdb1/partition"), ("sdb1", "8:1", "partition")):
            self.write(f"class/block/{name}/dev", number)
            self.write(f"class/block/{name}/{more}", "1")
        (self.proc / "1").mkdir(parents=True)
        (self.proc / "1/mountinfo").write_text("".join(f"{line}\n" for line in MOUNTS))

    def write(self, name: str, text: str) -> None:
        path = self.sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def process(self, pid: int, comm: str, *files: str) -> Path:
        """Add a process with open descriptors."""
        folder = self.proc / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "comm").write_text(f"{comm}\n")
        for number, file in enumerate(files):
            (folder / str(number)).symlink_to(file)
        return folder

    def users(self) -> list[str]:
        return static_users("sdb", self.sys, self.proc)

    def open(self) -> tuple[tuple[str, ...], str]:
        def number_of(path: str) -> str:
            return {"/dev/sdb": "8:16", "/dev/xvda": "8:1"}.get(str(Path(path).readlink()), "")

        seen = open_descriptors("sdb", self.sys, self.proc, number_of)
        return seen.names, seen.unseen


@pytest.fixture
def host(tmp_path: Path) -> MadeUpHost:
    return MadeUpHost(tmp_path)


def test_mounts_of_the_disk_its_partition_and_its_node(host: MadeUpHost) -> None:
    assert host.users() == ["/srv/part", "/var/lib/kubelet/dev/pvc-1", "/srv/whole"]


def test_holders_swap_and_loop_devices(host: MadeUpHost) -> None:
    (host.proc / "1/mountinfo").write_text("")
    host.write("class/block/sdb/holders/dm-3/x", "")
    host.write("class/block/sdb1/holders/md0/x", "")
    host.write("class/block/sdb1/holders/bcache0/x", "")
    host.write("block/loop7/loop/backing_file", "/dev/sdb\n")
    host.write("block/loop8/loop/backing_file", "/dev/sdc\n")
    swaps = (
        "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2\n/dev/sda9 partition 1 0 0\n"
    )
    (host.proc / "swaps").write_text(swaps)
    assert host.users() == ["bcache0", "dm-3", "md0", "swap", "loop7"]


def test_processes_with_the_disk_or_a_node_of_another_name(host: MadeUpHost) -> None:
    host.process(4711, "qemu", "socket:[1]", "/dev/null", "/dev/sdb")
    host.process(4712, "postgres", "/dev/xvda")
    host.process(4713, "bash", "/dev/sdc", "/dev/pts/0")
    host.process(4714, "multipathd", "/dev/sdb")
    host.process(os.getpid(), "python", "/dev/sdb")
    names, unseen = host.open()
    assert sorted(names) == ["postgres (4712)", "qemu (4711)"]
    assert unseen == ""


def test_a_process_that_may_not_be_seen_is_reported(
    host: MadeUpHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = host.process(4711, "qemu", "/dev/sdb")
    listdir = os.listdir

    def refusing(path: str) -> list[str]:
        if str(path) == str(hidden):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    assert host.open() == ((), "the open files of 1 processes may not be read")


def test_a_search_that_takes_too_long_is_reported(
    host: MadeUpHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.process(4711, "qemu", "/dev/sdb")
    monkeypatch.setattr("zfsilod.host.device_users.BUDGET_S", -1.0)
    assert host.open() == ((), "the search took longer than -1 s")


def test_a_disk_that_is_gone_has_no_users(host: MadeUpHost) -> None:
    host.process(4711, "qemu", "/dev/sdb")
    shutil.rmtree(host.sys)
    assert host.users() == []
    assert host.open() == ((), "")


def test_unknown_users_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = tmp_path / "sdz"
    disk.touch()
    monkeypatch.setattr(disks, "open_descriptors", lambda _name: DeviceUsers((), "they are hidden"))
    with pytest.raises(Unavailable, match=r"not known whether .* they are hidden") as unknown:
        disks.users_beside(str(disk))
    assert unknown.value.reason == "UNKNOWN"
    with pytest.raises(Unavailable):
        disks.check_unused(str(disk), "the disk")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A loop device, where root of this machine may make one."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    made = _losetup("--find", "--show", str(image))
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    _losetup("--detach", str(device))


def _losetup(*options: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("losetup", path="/usr/sbin:/sbin:/usr/bin:/bin") or "/usr/sbin/losetup"
    try:
        return subprocess.run([tool, *options], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(options, 1, "", str(error))


def test_an_open_descriptor_of_a_real_device(loop: Path) -> None:
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read(1)"]
    with (
        loop.open("rb") as file,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file.fileno(),)
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        names = open_descriptors(loop.name).names
        assert [name.partition(" ")[2] for name in names] == [f"({process.pid})"]
        with pytest.raises(Busy, match=rf"is in use by .* \({process.pid}\)"):
            disks.check_unused(str(loop), "the disk")
        process.kill()


def test_a_loop_device_on_top_of_a_real_device(loop: Path) -> None:
    """The kernel refuses no exclusive open for it, and no process has it open."""
    made = _losetup("--find", "--show", str(loop))
    if made.returncode != 0:
        pytest.skip(made.stderr.strip())
    above = Path(made.stdout.strip())
    try:
        assert static_users(loop.name) == [above.name]
        with pytest.raises(Busy, match=f"is in use by {above.name}"):
            disks.check_unused(str(loop), "the disk")
    finally:
        _losetup("--detach", str(above))
