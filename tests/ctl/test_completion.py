"""The completion scripts are scripts, and complete what they should."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl.commands import completion

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = {
    "volume list -q": "data logs",
    "-H far volume list -q": "remote",
    "host list -q": "take",
    "server list -q": "give far",
    "operation list -q --running": "01abc",
    "token list -q": "01tok",
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_can_be_read(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed here")
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell]())
    subprocess.run([shell, "-n", script], check=True)


def complete(tmp_path: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of these words."""
    tool = tmp_path / "zfsiloctl"
    cases = "\n".join(f"'{line}') printf '%s\\n' {names} ;;" for line, names in ANSWERS.items())
    tool.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n')
    tool.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in ("zfsiloctl", *words))
    script = (
        f"{completion.bash()}\nset -u\nPATH={tmp_path}:$PATH\nCOMP_WORDS=({typed})\n"
        f"COMP_CWORD={len(words)}\n_zfsiloctl\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""
    return done.stdout.split()


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
        (["token", "revoke", ""], ["01tok"]),
        (["token", "create", "--role", "c"], ["controller"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["capacity", "--js"], ["--json"]),
        (["volume", "create", ""], []),
        (["volume", "create", "-o", "a=b", "x", "1G", "--host", ""], ["take"]),
        (["volume", "show", "--timeout", ""], []),
    ],
)
def test_bash_offers(tmp_path: Path, typed: list[str], offered: list[str]) -> None:
    assert complete(tmp_path, *typed) == offered


def test_bash_offers_files(tmp_path: Path) -> None:
    (tmp_path / "give.join").touch()
    assert complete(tmp_path, "join", "gi") == ["give.join"]
    assert complete(tmp_path, "volume", "mount", "data", "gi") == ["give.join"]


def test_fish_knows_every_option() -> None:
    script = completion.fish()
    assert "-n '__zfsiloctl_in -1 volume create' -l dry-run" in script
    assert "-n 'true' -s H -l remote -x -a '(zfsiloctl server list -q 2>/dev/null)'" in script
    assert "-n '__zfsiloctl_in 0 volume' -a publish" in script
    assert "-n '__zfsiloctl_in 1 volume publish' -a '(zfsiloctl host list -q" in script
    for line in script.splitlines():
        if line.startswith("complete"):
            assert line.replace("\\'", "").count("'") % 2 == 0
