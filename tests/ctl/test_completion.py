"""Completions of a command line by bash, zsh and fish: each shell runs its generated script."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.ctl.shells import OFFERS, complete
from zfsilod.ctl.commands import completion

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = {
    "volume list -q": "data logs",
    "-H far volume list -q": "remote",
    "host list -q": "take",
    "server list -q": "give far",
    "operation list -q --running": "01abc",
    "operation list -q": "01abc 01old",
    "-H give --timeout 3 volume list -q": "of-give",
    "-H far --timeout 3 volume list -q": "of-far",
    "orphan list -q": "zvol/tank/stray export/old",
    "volume list --json": """'"name": "volumes/data",' '    "path": "/srv/data"'""",
    "token list -q": "01tok",
}


@pytest.fixture(params=OFFERS)
def shell(request: pytest.FixtureRequest) -> str:
    """The name of an installed shell."""
    name: str = request.param
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed here")
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a zfsiloctl that answers what completion asks."""
    cases = "\n".join(f"'{line}') printf '%s\\n' {names} ;;" for line, names in ANSWERS.items())
    tool = tmp_path / "zfsiloctl"
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    tool.chmod(0o755)
    return tmp_path


def test_the_script_can_be_read(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell]())
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["vol"], ["volume"]),
        (["volume", "st"], ["stats", "stage"]),
        (["volume", "show", ""], ["data", "logs"]),
        (["volume", "show", "d"], ["data"]),
        (["volume", "publish", "data", ""], ["take"]),
        (["volume", "publish", "data", "take", ""], []),
        (["-H", "far", "volume", "show", ""], ["remote"]),
        (["-H", ""], ["give", "far"]),
        (["volume", "list", "-H", "f"], ["far"]),
        (["volume", "list", "--state", "m"], ["mounted"]),
        (["volume", "create", "x", "1G", "--dry"], ["--dry-run"]),
        (["volume", "stage", "data", "--fs-type", ""], ["ext4", "xfs"]),
        (["up", ""], ["data", "logs"]),
        (["operation", "wait", ""], ["01abc"]),
        (["operation", "show", "01"], ["01abc", "01old"]),
        (["volume", "attach", "of"], ["of-give", "of-far"]),
        (["volume", "connect", "of-f"], ["of-far"]),
        (["volume", "unmount", "data", ""], ["/srv/data"]),
        (["adopt", ""], ["tank/stray"]),
        (["orphan", "remove", ""], ["zvol/tank/stray", "export/old"]),
        (["token", "revoke", ""], ["01tok"]),
        (["token", "create", "--role", "c"], ["controller"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["capacity", "--js"], ["--json"]),
        (["volume", "create", ""], []),
        (["volume", "create", "-o", "a=b", "x", "1G", "--host", ""], ["take"]),
        (["volume", "show", "--timeout", ""], []),
    ],
)
def test_a_shell_offers(shell: str, folder: Path, typed: list[str], offered: list[str]) -> None:
    assert sorted(complete(shell, folder, *typed)) == sorted(offered)


def test_a_shell_offers_files(shell: str, folder: Path) -> None:
    (folder / "give.join").touch()
    assert complete(shell, folder, "join", "gi") == ["give.join"]
    assert complete(shell, folder, "volume", "mount", "data", "gi") == ["give.join"]


def test_fish_knows_every_option() -> None:
    script = completion.fish()
    assert "-n '__zfsiloctl_in -1 volume create' -l dry-run" in script
    assert "-n 'true' -s H -l remote -x -a '(zfsiloctl server list -q 2>/dev/null)'" in script
    assert "-n '__zfsiloctl_in 0 volume' -a publish" in script
    assert "-n '__zfsiloctl_in 1 volume publish' -a '(__zfsiloctl_ask host list -q" in script
    for line in script.splitlines():
        if line.startswith("complete"):
            assert line.replace("\\'", "").count("'") % 2 == 0
