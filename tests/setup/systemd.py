"""System packages for the tests with a real systemd in namespaces."""

from __future__ import annotations

from pathlib import Path

from tests.setup import apt

PACKAGES = (
    "dbus",
    "e2fsprogs",
    "iproute2",
    "mount",
    "polkitd",
    "systemd",
    "util-linux",
    "xfsprogs",
)
PROGRAM = Path("/lib/systemd/systemd")


def prepare() -> Path:
    """Install what is missing and return the path of systemd."""
    apt.install(PACKAGES, reason="tests with a real systemd")
    return PROGRAM
