"""Debian packages, unpacked on a disk for the machines: dpkg is very slow under emulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.emulator import CODE, CODE_DISK_SIZE
from tests.lab.images.chroot import inside
from tests.lab.install import IMAGE
from tests.setup.cache import clear_old, digest, identity, product
from tests.setup.command import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.images.buildroot import BuildRoot
    from tests.lab.machine import Machine

FETCH = """
cd /build
apt-get -q -s --no-install-recommends install "$@" | sed -n 's/^Inst \\([^ ]*\\).*/\\1/p' > names
xargs apt-get -q download < names
mkdir tree
for package in *.deb; do dpkg-deb -x "$package" tree; done
"""
COPY = f"""
mount -o ro /dev/disk/by-id/virtio-{CODE} /mnt
cp -a /mnt/etc /mnt/usr /
umount /mnt
ldconfig
udevadm control --reload
"""


def disk(buildroot: BuildRoot, *packages: str) -> Path:
    """The image with the files of packages and of their dependencies."""

    def build(draft: Path) -> None:
        inside(buildroot.root, draft, ["sh", "-euc", FETCH, "sh", *packages])
        run(["mke2fs", "-q", "-t", "ext4", "-d", draft / "tree", draft / IMAGE, CODE_DISK_SIZE])

    place = product("debian-tools", digest(identity(buildroot.folder), packages, FETCH), build)
    clear_old("debian-tools", keep=2)
    return place / IMAGE


def install(machine: Machine) -> None:
    """Copy the files into the root file system; no maintainer script runs."""
    machine.sh(COPY, timeout_s=300)
