"""Filesystems that failed: mountinfo, a temporary sysfs, and a directory for open(2)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import TARGET, UID, FakeSys, ScriptedRunner
from zfsilod.host import filesystem_health, mountinfo, processes
from zfsilod.host.disks import Disks
from zfsilod.host.mount import RealMounts
from zfsilod.host.mountinfo import MountEntry
from zfsilod.model.errors import Busy, Unavailable
from zfsilod.model.host_facts import Disk

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

DISK = Disk(target=TARGET, serial=UID, size_bytes=64 << 20)


class Client:
    """A client with the filesystem of a disk mounted at a real directory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = str(root / "data")
        (root / "data").mkdir()
        self.sys = FakeSys(root)
        self.session = self.sys.login()
        self.run = ScriptedRunner()
        self.mounts = RealMounts(self.run, Disks(self.sys.sys, self.sys.dev, self.sys.run))
        self.flags = "rw"
        monkeypatch.setattr(mountinfo, "read", lambda *_path: self.table())

    def table(self) -> list[MountEntry]:
        line = f"39 26 8:0 / {self.path} rw,relatime shared:4 - ext4 /dev/sda {self.flags}"
        return [MountEntry("26 1 254:0 / / rw shared:1 - ext4 /dev/vda rw"), MountEntry(line)]

    def works(self, *, readonly: bool = False) -> bool:
        return self.mounts.has_working_filesystem(DISK, self.path, readonly=readonly)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(tmp_path, monkeypatch)


@pytest.mark.parametrize("flags", ["ro", "rw,emergency_ro", "rw,shutdown"])
def test_a_filesystem_that_became_readonly_has_failed(client: Client, flags: str) -> None:
    assert client.works()
    assert client.mounts.problems({client.path: False}) == {}
    client.flags = flags
    assert not client.works()
    assert client.works(readonly=True)
    assert client.mounts.problems({client.path: False}) == {
        client.path: f"the filesystem at {client.path} became read-only after an error"
    }


def test_errors_that_ext4_has_counted_are_a_failure(client: Client) -> None:
    errors = client.sys.sys / "fs/ext4/sda/errors_count"
    errors.parent.mkdir(parents=True)
    errors.write_text("0\n")
    assert client.works()
    errors.write_text("3\n")
    assert not client.works()
    problem = client.mounts.problem(client.path, readonly=False)
    assert problem is not None
    assert ("has 3 recorded errors" in problem.message, problem.reason) == (
        True,
        "FILESYSTEM_ERRORS",
    )


def test_a_directory_that_gives_eio_is_a_failure(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("zfsilod.host.filesystem_health.os.open", refuse)
    assert not client.works()


def test_a_directory_that_the_sandbox_hides_is_none(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("zfsilod.host.filesystem_health.os.open", refuse)
    assert client.works()


@pytest.mark.parametrize("state", ["FAILED", "FREE"])
def test_it_is_not_touched_while_the_session_is_lost(
    client: Client, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(
        "zfsilod.host.filesystem_health.os.open", lambda *_args: pytest.fail("was opened")
    )
    (client.session / "state").write_text(f"{state}\n")
    with pytest.raises(Unavailable) as caught:
        client.works()
    assert caught.value.reason == "SESSION_RECOVERY"


def test_one_that_hangs_costs_one_thread_and_a_deadline(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, answer = os.pipe()
    opened: list[str] = []

    def hang(path: str, *_flags: int) -> int:
        opened.append(path)
        return len(os.read(release, 1)) - 1  # ends by the last line

    monkeypatch.setattr(filesystem_health, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr("zfsilod.host.filesystem_health.os.open", hang)
    monkeypatch.setattr("zfsilod.host.filesystem_health.os.close", lambda _descriptor: None)
    for _look in range(3):
        with pytest.raises(Unavailable) as caught:
            client.works()
        assert caught.value.reason == "FILESYSTEM_HANGS"
    assert opened == [client.path]
    os.write(answer, b"x")


def test_one_in_use_is_not_unmounted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "using", lambda _path: ["postgres (77)"])
    monkeypatch.setattr(processes, "mounting", lambda _number, _ours: [])
    with pytest.raises(Busy, match=r"failed and is in use by postgres \(77\)"):
        client.mounts.unmount_failed(DISK, ((client.path, ""),))
    assert not client.run.script


def test_containers_that_have_it_mounted_are_users(tmp_path: Path) -> None:
    root = "26 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
    host = f"{root}39 26 8:0 / /srv/data rw - ext4 /dev/sda rw\n"
    inside = host.replace("254:0 / / rw shared:1 - ext4 /dev/vda", "0:52 / / rw - overlay overlay")
    moved = inside.replace("/srv/data", "/var/lib/db")
    tables = {"1": host, "20": host, "21": inside, "22": moved, "23": root}
    for number, (pid, table) in enumerate(tables.items()):
        process = tmp_path / pid
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (process / "mountinfo").write_text(table)
        (process / "comm").write_text(f"program-{pid}\n")
    (tmp_path / "self").symlink_to(tmp_path / "1")
    ours = {"/srv/data": "254:0"}
    assert processes.mounting("8:0", ours, tmp_path) == ["program-21 (21)", "program-22 (22)"]
