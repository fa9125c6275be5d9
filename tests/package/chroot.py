"""A plain Debian in a folder, for installing and removing packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab.images.chroot import debootstrap, guest_sources, inside
from tests.setup.cache import digest, product
from tests.setup.command import run
from tests.setup.say import stage

# Dependencies of zfsilo and its page of Cockpit, packages of every usual installation, and
# multipath-tools, which zfsilo configures.
PACKAGES = (
    "cockpit-bridge",
    "dbus",
    "e2fsprogs",
    "kmod",
    "lvm2",
    "mount",
    "multipath-tools",
    "python3",
    "python3-systemd",
    "systemd",
    "udev",
)
# Written by apt and dpkg for every package.
BOOKKEEPING = (
    "var/lib/dpkg/",
    "var/lib/apt/",
    "var/cache/",
    "var/log/",
    "build",
    "proc/",
    "tmp/",
    "etc/group-",
    "etc/gshadow-",
    "var/lib/systemd/deb-systemd-helper",
)


def base(release: str) -> Path:
    """The folder of a freshly installed Debian, built on first use."""

    def build(draft: Path) -> None:
        with stage(f"package: a plain Debian {release}"):
            debootstrap(draft / "root", release, PACKAGES)

    return product(f"debian-{release}", digest(guest_sources(release), PACKAGES), build) / "root"


class Chroot:
    """A copy of the plain Debian of a release."""

    def __init__(self, release: str, folder: Path) -> None:
        self.root = folder / "root"
        self.work = folder / "work"
        self.work.mkdir()
        run(["cp", "-a", "--reflink=auto", base(release), self.root])

    def run(self, *argv: str) -> str:
        """Run a command inside; its /build is the folder `work`."""
        return inside(self.root, self.work, argv)

    def apt(self, *words: str | Path) -> None:
        """Run apt-get; a path names a package file. All dependencies are installed already."""
        for word in words:
            if isinstance(word, Path):
                shutil.copy(word, self.work)
        arguments = [f"/build/{word.name}" if isinstance(word, Path) else word for word in words]
        self.run("apt-get", "-q", "-y", "--no-install-recommends", *arguments)

    def files(self) -> set[str]:
        """The paths of all files and folders, without those of BOOKKEEPING."""
        names = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))
        return {name for name in names if not name.startswith(BOOKKEEPING)}

    def write(self, files: dict[str, str]) -> None:
        """Write files and create their folders."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def reversioned(package: Path, version: str, folder: Path) -> Path:
    """A copy of a package with another version and one additional file."""
    tree = folder / "tree"
    run(["dpkg-deb", "--raw-extract", package, tree])
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    changed = [f"Version: {version}" if line.startswith("Version:") else line for line in lines]
    control.write_text("\n".join(changed) + "\n")
    (tree / "usr/lib/zfsilo/newer.py").write_text("")
    result = folder / f"zfsilo_{version}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, result])
    shutil.rmtree(tree)
    return result
