"""Shells and linters of Debian that unit tests run; tests skip those that are missing."""

from __future__ import annotations

import os

from tests.setup import apt
from tests.setup.say import say

PACKAGES = ("fish", "libxml2-utils", "man-db", "zsh")


def prepare() -> str:
    """Install what is missing, as root; return what is there."""
    missing = set(PACKAGES) - apt.installed_packages()
    if missing and os.geteuid() != 0:
        say(f"tests that need these packages are skipped: {' '.join(sorted(missing))}")
    else:
        apt.install(PACKAGES, reason="unit tests")
        missing = set()
    return " ".join(sorted(set(PACKAGES) - missing))
