"""Operations that wait for a unit share one, and each keeps its own outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.api.running import GIB
from tests.service_fixture import ServiceFixture, administrator, service_fixture
from zfsilod.model.errors import Busy
from zfsilod.requests.connect import Connect
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service import launch_queue
from zfsilod.service.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

    from zfsilod.model.records import Operation
    from zfsilod.requests.request import Request

ROOT = administrator("root")
DEADLINE_S = 20


@pytest.fixture
async def fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ServiceFixture]:
    """A service with space for one unit, whose workers wait."""
    monkeypatch.setattr(launch_queue, "MAX_UNITS", 1)
    monkeypatch.setattr(launch_queue, "MAX_BATCH", 3)
    async with service_fixture(tmp_path) as built:
        yield built
        built.launcher.gate.set()


async def submitted(fixture: ServiceFixture, *requests: Request[Any]) -> list[Operation]:
    return [await fixture.service.submit(request, caller=ROOT) for request in requests]


async def ended(fixture: ServiceFixture, operations: list[Operation]) -> list[Operation]:
    """Let the workers go on, and return the operations when all have ended."""
    fixture.launcher.gate.set()
    return [await fixture.service.ended(one.id, DEADLINE_S) for one in operations]


async def started(fixture: ServiceFixture, count: int) -> list[str]:
    """Wait for so many units, and return all that were started."""
    async with asyncio.timeout(DEADLINE_S):
        while len(fixture.launcher.starts) < count:
            await asyncio.sleep(0)
    return fixture.launcher.starts


def creates(*names: str) -> tuple[CreateVolume, ...]:
    return tuple(CreateVolume(id=name, capacity_bytes=GIB) for name in names)


async def test_what_waits_starts_in_one_unit(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    operations = await submitted(fixture, *creates("a", "b", "c", "d", "e"))
    assert fixture.launcher.starts == [operations[0].id]
    done = await ended(fixture, operations)
    assert {operation.state for operation in done} == {"DONE"}
    first, second, third, fourth, fifth = (operation.unit for operation in done)
    assert first == done[0].id
    assert second == third == fourth != fifth
    assert fifth == done[4].id, "one that is alone has its own unit"
    assert fixture.launcher.starts == [first, second, fifth]


async def test_only_those_of_one_sandbox_share_a_unit(fixture: ServiceFixture) -> None:
    await fixture.do(*creates("a", "b"))
    fixture.launcher.gate.clear()
    publish = Publish(volume="a", host="take"), Publish(volume="b", host="take")
    operations = await submitted(fixture, *creates("c"), publish[0], *creates("d"), publish[1])
    done = await ended(fixture, operations)
    assert done[1].unit == done[3].unit
    assert done[2].unit == done[2].id


async def test_an_operation_of_a_client_does_not_wait(fixture: ServiceFixture) -> None:
    """It may wait for its server, which may be this host."""
    await fixture.do(*creates("a"), Publish(volume="a", host="take"))
    fixture.launcher.gate.clear()
    connect = Connect(id="a", server="give", volume="a")
    operations = await submitted(fixture, *creates("b"), connect)
    assert (await started(fixture, 4))[2:] == [operation.id for operation in operations]
    assert {one.state for one in await ended(fixture, operations)} == {"DONE"}


async def test_one_that_fails_fails_alone(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = fixture.host.zfs.create_zvol

    def refuse(dataset: str, *words: Any, **named: Any) -> Any:
        if dataset.endswith("/c"):
            raise Busy("the dataset is busy")
        return create(dataset, *words, **named)

    monkeypatch.setattr(fixture.host.zfs, "create_zvol", refuse)
    fixture.launcher.gate.clear()
    operations = await submitted(fixture, *creates("a", "b", "c", "d"))
    done = await ended(fixture, operations)
    assert [operation.state for operation in done] == ["DONE", "DONE", "ROLLED_BACK", "DONE"]
    assert done[2].failure is not None
    assert done[2].failure.message == "the dataset is busy"


async def test_one_that_is_cancelled_is_rolled_back_alone(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    first, *others = await submitted(fixture, *creates("a", "b", "c", "d"))
    fixture.launcher.tasks[first.id].cancel()
    await fixture.launcher.rollback(first)
    await ended(fixture, [first])
    fixture.launcher.gate.clear()
    await started(fixture, 2)
    await fixture.service.cancel(others[1].id)
    assert not fixture.launcher.stopped
    done = await ended(fixture, others)
    assert [operation.state for operation in done] == ["DONE", "ROLLED_BACK", "DONE"]
    assert len({operation.unit for operation in done}) == 1
    assert done[1].failure is not None
    assert done[1].failure.reason == "CANCELLED"


async def test_one_that_is_cancelled_while_it_waits_is_not_started(
    fixture: ServiceFixture,
) -> None:
    fixture.launcher.gate.clear()
    operations = await submitted(fixture, *creates("a", "b", "c"))
    await fixture.service.cancel(operations[1].id)
    done = await ended(fixture, operations)
    assert [operation.state for operation in done] == ["DONE", "ROLLED_BACK", "DONE"]
    assert done[1].batch == ""
    assert "zvol:tank/zfsilo/b" not in fixture.facts
    assert done[1].failure is not None
    assert done[1].failure.reason == "CANCELLED"


async def test_a_refused_start_ends_all_of_a_batch(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    operations = await submitted(fixture, *creates("a", "b", "c"))
    fixture.launcher.refuses = True
    done = await ended(fixture, operations)
    assert [operation.state for operation in done] == ["DONE", "ROLLED_BACK", "ROLLED_BACK"]
    fixture.launcher.refuses = False
    await fixture.do(*creates("d"))  # the refused unit does not count


async def test_a_unit_whose_end_was_not_announced_does_not_count_for_ever(
    fixture: ServiceFixture,
) -> None:
    hint, fixture.launcher.hint = fixture.launcher.hint, lambda _unit: None
    operations = await submitted(fixture, *creates("a"))
    async with asyncio.timeout(DEADLINE_S):
        while await fixture.launcher.running():
            await asyncio.sleep(0)
    fixture.launcher.hint = hint
    operations += await submitted(fixture, *creates("b"))
    assert len(fixture.launcher.starts) == 1
    await Supervisor(fixture.service, retention_s=3600).recover()
    assert (await ended(fixture, operations[1:]))[0].state == "DONE"


async def test_an_unpublication_with_a_grace_period_has_its_own_unit(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*creates("a"), Publish(volume="a", host="take"))
    fixture.launcher.gate.clear()
    fence = Unpublish(volume="a", host="take", fence=True, grace_s=5)
    operations = await submitted(fixture, *creates("b"), fence)
    await started(fixture, 4)
    await ended(fixture, operations)
