"""Waiting for events, for the lock of the host, and for the device of a zvol."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import ScriptedRunner
from zfsilod.host import zvol_device
from zfsilod.host.events import wait_for
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_result_is_returned_at_once() -> None:
    assert wait_for(lambda: "it", 0) == "it"


def test_a_later_result_is_returned_and_none_after_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "link"
    threading.Timer(0.2, path.touch).start()
    started = time.monotonic()
    assert wait_for(path.exists, 10)
    assert time.monotonic() - started < 2
    assert wait_for(lambda: (tmp_path / "never").exists(), 0.1) is None


def test_the_lock_is_exclusive_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with host_lock(path, 1):
        other = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX)
    before = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="has held the lock"), host_lock(path, 0.3):
        pytest.fail("the lock was granted twice")
    assert 0.2 < time.monotonic() - started < 2
    assert signal.getsignal(signal.SIGALRM) is before
    threading.Timer(0.2, os.close, (other,)).start()
    with host_lock(path, 10):
        pass


def test_a_zvol_device_is_that_of_its_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zvol_device, "dataset_of", lambda _path: "tank/v1")
    assert zvol_device.device(ScriptedRunner(), "tank/v1") == "/dev/zvol/tank/v1"
    monkeypatch.setattr(zvol_device, "DEADLINE_S", 0.2)
    with pytest.raises(Unavailable, match="did not appear"):
        zvol_device.device(ScriptedRunner(), "tank/other")


def test_other_devices_have_no_dataset(tmp_path: Path) -> None:
    assert zvol_device.dataset_of("/dev/null") == ""
    assert zvol_device.dataset_of(str(tmp_path / "missing")) == ""
