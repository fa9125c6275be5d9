"""Retentions act on a clock that can be trusted only, and never in passing on a leap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service_fixture import SETTINGS, service_fixture
from zfsilod.host.clock import HostClock
from zfsilod.model.records import Operation, Trashed, Volume
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.purger import Purger
from zfsilod.service.retention import SETTLING_S, Retention
from zfsilod.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

WEEK_S, DAY_S = 7 * 86400, 86400
CREATE = CreateVolume(id="data", capacity_bytes=1 << 30)


@pytest.fixture
async def weekly(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    """A service with a deleted volume that it keeps for a week, and a daemon that just started."""
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=WEEK_S)) as built:
        await built.do(CREATE, DeleteVolume(id="data"))
        built.service.context.retention = Retention(built.clock)
        yield built


async def passed(fixture: ServiceFixture) -> tuple[int, int]:
    """Run the passes of both retentions; return how many volumes and operations are kept."""
    await Purger(fixture.service.context, fixture.service).purge()
    with fixture.service.context.store.read() as txn:
        live = list(txn.live())
    for operation in live:
        await fixture.service.wait(operation.id, 20)
    await Supervisor(fixture.service, retention_s=WEEK_S).forget()
    with fixture.service.context.store.read() as txn:
        return len(list(txn.scan(Trashed))), len(list(txn.scan(Operation)))


async def test_a_clock_that_is_ahead_at_the_start_removes_nothing(weekly: ServiceFixture) -> None:
    clock = weekly.clock
    clock.leap(WEEK_S + DAY_S)
    weekly.service.context.retention = Retention(clock)  # the daemon starts with the wrong clock
    kept = await passed(weekly)
    assert kept[0] == 1
    assert kept[1] >= 3
    clock.advance(SETTLING_S - 10)
    assert await passed(weekly) == kept
    clock.leap(-WEEK_S - DAY_S)  # the clock is set right within the hour
    for _hour in range(3):
        assert await passed(weekly) == kept
        clock.advance(SETTLING_S)


async def test_an_unsynchronised_clock_removes_nothing(weekly: ServiceFixture) -> None:
    clock = weekly.clock
    clock.synchronised = False
    clock.advance(2 * WEEK_S)
    kept = await passed(weekly)
    assert kept[0] == 1
    clock.synchronised = True
    assert (await passed(weekly))[0] == 0


@pytest.mark.parametrize("leap_s", [WEEK_S + DAY_S, 100])
async def test_a_leap_removes_nothing_for_an_hour(weekly: ServiceFixture, leap_s: int) -> None:
    clock = weekly.clock
    clock.advance(WEEK_S - 50)
    kept = await passed(weekly)
    clock.leap(leap_s)
    assert await passed(weekly) == kept
    clock.advance(SETTLING_S - 10)
    assert await passed(weekly) == kept
    clock.advance(20)
    assert (await passed(weekly))[0] == 0


async def test_a_deletion_in_the_future_is_not_due(weekly: ServiceFixture) -> None:
    clock = weekly.clock
    clock.advance(2 * SETTLING_S)
    await passed(weekly)
    clock.leap(-10 * 365 * DAY_S)
    clock.advance(2 * WEEK_S)
    assert (await passed(weekly))[0] == 1


async def test_a_volume_without_a_retention_needs_no_clock(tmp_path: Path) -> None:
    async with service_fixture(tmp_path, SETTINGS) as fixture:
        fixture.clock.synchronised = False
        record = Trashed(id="data/1", volume=await _deleted(fixture), home="tank/zfsilo/data")
        now = int(fixture.clock.now())
        await fixture.service.context.write(
            lambda txn: txn.put(record.but(deleted_at=now, purge_at=now))
        )
        assert (await passed(fixture))[0] == 0


async def _deleted(fixture: ServiceFixture) -> Volume:
    await fixture.do(CREATE)
    with fixture.service.context.store.read() as txn:
        volume = txn.get(Volume, "data")
    assert volume is not None
    await fixture.service.context.write(lambda txn: txn.drop("volume", "data"))
    return volume


def test_the_clock_of_this_host() -> None:
    clock = HostClock()
    assert clock.now() > clock.uptime() > 0
    assert clock.is_synchronised() in (True, False)
