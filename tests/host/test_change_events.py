"""The thread that waits for events of the host; what wakes it is tried in tests/systemd."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zfsilod.host.change_events import ChangeEvents

if TYPE_CHECKING:
    import pytest


def test_it_ends_without_events() -> None:
    woken = threading.Event()
    events = ChangeEvents(woken.set)
    events.close()


def test_a_failing_socket_leaves_the_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("socket.socket.bind", refuse)
    ChangeEvents(lambda: None).close()
