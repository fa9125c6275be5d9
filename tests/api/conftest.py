"""Generates the protobuf modules; the fixture `front`, a zfsilod behind its gateway."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

runpy.run_path(str(Path(__file__).parents[2] / "proto/build.py"))["generate"]()

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.dbus_fixture import BusFixture
    from tests.api.replica_pair import ReplicaPair
    from tests.api.running import Front


@pytest.fixture(autouse=True)
def _rare_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation is seen at the next call; tests/api/test_first_call.py has the checks."""
    monkeypatch.setattr("zfsilod.api.rpc.revocations.CHECK_S", 60.0)


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A zfsilod that is its own server, on a unix socket and TLS."""
    from tests.api.running import front_of

    async with front_of(tmp_path) as built:
        yield built
    await asyncio.sleep(0.01)  # asyncio closes a generator that grpc dropped in a task of its own
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[BusFixture]:
    """A zfsilod on a private bus."""
    from tests.api.dbus_fixture import on_private_bus

    async with on_private_bus(tmp_path) as built:
        yield built


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[ReplicaPair]:
    """Two servers, and a volume of the first."""
    from tests.api.replica_pair import pair_in
    from tests.api.running import create

    async with pair_in(tmp_path) as built:
        await built.give.root().volumes.CreateVolume(create())
        yield built
