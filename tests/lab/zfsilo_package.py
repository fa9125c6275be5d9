"""Two versions of the Debian package on a disk for the machines, and their installation by dpkg."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.emulator import CODE, CODE_DISK_SIZE
from tests.lab.errors import LabError
from tests.lab.images.chroot import inside
from tests.lab.install import IMAGE
from tests.package.chroot import reversioned
from tests.setup.cache import clear_old, digest, files_digest, identity, product
from tests.setup.command import run

if TYPE_CHECKING:
    from tests.lab.images.buildroot import BuildRoot
    from tests.lab.machine import Machine

DIST = Path(__file__).parents[2] / "dist"
# Dependencies of the package that are not installed in the guests.
FROM_DEBIAN = ("python3-systemd",)
INSTALL = f"""
mkdir -p /run/lab-code
mountpoint -q /run/lab-code || mount -o ro /dev/disk/by-id/virtio-{CODE} /run/lab-code
dpkg --force-unsafe-io -i /run/lab-code/"$1"/*.deb
"""
FIRST, NEWER = "first", "newer"
NEWER_VERSION = "99.0"
DPKG_TIMEOUT_S = 900


def newest_package() -> Path:
    """The newest package in dist/."""
    packages = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        raise LabError(f"{DIST} has no package: run `make deb`")
    return packages[-1]


def disk(buildroot: BuildRoot) -> Path:
    """The image with the package, its dependencies, and a newer version of the package."""
    package = newest_package()

    def build(draft: Path) -> None:
        first, newer = draft / "files" / FIRST, draft / "files" / NEWER
        for folder in (first, newer):
            folder.mkdir(parents=True)
        shutil.copy(package, first)
        fetch = ["sh", "-c", 'cd /build && exec apt-get -q download "$@"', "sh", *FROM_DEBIAN]
        inside(buildroot.root, first, fetch)
        reversioned(package, NEWER_VERSION, newer)
        run(["mke2fs", "-q", "-t", "ext4", "-d", first.parent, draft / IMAGE, CODE_DISK_SIZE])

    parts = (files_digest(package.parent, package.name), FROM_DEBIAN, NEWER_VERSION)
    key = digest(identity(buildroot.folder), *parts)
    place = product("package", key, build)
    clear_old("package", keep=2)
    return place / IMAGE


def install(machine: Machine, which: str = FIRST) -> float:
    """Install the package, or upgrade it to the newer version; return the seconds."""
    command = ("sh", "-euc", INSTALL, "install", which)
    return machine.run(*command, timeout_s=DPKG_TIMEOUT_S).seconds


def purge(machine: Machine) -> None:
    """Remove the package with its configuration and state."""
    machine.run("dpkg", "--purge", "zfsilo", timeout_s=DPKG_TIMEOUT_S)
