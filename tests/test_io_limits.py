"""Limits of the I/O of volumes: on the host, in the records, and on new sessions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples import UID
from tests.service_fixture import administrator
from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, InvalidArgument
from zfsilod.model.host_facts import NO_LIMITS, IoLimits
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Operation, Volume
from zfsilod.requests.adoption import parse_limits_mark
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.put_back import RemoveExport
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.pool_scan import find_zvol
from zfsilod.service.session_limits import RETRY_S, SessionLimits

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture

MIB = 1 << 20
PLAIN = CreateVolume(id="data", capacity_bytes=1 << 30, hosts=("take",))
DATA = PLAIN.but(limit_read_iops=500, limit_write_bytes=20 * MIB)
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data", restore="BOOT")
LIMITS = IoLimits(read_iops=500, write_bytes=20 * MIB)
UPDATE = UpdateVolume(id="data", mask=("limit_read_iops",), limit_read_iops=900)
NONE = UpdateVolume(id="data", mask=("limit_read_iops", "limit_write_bytes"))


def volume(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.read() as txn:
        (record,) = txn.scan(Volume)
    return record


def kernel(fixture: ServiceFixture) -> list[IoLimits]:
    """Return the limits that the host has set."""
    return [IoLimits(**values) for values in fixture.host.facts.of_kind("limit").values()]


def is_limited(fixture: ServiceFixture) -> bool:
    """Tell whether limits apply to the only session."""
    (session,) = fixture.host.facts.of_kind("session").values()
    return "limited" in session


def steps(operation: Operation) -> list[str]:
    return [f"{action.way} {type(action.step).__name__}" for action in operation.actions]


async def settled(limits: SessionLimits) -> None:
    """Look for new sessions, and wait for the end of what that started."""
    await limits.look()
    if limits.task is not None:
        await asyncio.wait_for(asyncio.shield(limits.task), 20)


async def test_the_limits_are_those_of_the_export(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    assert volume(fixture).limits == LIMITS
    assert kernel(fixture) == [], "a volume that is not exported needs none"
    published = await fixture.do(PUBLISH)
    assert steps(published)[1:3] == ["do Backstore", "do Limited"], "before a client gets in"
    assert kernel(fixture) == [LIMITS]
    await fixture.do(Unpublish(volume="data"))
    assert kernel(fixture) == []


async def test_a_change_applies_to_a_live_session(fixture: ServiceFixture) -> None:
    await fixture.do(PLAIN, PUBLISH, CONNECT)
    assert not is_limited(fixture)
    updated = await fixture.do(UPDATE)
    assert steps(updated) == ["do NotNewer", "do Limited", "do ZvolProperty"]
    assert kernel(fixture) == [IoLimits(read_iops=900)]
    assert is_limited(fixture)
    again = UpdateVolume(id="data", mask=("limit_write_iops",), limit_write_iops=30)
    await fixture.do(again)
    assert kernel(fixture) == [IoLimits(read_iops=900, write_iops=30)], "the others stay"
    await fixture.do(UpdateVolume(id="data", mask=("limit_read_iops", "limit_write_iops")))
    assert kernel(fixture) == []
    assert not is_limited(fixture)
    assert volume(fixture).limits == NO_LIMITS


async def test_a_new_session_is_limited_at_the_next_look(fixture: ServiceFixture) -> None:
    limits = SessionLimits(fixture.service)
    await fixture.do(DATA, PUBLISH, CONNECT)
    assert not is_limited(fixture), "the kernel makes new threads without limits"
    await settled(limits)
    assert is_limited(fixture)
    await fixture.do(Disconnect(id="data"), CONNECT)
    assert not is_limited(fixture)
    await settled(limits)
    assert is_limited(fixture)
    started = len(fixture.launcher.starts)
    await settled(limits)
    assert len(fixture.launcher.starts) == started, "nothing is done without a new session"


async def test_sessions_without_limits_start_nothing(fixture: ServiceFixture) -> None:
    await fixture.do(PLAIN, PUBLISH, CONNECT)
    started = len(fixture.launcher.starts)
    limits = SessionLimits(fixture.service)
    await settled(limits)
    assert limits.task is None
    assert len(fixture.launcher.starts) == started


async def test_a_failure_is_retried_later(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = SessionLimits(fixture.service)
    await fixture.do(DATA, PUBLISH, CONNECT)
    fixture.host.facts.light_fuse(1, when="before", how="error")
    await settled(limits)
    assert "limits do not apply to new sessions" in caplog.text
    await settled(limits)
    assert not is_limited(fixture)
    monkeypatch.setattr(limits, "due", limits.due - RETRY_S)
    await settled(limits)
    assert is_limited(fixture)


async def test_a_sync_restores_limits_and_takes_new_sessions(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH, CONNECT)
    fixture.host.facts.memory.pop(next(n for n in fixture.facts if n.startswith("limit:")))
    report = await fixture.service.reconciler.report("data")
    assert list(report.missing) == ["limits are set: read_iops 500, write_bytes 20971520"]
    await fixture.do(SyncVolume(id="data"))
    assert kernel(fixture) == [LIMITS]
    assert is_limited(fixture)


async def test_a_sync_takes_a_new_session(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH, CONNECT)
    report = await fixture.service.reconciler.report("data")
    assert report.missing == ("limits apply to all sessions",)
    await fixture.do(SyncVolume(id="data"))
    assert is_limited(fixture)


async def test_limits_of_a_volume_that_is_not_exported_are_a_difference(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(DATA, PUBLISH)
    left = {name: value for name, value in fixture.facts.items() if name.startswith("limit:")}
    await fixture.do(Unpublish(volume="data"))
    fixture.host.facts.memory.update(left)
    synced = await fixture.service.reconciler.sync_all(DAEMON)
    assert not synced.complaints
    assert kernel(fixture) == []


async def test_a_removed_export_has_no_limits(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH, RemoveExport(volume="data"))
    assert kernel(fixture) == []
    assert not fixture.host.facts.of_kind("backstore")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit_read_iops", 9),
        ("limit_write_iops", 1 << 32),
        ("limit_read_bytes", 2 * MIB - 1),
        ("limit_write_bytes", 1 << 61),
        ("limit_read_iops", -10),
    ],
)
async def test_a_limit_out_of_range(field: str, value: int, fixture: ServiceFixture) -> None:
    with pytest.raises(InvalidArgument, match=field) as refused:
        await fixture.do(PLAIN.but(**{field: value}))
    assert refused.value.reason == "BAD_LIMIT"
    await fixture.do(PLAIN)
    with pytest.raises(InvalidArgument, match=field):
        await fixture.do(UpdateVolume(id="data", mask=(field,)).but(**{field: value}))
    assert volume(fixture).limits == NO_LIMITS


async def test_nvme_has_no_limits(fixture: ServiceFixture) -> None:
    async def refused(request: Any) -> str:
        with pytest.raises(InvalidArgument, match="use iscsi") as error:
            await fixture.do(request)
        return error.value.reason

    assert await refused(DATA.but(transport="NVME")) == "NVME_LIMITS"
    await fixture.do(DATA)
    assert await refused(PUBLISH.but(transport="NVME")) == "NVME_LIMITS"
    await fixture.do(NONE, PUBLISH.but(transport="NVME"))
    assert await refused(UPDATE) == "NVME_LIMITS"
    await fixture.do(Unpublish(volume="data"), UPDATE)
    assert kernel(fixture) == []


async def test_a_repeated_creation_compares_the_limits(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, DATA)
    with pytest.raises(AlreadyExists, match="limits"):
        await fixture.do(PLAIN)


async def test_a_clone_has_its_own_limits(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PLAIN.but(id="twin", source_volume="data", limit_read_iops=20))
    with fixture.service.context.read() as txn:
        limits = {one.id: one.limits for one in txn.scan(Volume)}
    assert limits == {"data": LIMITS, "twin": IoLimits(read_iops=20)}


async def test_an_adoption_finds_the_limits_on_the_zvol(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, UPDATE)
    before = volume(fixture)
    assert before.limits == LIMITS.but(read_iops=900)
    with fixture.service.context.store.write() as txn:
        txn.drop("volume", "data")
    request = await find_zvol(fixture.service.context, before.dataset, "data")
    operation = await fixture.service.submit(request, caller=administrator("a test"))
    await fixture.service.wait(operation.id, 20)
    assert volume(fixture).limits == before.limits


@pytest.mark.parametrize(
    "mark", ["", "read_iops", "read_iops=1", "read_iops=x", "speed=500", "read_iops=-5", "=" * 9]
)
def test_a_mark_that_zfsilo_did_not_write(mark: str) -> None:
    assert parse_limits_mark(mark) == NO_LIMITS


def test_a_mark_there_and_back() -> None:
    marked = Volume(
        id="data",
        uid=UID,
        dataset="tank/data",
        capacity_bytes=1,
        thin=True,
        mode="BLOCK",
        volblocksize=1,
        limits=LIMITS,
    )
    mark = plans.marks(marked)["zfsilo:limits"]
    assert mark == "read_iops=500,write_bytes=20971520"
    assert parse_limits_mark(mark) == LIMITS
    assert "zfsilo:limits" not in plans.marks(marked.but(limits=NO_LIMITS))
