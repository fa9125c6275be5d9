"""The space of the pool when several volumes are created or grown at the same moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.service_fixture import SETTINGS, ServiceFixture, administrator, service_fixture
from zfsilod.host.fake import SIMULATED_BYTES
from zfsilod.model.errors import ResourceExhausted
from zfsilod.requests.volumes import CreateVolume, UpdateVolume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zfsilod.model.pool_space import PoolSpace
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Request

ROOT = administrator("uid 0 (unix)")
GIB = 1 << 30
MOST = SIMULATED_BYTES * 6 // 10 // GIB * GIB  # of the pool: twice this does not fit


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    async with service_fixture(tmp_path, SETTINGS) as running:
        yield running
        running.launcher.gate.set()  # a test that failed may have left workers waiting


def thick(name: str, size: int = MOST) -> CreateVolume:
    return CreateVolume(id=name, capacity_bytes=size, thin=False)


def thin(name: str) -> CreateVolume:
    """Return a volume of which the overcommit limit admits one, not two."""
    size = int(SIMULATED_BYTES * SETTINGS.overcommit) * 6 // 10 // GIB * GIB
    return CreateVolume(id=name, capacity_bytes=size)


def grown(name: str) -> UpdateVolume:
    return UpdateVolume(id=name, mask=("capacity_bytes",), capacity_bytes=MOST)


async def refused(built: ServiceFixture, request: Request[PoolSpace], reason: str) -> None:
    with pytest.raises(ResourceExhausted) as refusal:
        await built.do(request)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (thick("a"), thick("b"), "POOL_FULL"),
        (thin("a"), thin("b"), "OVERCOMMIT"),
        (grown("small"), thick("b"), "POOL_FULL"),
        (thick("a"), grown("small"), "POOL_FULL"),
    ],
    ids=("thick", "thin", "growth-first", "growth-second"),
)
async def test_an_operation_under_way_counts(
    built: ServiceFixture, first: Request[PoolSpace], second: Request[PoolSpace], reason: str
) -> None:
    await built.do(thick("small", GIB))
    built.launcher.gate.clear()
    running = await built.service.submit(first, caller=ROOT)
    await refused(built, second, reason)
    built.launcher.gate.set()
    await built.service.wait(running.id, 10)
    await refused(built, second, reason)


async def test_an_operation_that_ended_since_the_measurement_counts(
    built: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, other_done = asyncio.Event(), asyncio.Event()
    gather = CreateVolume.gather

    async def slow(request: CreateVolume, context: Context, operation_id: str) -> PoolSpace:
        space = await gather(request, context, operation_id)
        if request.id == "late":
            measured.set()
            await other_done.wait()
        return space

    monkeypatch.setattr(CreateVolume, "gather", slow)
    late = asyncio.ensure_future(refused(built, thick("late"), "POOL_FULL"))
    await measured.wait()
    await built.do(thick("early"))
    other_done.set()
    await late


async def test_what_ended_before_the_measurement_counts_once(built: ServiceFixture) -> None:
    third = SIMULATED_BYTES * 3 // 10 // GIB * GIB
    for name in ("a", "b", "c"):
        await built.do(thick(name, third))


async def test_a_refused_or_failed_creation_takes_no_space(built: ServiceFixture) -> None:
    built.launcher.gate.clear()
    running = await built.service.submit(thick("a"), caller=ROOT)
    await built.service.cancel(running.id)
    built.launcher.gate.set()
    await built.service.ended(running.id, 10)
    await built.do(thick("b"))
