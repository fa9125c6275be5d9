"""Every filesystem has an entry in each table of docs/architecture.md, "To add a filesystem"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zfsilo_csi import volume_capabilities

from zfsilod.ctl import command_table
from zfsilod.host import block, mount, run
from zfsilod.model.host_facts import FILESYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
TABLES: dict[str, Iterable[str]] = {
    "block.MAKE": block.MAKE,
    "block.CHECK": block.CHECK,
    "block.REPAIR": block.REPAIR,
    "mount.NO_REPLAY": mount.NO_REPLAY,
    "command_table.FS_TYPES": command_table.FS_TYPES,
    "volume_capabilities.FILESYSTEMS": [kind for kind in volume_capabilities.FILESYSTEMS if kind],
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_every_filesystem(table: str) -> None:
    assert set(TABLES[table]) == set(FILESYSTEMS)


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_the_tools_of_a_filesystem_have_a_package(filesystem: str) -> None:
    control = (ROOT / "units/debian/control").read_text()
    for tool in (block.MAKE[filesystem][0], block.CHECK[filesystem][0]):
        assert re.search(rf"\b{run.TOOLS[tool]}\b", control)


@pytest.mark.parametrize("option", ["fsType", "supportedFilesystems"])
def test_the_nixos_module_has_every_filesystem(option: str) -> None:
    module = (ROOT / "nix/module.nix").read_text()
    lists = re.findall(rf"{option} = [^\[;]*\[([^\]]*)\]", module)
    assert set(FILESYSTEMS) in [set(re.findall(r'"(\w+)"', listed)) for listed in lists]


@pytest.mark.parametrize("contract", ["proto/zfsilo/v1/volume.proto", "dbus/org.zfsilo1.xml"])
def test_the_contracts_name_every_filesystem(contract: str) -> None:
    assert " or ".join(FILESYSTEMS) in (ROOT / contract).read_text()
