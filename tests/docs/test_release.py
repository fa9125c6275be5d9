"""The version: one in all places, with its section in the changelog; and `make release`."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ROOT
from zfsilod import __version__

if TYPE_CHECKING:
    from pathlib import Path

NEXT = "98.7.6"
CHANGELOG = "CHANGELOG.md"


PLACES: tuple[tuple[str, str], ...] = runpy.run_path(str(ROOT / "docs/release.py"))["PLACES"]


def versions(project: Path) -> dict[str, set[str]]:
    """Return the versions that each file of a project names."""
    named: dict[str, set[str]] = {}
    for name, pattern in PLACES:
        matches = re.findall(pattern, (project / name).read_text())
        named.setdefault(name, set()).update(version for _before, version, _after in matches)
    return named


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with all files that name the version."""
    project = tmp_path / "project"
    for name in {*versions(ROOT), CHANGELOG, "docs/release.py"}:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    git(project, "init", "--quiet")
    git(project, "config", "user.name", "test")
    git(project, "config", "user.email", "test@example.org")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "before")
    return project


def git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_release(project: Path, version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "docs/release.py"), version]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_every_place_has_the_version() -> None:
    named = versions(ROOT)
    assert named == {name: {__version__} for name in named}


def test_the_package_has_the_version() -> None:
    build = (ROOT / "units/debian/build.py").read_text()
    assert 'add_argument("--version", default=__version__)' in build


def test_the_changelog_has_the_version() -> None:
    lines = (ROOT / CHANGELOG).read_text().splitlines()
    sections = [line for line in lines if line.startswith("## ")]
    assert sections[0] == "## [Unreleased]"
    assert sections[1].startswith(f"## [{__version__}] - 20")


def test_a_release_changes_every_place(copy: Path) -> None:
    done = make_release(copy, NEXT)
    assert done.returncode == 0, done.stderr
    named = versions(copy)
    assert named == {name: {NEXT} for name in named}
    text = (copy / CHANGELOG).read_text()
    assert f"## [Unreleased]\n\n## [{NEXT}] - 20" in text
    assert text.count("## [Unreleased]") == 1
    assert git(copy, "tag", "--points-at", "HEAD") == f"v{NEXT}\n"
    assert git(copy, "status", "--porcelain") == ""


def test_a_release_is_refused(copy: Path) -> None:
    assert "expected VERSION=x.y.z" in make_release(copy, "1.0").stderr
    git(copy, "tag", f"v{NEXT}")
    assert f"the tag v{NEXT} exists" in make_release(copy, NEXT).stderr
    changelog = copy / CHANGELOG
    changelog.write_text(changelog.read_text() + "\n")
    assert "the working tree has changes" in make_release(copy, "98.7.7").stderr
    changelog.write_text(f"## [Unreleased]\n\n## [{__version__}] - 2026-11-25\n")
    git(copy, "commit", "--quiet", "--all", "--message", "nothing new")
    assert "has no unreleased changes" in make_release(copy, "98.7.7").stderr
