"""The Debian package of Cockpit's page in a plain Debian: what Cockpit makes of it, and its end."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.package.chroot import Chroot
from tests.package.test_debian import DIST, RELEASES
from tests.setup.command import run

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "usr/share/cockpit/zfsilo"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root"),
    pytest.mark.timeout(300),  # the first run installs both releases
]


def newest(name: str) -> Path:
    """Return the newest package of a name in dist/."""
    packages = sorted(DIST.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    assert packages, f"dist/ has no package {name}: run `make deb`"
    return packages[-1]


@pytest.mark.parametrize("release", RELEASES)
def test_cockpit_lists_the_page_while_it_is_installed(release: str, tmp_path: Path) -> None:
    debian = Chroot(release, tmp_path)
    before = debian.files()
    debian.apt("install", newest("zfsilo"), newest("cockpit-zfsilo"))
    listed = debian.run("cockpit-bridge", "--packages").splitlines()
    (line,) = (line for line in listed if "zfsilo" in line)
    assert line.split()[-1].endswith(f"/{PAGE}")
    page = debian.root / PAGE
    names = {path.name for path in page.iterdir()}
    assert {"index.html", "index.js.gz", "index.css.gz", "manifest.json", "LICENSES.txt"} <= names
    assert json.loads((page / "manifest.json").read_text())["menu"]["index"]["label"]
    debian.apt("purge", "cockpit-zfsilo", "zfsilo")
    assert debian.files() - before == set()


def test_lintian_finds_no_error() -> None:
    run(["lintian", "--allow-root", "--fail-on", "error", newest("cockpit-zfsilo")])
