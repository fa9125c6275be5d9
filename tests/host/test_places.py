"""Paths of callers: never followed out of their folder, by a link, a swap or a mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from zfsilod.host import mountpoints, places
from zfsilod.model.errors import Conflict, InvalidArgument, PermissionDenied
from zfsilod.requests.paths import real_path

if TYPE_CHECKING:
    from pathlib import Path

UNSHARE = ["unshare", "--mount", "--propagation", "private"]
NAMESPACE = UNSHARE if os.geteuid() == 0 else [*UNSHARE, "--user", "--map-root-user"]
CAN_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "t", "/mnt"], check=False).returncode
    == 0
)


class Tree:
    """A folder that a caller may not leave, and one outside."""

    def __init__(self, root: Path) -> None:
        self.inside, self.outside = root / "allowed", root / "outside"
        self.inside.mkdir()
        self.outside.mkdir()

    @property
    def root(self) -> str:
        return str(self.inside)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# The request


@pytest.mark.parametrize("target", ["outside/units", "outside", "missing/a/b", "nowhere"])
@pytest.mark.parametrize("rest", ["x", "a/b"])
def test_a_dangling_link_is_refused(tree: Tree, target: str, rest: str) -> None:
    (tree.inside / "link").symlink_to(tree.outside.parent / target)
    with pytest.raises(PermissionDenied):
        real_path(f"{tree.root}/link/{rest}", (tree.root,))


def test_chains_and_loops_of_links_are_refused(tree: Tree) -> None:
    (tree.inside / "first").symlink_to("second/../second")
    (tree.inside / "second").symlink_to(tree.outside / "not-there")
    (tree.inside / "round").symlink_to("round")
    (tree.inside / "up").symlink_to("..")
    for name in ("first", "second", "up/outside", "round"):
        with pytest.raises((PermissionDenied, InvalidArgument)):
            real_path(f"{tree.root}/{name}/x", (tree.root,))


def test_a_path_of_an_administrator_is_recorded_without_links(tree: Tree) -> None:
    (tree.inside / "data").symlink_to(tree.outside)
    assert real_path(f"{tree.root}/data/a/", ("/",)) == (f"{tree.outside}/a", "/")
    assert real_path(f"/{tree.root}/data/", ("/",)) == (f"{tree.root}/data", "/")


@pytest.mark.parametrize(
    "path",
    ["/proc/1/root/x", "/sys/fs", "/dev/shm/x", "/run/zfsilo/x", "/var/lib/zfsilo", "/proc"],
)
def test_closed_folders_are_refused(tree: Tree, path: str) -> None:
    for wanted in (path, f"{tree.root}/link{path}"):
        link = tree.inside / "link"
        link.unlink(missing_ok=True)
        link.symlink_to("/")
        with pytest.raises(InvalidArgument):
            real_path(wanted, ("/",))


@pytest.mark.parametrize("path", ["/a\0b", "/a/../b", "/..", "a", "/\udcff", "/" + "a/" * 3000])
def test_texts_that_are_not_a_path(path: str) -> None:
    with pytest.raises((InvalidArgument, PermissionDenied)):
        real_path(path, ("/",))


# The worker


def test_the_worker_follows_no_link(tree: Tree) -> None:
    (tree.inside / "link").symlink_to(tree.outside)
    (tree.inside / "dangling").symlink_to(tree.outside / "new")
    (tree.inside / "magic").symlink_to(f"/proc/self/fd/{os.open(tree.outside, os.O_RDONLY)}")
    for name in ("link", "dangling", "magic"):
        for root in (tree.root, "/"):
            path = f"{tree.root}/{name}/x"
            for call in (
                mountpoints.has_mountpoint,
                mountpoints.make_mountpoint,
                mountpoints.remove_mountpoint,
            ):
                with pytest.raises(Conflict, match="symbolic link"):
                    call(path, file=False, root=root)
    assert not list(tree.outside.iterdir())


def test_the_worker_stays_below_the_root(tree: Tree) -> None:
    for path in (str(tree.outside / "x"), tree.root, f"{tree.root}-more/x"):
        with pytest.raises(PermissionDenied):
            mountpoints.make_mountpoint(path, file=False, root=tree.root)
    with pytest.raises(InvalidArgument):
        mountpoints.make_mountpoint(f"{tree.root}/../outside/x", file=False, root=tree.root)
    with pytest.raises(Conflict, match="too long"):
        mountpoints.make_mountpoint(f"{tree.root}/{'a' * 300}/x", file=False, root=tree.root)
    assert not list(tree.outside.iterdir())


def test_a_folder_that_is_swapped_after_it_was_opened(tree: Tree) -> None:
    (tree.inside / "a").mkdir()
    with places.opened(f"{tree.root}/a/point", tree.root) as place:
        assert place is not None
        (tree.inside / "a").rename(tree.inside / "b")
        (tree.inside / "a").symlink_to(tree.outside)
        places.make_folder(place.name, place.folder)
    assert (tree.inside / "b/point").is_dir()
    assert not list(tree.outside.iterdir())


def test_missing_folders_have_their_mode_whatever_the_umask(tree: Tree) -> None:
    before = os.umask(0o077)
    try:
        mountpoints.make_mountpoint(f"{tree.root}/a/b", file=False, root=tree.root)
    finally:
        assert os.umask(before) == 0o077
    assert (tree.inside / "a").stat().st_mode & 0o777 == 0o755


# Mounts, in a mount namespace of their own


def in_namespace(tmp_path: Path, test: str) -> None:
    """Run a function of tests/host/mounting.py in a mount namespace."""
    if not CAN_MOUNT:
        pytest.skip("no mount namespace can be made here")
    command = [*NAMESPACE, sys.executable, "-m", "tests.host.mounting", test, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "name",
    [
        "mount_and_unmount",
        "a_swapped_folder",
        "a_moved_folder",
        "bind_is_read_only_at_once",
        "bind_of_a_device_node",
        "a_mount_that_leads_outside",
        "a_filesystem_of_its_own",
        "unmount_follows_no_link",
        "busy_and_lazy",
        "on_a_shared_filesystem",
    ],
)
def test_mounts_by_descriptor(tmp_path: Path, name: str) -> None:
    in_namespace(tmp_path, name)
