"""Cockpit and Chromium, for tests of the page in a real browser."""

from __future__ import annotations

from pathlib import Path

from tests.setup import apt

PACKAGES = (
    "chromium",
    "chromium-driver",
    "cockpit-bridge",
    "cockpit-system",
    "cockpit-ws",
    "pngquant",
)
PROGRAM = Path("/usr/bin/chromedriver")


def prepare() -> Path:
    """Install what is missing and return the path of the browser's driver."""
    apt.install(PACKAGES, reason="tests of the page of Cockpit")
    return PROGRAM
