"""Paths of the images of a release, and the order in which they are built."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.images import modules, recipe, rootfs
from tests.lab.images.buildroot import BuildRoot, buildroot
from tests.lab.images.chroot import guest_sources
from tests.lab.images.recipe import Release, chosen_release
from tests.setup.cache import digest, files_digest, product

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Images:
    """The files that a machine boots from, and the root that builds software for it."""

    folder: Path
    release: Release
    buildroot: BuildRoot

    @property
    def root(self) -> Path:
        """The root file system; machines write to overlays, never to it."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initramfs."""
        return self.folder / "initrd"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens root's account."""
        return self.folder / "id_ed25519"


def images() -> Images:
    """The images of the chosen release; missing ones are built first."""
    release = chosen_release()
    build_root = buildroot(release)
    settings = (
        recipe.GUEST_PACKAGES,
        recipe.DPKG_OPTIONS,
        recipe.BOOT_MODULES,
        recipe.ENABLED_UNITS,
        recipe.DISABLED_UNITS,
        recipe.MASKED_UNITS,
        recipe.MASKED_GENERATORS,
        recipe.TEXT_FILES,
        recipe.MKE2FS_OPTIONS,
        recipe.ROOT_SIZE,
    )
    key = digest(
        settings,
        guest_sources(release.name),
        files_digest(recipe.GUEST_FILES, "*"),
        build_root.folder.name,
        f"{modules.NAME}-{modules.key(build_root)}",
    )
    with ThreadPoolExecutor(1) as beside:
        compiled = beside.submit(modules.zfs_modules, build_root)  # while packages are installed
        folder = product(
            f"guest-{release.name}",
            key,
            lambda draft: rootfs.build(draft, release, build_root, compiled.result),
        )
        compiled.result()
    return Images(folder, release, build_root)
