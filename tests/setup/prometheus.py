"""Debian's Prometheus and promtool, unpacked: the package would start a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.setup import apt
from tests.setup.cache import digest, product
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "prometheus"


def prepare() -> Path:
    """The folder of the two programs."""
    sources = apt.machine_sources_text()

    def build(draft: Path) -> None:
        with stage("downloading Prometheus"):
            package = apt.download(PACKAGE, draft)
        run(["dpkg-deb", "-x", package, draft])
        package.unlink()

    return product("prometheus", digest(sources), build) / "usr/bin"
