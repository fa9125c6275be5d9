"""Compiles the ZFS modules for the guest's kernel: minutes, once per kernel version."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.lab.images.chroot import inside
from tests.setup.cache import digest, product
from tests.setup.command import CommandError
from tests.setup.say import stage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.images.buildroot import BuildRoot

TREE = ["--dkmstree", "/build/dkms"]
# Modules come compressed or plain, depending on the release.
COLLECT = """
cd "$1"
for module in *.ko*; do
    case "$module" in *.xz) xz -d "$module" ;; esac
done
mkdir -p /build/extra
for module in *.ko; do
    strip --strip-debug -o "/build/extra/$module" "$module"
done
rm -rf /build/dkms
"""
RECIPE = 1


NAME = "zfs-modules"


def key(buildroot: BuildRoot) -> str:
    """The key of the modules for the build root's kernel."""
    return f"{buildroot.zfs}-{buildroot.kernel}-{digest(RECIPE)}"


def zfs_modules(buildroot: BuildRoot) -> Path:
    """The folder that holds the .ko files for the build root's kernel."""
    return product(NAME, key(buildroot), lambda draft: build(draft, buildroot)) / "extra"


def build(draft: Path, buildroot: BuildRoot) -> None:
    """Run dkms in the build root and keep the stripped modules."""
    module = ["-m", "zfs", "-v", buildroot.zfs, *TREE]
    jobs = str(os.cpu_count() or 1)
    (draft / "dkms").mkdir()
    with stage(f"compiling ZFS {buildroot.zfs} for Linux {buildroot.kernel} (6 to 15 minutes)"):
        inside(buildroot.root, draft, ["dkms", "add", *module])
        try:
            inside(
                buildroot.root,
                draft,
                ["dkms", "build", *module, "-k", buildroot.kernel, "-j", jobs],
            )
        except CommandError as error:
            raise CommandError(f"{error}\n{log_tail(draft, buildroot.zfs)}") from error
        built = f"/build/dkms/zfs/{buildroot.zfs}/{buildroot.kernel}/x86_64/module"
        inside(buildroot.root, draft, ["sh", "-euc", COLLECT, "sh", built])


def log_tail(draft: Path, version: str) -> str:
    """The end of the compiler's log."""
    log = draft / "dkms/zfs" / version / "build/make.log"
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:]) if log.exists() else ""
