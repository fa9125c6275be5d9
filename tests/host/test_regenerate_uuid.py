"""New UUIDs for filesystems of clones: ext4 with the real tools on a file, XFS with a script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.host.doubles import ScriptedRunner
from zfsilod.host import superblock
from zfsilod.host.device import Device
from zfsilod.host.regenerate_uuid import OPTIONS, regenerate_uuid
from zfsilod.host.run import Runner
from zfsilod.model.errors import Conflict, FailedPrecondition

OLD = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
NEW = "7c2bd2e1-4d7f-4e1d-8f1f-1f6e8f409b22"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A disk image."""
    (tmp_path / "disk").write_bytes(b"")
    return Device(f"{tmp_path}/disk", str(tmp_path))


def make(device: Device, *options: str) -> None:
    with Path(device.path).open("wb") as file:
        file.truncate(64 << 20)
    run = Runner()
    run(["mkfs.ext4", "-q", *options, "-U", OLD, device.path], timeout_s=60)


def read(device: Device) -> superblock.Superblock:
    with Path(device.path).open("rb") as file:
        parsed = superblock.parse(file.read(superblock.BYTES))
    assert parsed is not None
    return parsed


@pytest.mark.parametrize("options", [(), ("-O", "^metadata_csum"), ("-O", "metadata_csum_seed")])
def test_ext4(device: Device, options: tuple[str, ...]) -> None:
    make(device, *options)
    before = read(device)
    assert before.checksums == ("^metadata_csum" not in options)
    for _time in range(2):
        regenerate_uuid(Runner(), device, "ext4", NEW, checksums=before.checksums)
        assert read(device).uuid == NEW
    check = ["e2fsck", "-f", "-n", device.path]
    assert Runner()(check, timeout_s=60).rc == 0


def test_a_journal_is_replayed_first(device: Device) -> None:
    """The clone of a mounted filesystem needs recovery, which is the usual case."""
    make(device)
    command = ["debugfs", "-w", "-R", "feature needs_recovery", device.path]
    subprocess.run(command, check=True, capture_output=True)
    regenerate_uuid(Runner(), device, "ext4", NEW, checksums=True)
    assert read(device).uuid == NEW


def test_a_damaged_filesystem_is_left_unchanged(device: Device) -> None:
    run = ScriptedRunner((f"e2fsck -p {device.path}", 4, "UNEXPECTED INCONSISTENCY", ""))
    with pytest.raises(FailedPrecondition, match="run e2fsck"):
        regenerate_uuid(run, device, "ext4", NEW, checksums=True)
    with pytest.raises(Conflict):
        regenerate_uuid(run, device, "btrfs", NEW, checksums=True)


def test_xfs(device: Device) -> None:
    mount = f"mount -t xfs -o {OPTIONS} {device.path} /tmp"
    run = ScriptedRunner(
        (f"unshare --mount --propagation private {mount}", 0, "", ""),
        (f"xfs_admin -U {NEW} {device.path}", 0, "", ""),
    )
    regenerate_uuid(run, device, "xfs", NEW, checksums=False)
    assert not run.script
