"""The linters of .pre-commit-config.yaml, except ruff and mypy, which `make lint` runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABBED = ("Makefile", ".go", "go.mod")  # indented by tabs
CONFIG = (ROOT / ".pre-commit-config.yaml").read_text()
SHELL = re.compile(rb"#!\s*/\S*\b(?:ba|da)?sh\b")
XML = re.compile(rb"<\?xml ")


@cache
def files() -> tuple[str, ...]:
    """Return the files of the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def hook(name: str) -> tuple[str, re.Pattern[str]]:
    """Return the command of a hook, and which files it is for."""
    fields = re.search(rf"- id: {name}\n(?:.*\n)*?.*entry: (.*)\n +files: (.*)\n", CONFIG)
    assert fields is not None
    return fields[1], re.compile(fields[2].strip('"'))


@pytest.mark.parametrize("name", ["codespell", "shellcheck", "xmllint"])
def test_linter(name: str) -> None:
    command, pattern = hook(name)
    argv = shlex.split(command)
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed here")
    chosen = [path for path in files() if pattern.search(path)]
    done = subprocess.run(
        [*argv, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "start"), [("shellcheck", SHELL), ("xmllint", XML)])
def test_a_linter_sees_every_file_of_its_kind(name: str, start: re.Pattern[bytes]) -> None:
    _command, pattern = hook(name)
    of_kind = {path for path in files() if start.match((ROOT / path).read_bytes())}
    assert {path for path in files() if pattern.search(path)} == of_kind


def test_hooks_are_local() -> None:
    assert re.findall(r"repo: (.*)", CONFIG) == ["local"]
    assert set(re.findall(r"language: (.*)", CONFIG)) == {"system"}
    assert "://" not in CONFIG


def test_files_are_as_the_editorconfig_says() -> None:
    wrong = [name for name in files() if is_untidy(name, (ROOT / name).read_bytes())]
    assert wrong == []


def is_untidy(name: str, data: bytes) -> bool:
    """Whether a text file has line ends, white space or tabs that .editorconfig excludes."""
    if b"\0" in data or not data:
        return False
    untidy = b"\r" in data or data.endswith(b"\n\n") or not data.endswith(b"\n")
    return (
        untidy
        or bool(re.search(rb"[ \t]\n", data))
        or (b"\t" in data and not name.endswith(TABBED))
    )
