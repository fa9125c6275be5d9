"""The Debian package on a disk for the machines, to be installed there as on any Debian."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.emulator import CODE, CODE_DISK_SIZE
from tests.lab.errors import LabError
from tests.lab.images.chroot import inside
from tests.lab.install import IMAGE
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
dpkg --force-unsafe-io -i /run/lab-code/*.deb
"""


def package() -> Path:
    """The package that `make deb` made last."""
    made = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    if not made:
        raise LabError("there is no package: make deb")
    return made[-1]


def disk(buildroot: BuildRoot) -> Path:
    """An image with the package and what it depends on."""
    ours = package()

    def build(draft: Path) -> None:
        files = draft / "files"
        files.mkdir()
        shutil.copy(ours, files)
        fetch = ["sh", "-c", 'cd /build && exec apt-get -q download "$@"', "sh", *FROM_DEBIAN]
        inside(buildroot.root, files, fetch)
        run(["mke2fs", "-q", "-t", "ext4", "-d", files, draft / IMAGE, CODE_DISK_SIZE])

    key = digest(identity(buildroot.folder), files_digest(ours.parent, ours.name), FROM_DEBIAN)
    place = product("package", key, build)
    clear_old("package", keep=2)
    return place / IMAGE


def install(machine: Machine) -> None:
    """Install the package, or install it again: an upgrade to the same version."""
    machine.sh(INSTALL, timeout_s=600)
