"""The root that compiles for the guest: compiler, kernel headers, sources of the ZFS modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.images.chroot import debootstrap, guest_sources, inside
from tests.lab.images.recipe import BUILD_PACKAGES, Release
from tests.setup.cache import digest, product
from tests.setup.say import stage

if TYPE_CHECKING:
    from pathlib import Path

HEADERS = "linux-headers-"
FLAVOUR = "-cloud-amd64"


@dataclass(frozen=True)
class BuildRoot:
    """A finished build root, with the versions of the kernel and of ZFS that it compiles for."""

    folder: Path
    kernel: str
    zfs: str

    @property
    def root(self) -> Path:
        """The folder to enter."""
        return self.folder / "root"

    @property
    def unpacked_kernel(self) -> Path:
        """The files of the kernel's package; it is never installed, so it has no boot loader."""
        return self.folder / "kernel"

    @property
    def modules(self) -> Path:
        """The modules of the kernel's package, which are below /usr only in newer releases."""
        (folder,) = self.unpacked_kernel.glob(f"**/lib/modules/{self.kernel}")
        return folder


def buildroot(release: Release) -> BuildRoot:
    """The build root of a release, built on first use."""
    key = digest(release.name, BUILD_PACKAGES, guest_sources(release.name))
    folder = product(f"buildroot-{release.name}", key, lambda draft: build(draft, release))
    return BuildRoot(
        folder, (folder / "kernel-version").read_text(), (folder / "zfs-version").read_text()
    )


def build(draft: Path, release: Release) -> None:
    """Install the packages, unpack the kernel and the ZFS sources."""
    root = draft / "root"
    with stage(f"build root: Debian {release.name} with a compiler and kernel headers"):
        debootstrap(root, release.name, BUILD_PACKAGES)
        (headers,) = (root / "usr/src").glob(f"{HEADERS}*{FLAVOUR}")
        kernel = headers.name.removeprefix(HEADERS)
        debs = draft / "debs"
        debs.mkdir()
        fetch = ["sh", "-c", 'cd /build && exec apt-get -q download "$@"', "sh"]
        inside(root, debs, [*fetch, "zfs-dkms", f"linux-image-{kernel}"])
        # Unpacked only: the package's own scripts would build for the machine that runs them.
        inside(root, debs, ["sh", "-c", "dpkg-deb -x /build/zfs-dkms_*.deb /"])
        inside(root, draft, ["sh", "-c", "dpkg-deb -x /build/debs/linux-image-*.deb /build/kernel"])
        (source,) = (root / "usr/src").glob("zfs-*")
    (draft / "kernel-version").write_text(kernel)
    (draft / "zfs-version").write_text(source.name.removeprefix("zfs-"))
