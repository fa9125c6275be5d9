"""A daemon that is stopped while it waits for the host exits at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.playground import simulated_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service_fixture import ServiceFixture


async def test_a_cancellation_is_kept_when_the_result_is_there_too(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[int] = loop.create_future()
    monkeypatch.setattr(loop, "run_in_executor", lambda *_: result)
    task = asyncio.create_task(fixture.service.context.look(lambda: 1))
    await asyncio.sleep(0)
    result.set_result(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_daemon_stops_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    with simulated_daemon(tmp_path):
        pass
