"""The lab: the emulator and the image tools of this machine, then the images of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.images.build import images
from tests.lab.images.recipe import chosen_release
from tests.setup import apt
from tests.setup.cache import cache_directory
from tests.setup.say import say

if TYPE_CHECKING:
    from pathlib import Path

# The guest's kernel crashes on the emulator of Debian 12; there backports have a newer one.
EMULATOR = ("qemu-system-x86", "qemu-utils")
TOOLS = ("mmdebstrap", "e2fsprogs", "util-linux", "mount", "debian-archive-keyring")


FIRST_RUN = """\
building the machines of the lab, once, for 10 minutes on 2 idle CPUs and up to 30 on busy ones:
setup:   1. a root with a compiler, of 300 MB of packages           1 to 5 minutes
setup:   2. ZFS for the kernel of the machines                      6 to 15 minutes
setup:      and beside it the packages of the machines, 300 MB      2 to 5 minutes
setup:   3. their disk image                                        1 minute
setup: they are kept in {folder}; later runs use them"""


def prepare() -> Path:
    """Install what is missing, build the guest, and return the folder of its images."""
    if not list(cache_directory().glob(f"guest-{chosen_release().name}-*")):
        say(FIRST_RUN.format(folder=cache_directory()))
    apt.install(TOOLS, reason="building the lab's images")
    backports = apt.machine_release() == apt.BACKPORTS_RELEASE
    suite = f"{apt.BACKPORTS_RELEASE}-backports" if backports else None
    apt.install(EMULATOR, reason="the lab", suite=suite)
    return images().folder
