"""System packages for building and testing the Debian package."""

from __future__ import annotations

from pathlib import Path

from tests.setup import apt

PACKAGES = (
    "binutils",
    "debian-archive-keyring",
    "dpkg-dev",
    "lintian",
    "mmdebstrap",
    "util-linux",
)
PROGRAM = Path("/usr/bin/lintian")


def prepare() -> Path:
    """Install what is missing and return the path of lintian."""
    apt.install(PACKAGES, reason="building and testing the Debian package")
    return PROGRAM
