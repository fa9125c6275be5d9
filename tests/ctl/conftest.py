"""Fixtures: a zfsilod in a thread on a fake host, and zfsiloctl connected to it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

runpy.run_path(str(Path(__file__).parents[2] / "proto/build.py"))["generate"]()

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.shell import Daemon, Shell


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A zfsilod that is a server named `give` and its own client `take`."""
    from tests.ctl.shell import running

    with running(tmp_path_factory.mktemp("zfsilo")) as started:
        yield started


@pytest.fixture
def ctl(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """`ctl("volume list")` runs zfsiloctl in this process."""
    from tests.ctl.shell import Shell

    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_COLOR", "1")
    yield Shell(daemon, capsys)
    daemon.calm()
