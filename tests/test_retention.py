"""Retentions act on a clock that can be trusted only, and never in passing on a leap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from dbus_next import Message, MessageType, Variant

from tests.service_fixture import SETTINGS, service_fixture
from zfsilod.host.clock import HostClock, kernel_is_synchronised
from zfsilod.model.records import Operation, Trashed, Volume
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.purger import Purger
from zfsilod.service.retention import SETTLING_S, Retention
from zfsilod.service.supervisor import Supervisor
from zfsilod.systemd.time_service import SystemClock

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


async def test_a_daemon_with_a_volume_in_the_trash_does_not_exit(weekly: ServiceFixture) -> None:
    """With daemon.idle_exit_s it never ran for the hour that a purge needs."""
    assert weekly.service.holds_anything()
    weekly.clock.advance(WEEK_S + SETTLING_S)
    await weekly.service.context.retention.now()
    assert (await passed(weekly))[0] == 0
    assert not weekly.service.holds_anything()


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


async def test_the_clock_of_this_host() -> None:
    clock = HostClock()
    assert clock.now() > clock.uptime() > 0
    assert kernel_is_synchronised() in (True, False)
    assert not await clock.is_synchronised(), "without systemd it is not known"


@pytest.mark.parametrize("behind_s", [WEEK_S + DAY_S, -10 * WEEK_S])
async def test_a_volume_that_was_deleted_by_a_wrong_clock_has_its_week(
    tmp_path: Path, behind_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind: the week had passed when the clock was set. Ahead: it never passed."""
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=WEEK_S)) as built:
        clock = built.clock
        monkeypatch.setattr(built.service.context, "clock", clock)
        clock.synchronised = False
        clock.leap(-behind_s)
        await built.do(CREATE, DeleteVolume(id="data"))
        clock.leap(behind_s)
        clock.synchronised = True
        assert (await passed(built))[0] == 1, "its week begins"
        clock.advance(WEEK_S - 60)
        assert (await passed(built))[0] == 1
        clock.advance(120)
        assert (await passed(built))[0] == 0


class TimeBus:
    """Answers for timedated."""

    def __init__(self, answer: Message | None) -> None:
        self.answer, self.asked = answer, 0

    async def call(self, message: Message) -> Message | None:
        self.asked += 1
        assert message.member == "Get"
        assert message.body == ["org.freedesktop.timedate1", "NTPSynchronized"]
        return self.answer


def answer(kind: MessageType, signature: str, *body: object) -> Message:
    name = "org.freedesktop.DBus.Error.ServiceUnknown" if kind == MessageType.ERROR else None
    return Message(
        message_type=kind, reply_serial=1, error_name=name, signature=signature, body=list(body)
    )


@pytest.mark.parametrize(
    ("told", "synchronised"),
    [
        (answer(MessageType.METHOD_RETURN, "v", Variant("b", True)), True),
        (answer(MessageType.METHOD_RETURN, "v", Variant("b", False)), False),
        (answer(MessageType.METHOD_RETURN, "v", Variant("s", "yes")), False),
        (answer(MessageType.METHOD_RETURN, "b", True), False),
        (answer(MessageType.ERROR, "s", "timedated is not installed"), False),
        (None, False),
    ],
)
async def test_timedated_says_whether_the_clock_is_synchronised(
    told: Message | None, synchronised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once in a while: it stops when nobody asks."""
    bus = TimeBus(told)
    clock = SystemClock(cast("Any", bus))
    for _pass in range(3):
        assert await clock.is_synchronised() is synchronised
    assert bus.asked == 1
    monkeypatch.setattr("zfsilod.systemd.time_service.KEPT_S", 0.0)
    assert await clock.is_synchronised() is synchronised
    assert bus.asked == 2


async def test_nobody_is_asked_in_the_first_hour(weekly: ServiceFixture) -> None:
    bus = TimeBus(answer(MessageType.METHOD_RETURN, "v", Variant("b", True)))
    assert await Retention(SystemClock(cast("Any", bus))).now() is None
    assert bus.asked == 0
    assert weekly is not None
