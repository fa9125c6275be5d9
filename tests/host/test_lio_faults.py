"""Errors of configfs: each errno at each change, and a probe never takes an error for absence."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from tests.host.doubles import FakeConfigfs, ScriptedRunner
from tests.host.test_lio import STEPS, facts
from zfsilod.host.configfs import ERRORS, Configfs
from zfsilod.host.lio import RealLio
from zfsilod.model.errors import CommandFailed, ZfsiloError

if TYPE_CHECKING:
    from collections.abc import Callable

ERRNOS = (errno.EBUSY, errno.EEXIST, errno.ENOENT, errno.EPERM, errno.ENOSPC)
SYSCALLS: dict[str, tuple[object, str]] = {
    "make": (os, "mkdir"),
    "remove": (os, "rmdir"),
    "link": (os, "symlink"),
    "unlink": (os, "unlink"),
    "write": (os, "write"),
}
MOST_CALLS = 40


class FailingConfigfs(FakeConfigfs):
    """Fails the system call of the n-th change of one kind with an errno."""

    kind = ""
    left = 0  # changes of this kind until one fails
    number = 0

    def make(self, path: str) -> None:
        self._change("make", path)

    def remove(self, path: str) -> None:
        self._change("remove", path)

    def link(self, path: str, to: str) -> None:
        self._change("link", path, to)

    def unlink(self, path: str) -> None:
        self._change("unlink", path)

    def write(self, path: str, value: str) -> None:
        self._change("write", path, value)

    def _change(self, kind: str, *args: str) -> None:
        self.left -= kind == self.kind
        if kind != self.kind or self.left:
            getattr(super(), kind)(*args)
            return
        if self.number == errno.ENOENT and kind in ("remove", "unlink"):
            getattr(super(), kind)(*args)  # another process has removed it
        failure = OSError(self.number, os.strerror(self.number))
        owner, call = SYSCALLS[kind]
        with mock.patch.object(owner, call, side_effect=failure):
            getattr(Configfs, kind)(self, *args)


@pytest.fixture
def fs(tmp_path: Path) -> FailingConfigfs:
    return FailingConfigfs(tmp_path / "target")


@pytest.fixture
def lio(fs: FailingConfigfs, monkeypatch: pytest.MonkeyPatch) -> RealLio:
    monkeypatch.setattr("zfsilod.host.lio.check_unused", lambda _path, _name: None)
    return RealLio(ScriptedRunner(), lambda dataset: f"/dev/zvol/{dataset}", fs)


def failed(fs: FailingConfigfs, n: int, act: Callable[[], None]) -> bool:
    """Act while the n-th change fails, with its typed error. Tell whether there is an n-th."""
    fs.left = n
    with contextlib.suppress(ERRORS.get(fs.number, CommandFailed)):
        act()
    met = fs.left <= 0
    fs.left = 0
    return met


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", SYSCALLS)
def test_every_change_fails_once(lio: RealLio, fs: FailingConfigfs, kind: str, number: int) -> None:
    """After a failure the same call, repeated, completes the step; undo does too."""
    fs.kind, fs.number, met = kind, number, 0
    for name in STEPS:
        probe, do, undo = facts(lio)[name]
        for act, back, wanted in ((do, undo, True), (undo, do, False)):
            before = fs.tree()
            for n in range(1, MOST_CALLS):
                if not failed(fs, n, act):
                    break
                met += 1
                assert probe() in (True, False)
                act()
                assert probe() is wanted
                back()
                assert fs.tree() == before
        do()  # the next step needs this one
    assert met


@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_failed_read_is_never_absence(
    lio: RealLio, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for name in STEPS:
        facts(lio)[name][1]()

    def fail(*_args: object, **_kwargs: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(os, "scandir", fail)
    for name in STEPS:
        probe, _do, _undo = facts(lio)[name]
        try:
            assert probe() is True, f"{name} seems to be absent"
        except ZfsiloError:
            continue
