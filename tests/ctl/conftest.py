"""Fixtures: a zfsilod in a thread on a fake host, and zfsiloctl connected to it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

runpy.run_path(str(Path(__file__).parents[2] / "proto/build.py"))["generate"]()

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ctl.fake_tools import FakeTools
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


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    """A host that has systemctl only, with its directories below a temporary one."""
    from tests.ctl.fake_tools import FakeTools
    from zfsilod.host.run import TOOLS_PATH_VARIABLE

    made = FakeTools(tmp_path)
    monkeypatch.setenv(TOOLS_PATH_VARIABLE, str(made.folder))
    monkeypatch.delenv("ZFSILO_SIMULATE", raising=False)
    monkeypatch.setattr("zfsilod.ctl.paths.etc", lambda: tmp_path / "etc")
    monkeypatch.setattr("zfsilod.ctl.paths.state", lambda: tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The directory of a simulation without a daemon."""
    monkeypatch.setenv("ZFSILO_SIMULATE", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
