"""Locks of the host: nothing that root needs lies where another user can make it first."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from zfsilod.host.locks import host_lock, own_folder

ROOT = Path(__file__).parents[2]
NOBODY = 65534
SHARED = re.compile(r"/(?:run/lock|tmp|var/tmp|dev/shm|var/lock)/?[\w./-]*")
ALLOWED = {
    "/run/lock/iscsi/lock.write",  # of iscsiadm; its folder is taken by own_folder
    "/tmp",
}


def test_no_file_of_ours_lies_where_anybody_may_make_it() -> None:
    """Files in /run/lock, /tmp and /dev/shm could be made first by any user."""
    for file in (ROOT / "zfsilod").rglob("*.py"):
        names = set(re.findall(r'Path\("([^"]+)"\)|= "(/[^" ]+)"', file.read_text()))
        paths = {name for pair in names for name in pair if name}
        shared = {path for path in paths if SHARED.fullmatch(path)}
        assert shared <= ALLOWED, f"{file}: {shared - ALLOWED}"


def test_a_folder_is_made(tmp_path: Path) -> None:
    own_folder(tmp_path / "iscsi")
    own_folder(tmp_path / "iscsi")
    assert (tmp_path / "iscsi").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["writable", "link", "dangling", "file"])
def test_a_thing_of_another_kind_is_moved_aside(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "iscsi"
    match kind:
        case "writable":
            folder.mkdir()
            folder.chmod(0o777)
        case "link":
            (tmp_path / "elsewhere").mkdir()
            folder.symlink_to(tmp_path / "elsewhere")
        case "dangling":
            folder.symlink_to(tmp_path / "nowhere")
        case "file":
            folder.touch()
    own_folder(folder)
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif("os.geteuid() != 0")
def test_the_folder_of_another_user_is_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "iscsi"
    folder.mkdir()
    (folder / "lock.write").touch()
    os.chown(folder, NOBODY, NOBODY)
    own_folder(folder)
    assert folder.stat().st_uid == 0
    assert list(folder.iterdir()) == []


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"), host_lock(tmp_path / "lock", 1):
        pass
    assert not (tmp_path / "other").exists()
