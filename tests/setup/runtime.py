"""The Python environment of `make try`: the requirements of zfsilo, without those of its tests."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from tests.setup import venv
from tests.setup.cache import cache_directory, product

if TYPE_CHECKING:
    from pathlib import Path

STUBS = "grpcio-tools"  # compiles proto/


def requirements(project: Path) -> list[str]:
    """What pyproject.toml asks for to run zfsilo in a clone."""
    described = tomllib.loads(project.read_text())["project"]
    tools = described["optional-dependencies"]["dev"]
    return [*described["dependencies"], *(line for line in tools if line.startswith(STUBS))]


def prepare(project: Path = venv.PROJECT) -> Path:
    """The environment of developers if it is there, else a smaller one, made if need be."""
    venv.check_python()
    full = cache_directory() / f"venv-{venv.key(venv.requirements(project))}"
    if full.exists():
        return full
    wanted = requirements(project)
    return product("runtime", venv.key(wanted), lambda draft: venv.build(draft, wanted))
