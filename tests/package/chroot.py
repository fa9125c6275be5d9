"""A plain Debian in a folder, in which packages come and go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.images.chroot import debootstrap, guest_sources, inside
from tests.setup.cache import digest, product
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

# What zfsilo depends on, what a Debian that was installed the usual way has anyway, and multipath,
# which zfsilo configures.
PACKAGES = ("dbus", "e2fsprogs", "kmod", "lvm2", "mount", "multipath-tools", "python3",
            "python3-systemd", "systemd", "udev")  # fmt: skip
# Written by apt and dpkg about themselves, whatever the package.
BOOKKEEPING = ("var/lib/dpkg/", "var/lib/apt/", "var/cache/", "var/log/", "build", "proc/", "tmp/",
               "etc/group-", "etc/gshadow-", "var/lib/systemd/deb-systemd-helper")  # fmt: skip


def base(release: str) -> Path:
    """The folder of a freshly installed Debian, made once."""

    def build(draft: Path) -> None:
        with stage(f"package: a plain Debian {release}"):
            debootstrap(draft / "root", release, PACKAGES)

    return product(f"debian-{release}", digest(guest_sources(release), PACKAGES), build) / "root"


class Chroot:
    """A copy of that Debian."""

    def __init__(self, release: str, folder: Path) -> None:
        self.root = folder / "root"
        self.work = folder / "work"
        self.work.mkdir()
        run(["cp", "-a", "--reflink=auto", base(release), self.root])

    def run(self, *argv: str) -> str:
        """Run a command in it; /build there is `work` here."""
        return inside(self.root, self.work, argv)

    def apt(self, *words: str | Path) -> None:
        """Run apt-get; a path is a package of ours. It fetches nothing: what we need is there."""
        for word in words:
            if isinstance(word, Path):
                shutil.copy(word, self.work)
        named = [f"/build/{each.name}" if isinstance(each, Path) else each for each in words]
        self.run("apt-get", "-q", "-y", "--no-install-recommends", *named)

    def files(self) -> set[str]:
        """The paths of all files and folders, without what apt writes about itself."""
        return {name for name in self._names() if not name.startswith(BOOKKEEPING)}

    def _names(self) -> Iterator[str]:
        for path in self.root.rglob("*"):
            yield path.relative_to(self.root).as_posix()

    def write(self, files: dict[str, str]) -> None:
        """Write files, with the folders that they are in."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def reversioned(package: Path, version: str, folder: Path) -> Path:
    """The same package with another version, and one file more."""
    tree = folder / "tree"
    run(["dpkg-deb", "--raw-extract", package, tree])
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    changed = [f"Version: {version}" if each.startswith("Version:") else each for each in lines]
    control.write_text("\n".join(changed) + "\n")
    (tree / "usr/lib/zfsilo/newer.py").write_text("")
    made = folder / f"zfsilo_{version}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made])
    shutil.rmtree(tree)
    return made
