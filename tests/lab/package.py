"""The Debian package on a disk for the machines, and a newer one, to be installed there by dpkg."""

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
# What the package depends on and the guests do not have.
FROM_DEBIAN = ("python3-systemd",)
INSTALL = f"""
mkdir -p /run/lab-code
mountpoint -q /run/lab-code || mount -o ro /dev/disk/by-id/virtio-{CODE} /run/lab-code
dpkg --force-unsafe-io -i /run/lab-code/"$1"/*.deb
"""
FIRST, NEWER = "first", "newer"
NEWER_VERSION = "99.0"
DPKG_TIMEOUT_S = 900


def package() -> Path:
    """The package that `make deb` made last."""
    made = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    if not made:
        raise LabError("there is no package: make deb")
    return made[-1]


def disk(buildroot: BuildRoot) -> Path:
    """An image with the package, what it depends on, and the same package as a newer version."""
    ours = package()

    def build(draft: Path) -> None:
        first, newer = draft / "files" / FIRST, draft / "files" / NEWER
        for folder in (first, newer):
            folder.mkdir(parents=True)
        shutil.copy(ours, first)
        fetch = ["sh", "-c", 'cd /build && exec apt-get -q download "$@"', "sh", *FROM_DEBIAN]
        inside(buildroot.root, first, fetch)
        reversioned(ours, NEWER_VERSION, newer)
        run(["mke2fs", "-q", "-t", "ext4", "-d", first.parent, draft / IMAGE, CODE_DISK_SIZE])

    parts = (files_digest(ours.parent, ours.name), FROM_DEBIAN, NEWER_VERSION)
    key = digest(identity(buildroot.folder), *parts)
    place = product("package", key, build)
    clear_old("package", keep=2)
    return place / IMAGE


def install(machine: Machine, which: str = FIRST) -> float:
    """Install the package, or upgrade it to the newer one; return the seconds that it took."""
    command = ("sh", "-euc", INSTALL, "install", which)
    return machine.run(*command, timeout_s=DPKG_TIMEOUT_S).seconds


def purge(machine: Machine) -> None:
    """Remove the package with its configuration and its state."""
    machine.run("dpkg", "--purge", "zfsilo", timeout_s=DPKG_TIMEOUT_S)
