"""The lab: the emulator and the image tools of this machine, then the images of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.images.build import images
from tests.setup import apt

if TYPE_CHECKING:
    from pathlib import Path

# The guest's kernel crashes on the emulator of Debian 12; there backports have a newer one.
EMULATOR = ("qemu-system-x86", "qemu-utils")
TOOLS = ("mmdebstrap", "e2fsprogs", "util-linux", "mount", "debian-archive-keyring")


def prepare() -> Path:
    """Install what is missing, build the guest, and return the folder of its images."""
    apt.install(TOOLS, reason="building the lab's images")
    backports = apt.machine_release() == apt.BACKPORTS_RELEASE
    suite = f"{apt.BACKPORTS_RELEASE}-backports" if backports else None
    apt.install(EMULATOR, reason="the lab", suite=suite)
    return images().folder
