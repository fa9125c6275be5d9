"""The page of Cockpit, built with npm packages from the sources in units/cockpit."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from tests.setup import apt
from tests.setup.cache import clear_old, digest, files_digest, product
from tests.setup.command import run
from tests.setup.say import stage

SOURCES = Path(__file__).parents[2] / "units/cockpit"
KEPT = 4


def prepare() -> Path:
    """The folder of the built page."""
    packages = modules()
    key = digest(packages.name, files_digest(SOURCES, "*", "src/*"))

    def build(draft: Path) -> None:
        sources = draft / "sources"
        shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("node_modules"))
        (sources / "node_modules").symlink_to(packages / "node_modules")
        with stage("building the page of Cockpit"):
            run(["node", "node_modules/typescript/bin/tsc"], cwd=sources)
            run(["node", "build.mjs", draft / "page"], cwd=sources)
        shutil.rmtree(sources)

    built = product("cockpit-page", key, build)
    clear_old("cockpit-page", KEPT)
    return built / "page"


def modules() -> Path:
    """The folder with the node_modules that package-lock.json pins."""
    if shutil.which("npm") is None:
        apt.install(("nodejs", "npm"), reason="building the page of Cockpit")
    key = digest(files_digest(SOURCES, "package*.json"), platform.machine())

    def build(draft: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, draft)
        with stage("npm packages of the page of Cockpit"):
            run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=draft)

    return product("cockpit-modules", key, build)
