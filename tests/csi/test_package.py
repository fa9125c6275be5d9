"""The plugin's dependencies, and the values that it shares with zfsilod."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import zfsilo_csi
from zfsilo_csi.volume_capabilities import MOUNT_FLAGS

import zfsilod
from zfsilod.model.mount_options import OPTIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "csi/zfsilo_csi"
IMPORTS = {  # import name: distributions
    "google": "googleapis-common-protos protobuf",
    "grpc": "grpcio",
    "msgspec": "msgspec",
    "prometheus_client": "prometheus-client",
}


def test_the_image_has_all_imported_packages() -> None:
    text = (ROOT / "csi/requirements.txt").read_text().splitlines()
    lines = {line for line in text if not line.startswith("#")}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert lines <= set(known)
    names = {re.split(r"[=><]", line)[0] for line in lines}
    assert names == {name for value in IMPORTS.values() for name in value.split()}
    assert imported() == {"csi", "zfsilo", "zfsilo_csi", *IMPORTS}


def imported() -> set[str]:
    """Return the packages outside the standard library that the plugin imports."""
    packages: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add(str(node.module).partition(".")[0])
    return packages - set(sys.stdlib_module_names)


def test_both_are_released_together() -> None:
    assert zfsilo_csi.__version__ == zfsilod.__version__


def test_mount_flags_equal_those_of_zfsilod() -> None:
    assert MOUNT_FLAGS == OPTIONS
