"""Cases of test_places.py that mount: each runs in a mount namespace of its own.

A tmpfs stands for the filesystem of a volume; `device` names it in mountinfo.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo, places
from zfsilod.host.mount_calls import MountCalls
from zfsilod.host.run import Runner
from zfsilod.model.errors import Conflict, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from zfsilod.host.mountinfo import MountEntry
    from zfsilod.host.places import Place


class DiskOfMemory:
    """A tmpfs in place of a disk: mount(8) takes any name for it."""

    path = "/dev/null"
    number = ""


class MountCase:
    """An allowed folder, a folder outside, and the calls."""

    def __init__(self, root: Path) -> None:
        self.inside, self.outside = root / "allowed", root / "outside"
        for folder in (self.inside / "a/point", self.outside):
            folder.mkdir(parents=True)
        self.calls = MountCalls(Runner())

    def mount(self, place: Place) -> None:
        self.calls.mount(place, DiskOfMemory(), "tmpfs", ["nodev", "rw", "_netdev"])  # type: ignore[arg-type]

    def opened(self, name: str = "a/point") -> AbstractContextManager[Place]:
        return places.needed(str(self.inside / name), str(self.inside))


def at(path: Path) -> MountEntry | None:
    return mountinfo.at(str(path), mountinfo.read())


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def refused(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def mount_and_unmount(case: MountCase) -> None:
    table = Path("/run/mount/utab")
    run("mount", "-t", "tmpfs", "t", "/run")
    table.parent.mkdir()
    with case.opened() as place:
        case.mount(place)
        mount = at(case.inside / "a/point")
        assert mount
        assert mount.type == "tmpfs"
        assert "nodev" in mount.options
        assert f"TARGET={place.path}" in table.read_text()
        assert "_netdev" in table.read_text()
        case.calls.remount(place, DiskOfMemory(), ["noexec", "ro"])  # type: ignore[arg-type]
        mount = at(case.inside / "a/point")
        assert mount
        assert {"ro", "noexec"} <= mount.options
        assert case.calls.unmount(place).rc == 0
        assert at(case.inside / "a/point") is None
        assert case.calls.unmount(place).rc == errno.EINVAL
        assert "_netdev" not in table.read_text()


def a_swapped_folder(case: MountCase) -> None:
    """A link takes the name of the folder after it was opened: nothing is mounted outside."""
    (case.outside / "point").mkdir()
    with case.opened() as place:
        (case.inside / "a").rename(case.inside / "b")
        (case.inside / "a").symlink_to(case.outside)
        refused(Conflict, lambda: case.mount(place))
    assert all(mount.type != "tmpfs" or "allowed" not in mount.path for mount in mountinfo.read())
    assert at(case.outside / "point") is None


def a_moved_folder(case: MountCase) -> None:
    """The folder itself is moved outside while it is open: the mount is removed again."""
    with case.opened() as place, case.opened() as source, source.entered() as tree:
        (case.inside / "a").rename(case.outside / "a")
        refused(Conflict, lambda: case.mount(place))
        refused(Conflict, lambda: case.calls.add_bind(tree, "source", place, readonly=False))
    assert at(case.outside / "a/point") is None


def bind_is_read_only_at_once(case: MountCase) -> None:
    (case.inside / "pod").mkdir()
    with case.opened() as staged:
        case.mount(staged)
        with case.opened("pod") as pod, staged.entered() as tree:
            case.calls.add_bind(tree, staged.path, pod, readonly=True)
            mount, source = at(case.inside / "pod"), at(case.inside / "a/point")
            assert mount
            assert source
            assert mount.readonly
            assert not source.readonly
            assert mount.number == source.number
            assert "nodev" in mount.options
            case.calls.set_access(pod, readonly=False)
            mount = at(case.inside / "pod")
            assert mount
            assert not mount.readonly
            assert "nodev" in mount.options


def bind_of_a_device_node(case: MountCase) -> None:
    (case.inside / "file").touch()
    node = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW)
    with case.opened("file") as place:
        case.calls.add_bind(node, "/dev/null", place, readonly=False)
        assert (case.inside / "file").is_char_device()
        assert case.calls.unmount(place).rc == 0
    assert (case.inside / "file").is_file()


def a_mount_that_leads_outside(case: MountCase) -> None:
    """A bind mount below the allowed folder shows another one, as those of a subPath do."""
    (case.outside / "x").mkdir()
    run("mount", "--bind", str(case.outside), str(case.inside / "a"))
    refused(PermissionDenied, lambda: case.opened("a/x").__enter__())
    refused(PermissionDenied, lambda: case.opened("a/x/y").__enter__())


def a_filesystem_of_its_own(case: MountCase) -> None:
    run("mount", "-t", "tmpfs", "t", str(case.inside / "a"))
    with places.opened(str(case.inside / "a/b/c"), str(case.inside), make=True) as place:
        assert place is not None
    assert (case.inside / "a/b").is_dir()


def unmount_follows_no_link(case: MountCase) -> None:
    run("mount", "-t", "tmpfs", "t", str(case.outside))
    (case.inside / "link").symlink_to(case.outside)
    with case.opened("link") as place:
        assert case.calls.unmount(place).rc != 0
    assert at(case.outside) is not None


def busy_and_lazy(case: MountCase) -> None:
    with case.opened() as place:
        case.mount(place)
        holder = os.open(case.inside / "a/point", os.O_RDONLY)
        assert case.calls.unmount(place).rc == errno.EBUSY
        assert case.calls.unmount(place, lazy=True).rc == 0
        os.close(holder)
    assert at(case.inside / "a/point") is None


def on_a_shared_filesystem(case: MountCase) -> None:
    """The mount appears in the peers of its parent mount, and leaves them."""
    peer = case.outside / "peer"
    peer.mkdir()
    run("mount", "-t", "tmpfs", "t", str(case.inside))
    run("mount", "--make-shared", str(case.inside))
    run("mount", "--bind", str(case.inside), str(peer))
    (case.inside / "point").mkdir()
    with places.needed(str(case.inside / "point"), "/") as place:
        case.mount(place)
        assert at(peer / "point") is not None
        assert case.calls.unmount(place).rc == 0
    assert at(peer / "point") is None


if __name__ == "__main__":
    globals()[sys.argv[1]](MountCase(Path(sys.argv[2])))
