"""Records of snapshots that the pool has lost: no grid counts them, and they keep no volume."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from tests.test_ownership import daemon
from zfsilod.host.fake.snapshots import FakeSnapshots
from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.identity import DAEMON
from zfsilod.model.records import Dependent, Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.dependents import ZvolDependents, all_dependents, recorded_uids
from zfsilod.requests.snapshot_policies import CreateSnapshotPolicy
from zfsilod.requests.snapshots import CreateSnapshot, CreateSnapshotGroup, DeleteSnapshot
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.pool_import import PoolImport, adopt_all
from zfsilod.service.pruner import Pruner
from zfsilod.service.purger import Purger
from zfsilod.service.retention import SETTLING_S, Retention

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

GIB, DAY = 1 << 30, 86400
DATA = CreateVolume(id="data", capacity_bytes=GIB)
NIGHTLY = CreateSnapshotPolicy(id="nightly", calendar="daily", grid="3x1d")
MONDAY = CreateSnapshot(id="monday", volume="data")


@pytest.fixture
async def server(fixture: ServiceFixture) -> ServiceFixture:
    """A server with a volume, whose clock the test sets."""
    use_clock(fixture)
    await fixture.do(DATA)
    return fixture


def use_clock(fixture: ServiceFixture) -> None:
    """Let the clock of the test be that of the service, and trusted."""
    fixture.service.context.clock = fixture.clock
    fixture.service.context.retention = Retention(fixture.clock)
    fixture.clock.advance(SETTLING_S)


def all_of(server: ServiceFixture, kind: Any = Snapshot) -> list[Any]:
    with server.service.context.read() as txn:
        return list(txn.scan(kind))


def recorded(server: ServiceFixture) -> dict[str, str]:
    """Return the uids of the recorded snapshots by their ids, oldest first."""
    return {one.id: one.uid for one in sorted(all_of(server), key=lambda one: one.created_at)}


def in_pool(server: ServiceFixture) -> set[str]:
    return {name.removeprefix("cut:") for name in server.host.facts.of_kind("cut")}


def lose(server: ServiceFixture, *uids: str) -> None:
    for uid in uids:
        server.host.facts.effect(f"cut:{uid}", None)


async def days(server: ServiceFixture, count: int) -> None:
    """Run the policy for some days, without a pruner."""
    for _day in range(count):
        server.clock.advance(DAY)
        assert not (await server.service.policies.run("nightly", caller=DAEMON)).failures


async def pruned(server: ServiceFixture) -> None:
    await Pruner(server.service.context, server.service).prune()


async def purged(server: ServiceFixture) -> list[Any]:
    """Run a pass of the purger; return what is left in the trash."""
    purger = Purger(server.service.context, server.service)
    await purger.find_needless()
    await purger.purge()
    with server.service.context.read() as txn:
        live = list(txn.live())
    for operation in live:
        await server.service.wait(operation.id, 20)
    return all_of(server, Trashed)


async def adopted(server: ServiceFixture, *, validate_only: bool = False) -> PoolImport:
    service, caller = server.service, administrator("a")
    return await adopt_all(service.context, service, caller, validate_only=validate_only)


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_grid_counts_only_what_the_pool_has(
    server: ServiceFixture, *, grouped: bool
) -> None:
    """After `zfs rollback -r` to the oldest snapshot, it is the newest of its period."""
    await server.do(NIGHTLY.but(grouped=grouped))
    await days(server, 3)
    oldest, *later = recorded(server).values()
    lose(server, *later)
    await days(server, 1)
    await pruned(server)
    assert len(in_pool(server)) == 2
    assert oldest in in_pool(server)
    await days(server, 3)
    await pruned(server)
    assert len(in_pool(server)) == 3
    assert oldest not in in_pool(server)


async def test_a_snapshot_of_another_guid_does_not_count(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid="1x1d"))
    await days(server, 2)
    _older, newer = sorted(all_of(server), key=lambda one: one.created_at)
    await server.service.context.write(lambda txn: txn.put(newer.but(guid="1")))
    await pruned(server)
    assert len(in_pool(server)) == 2


async def test_without_a_listing_nothing_is_deleted(
    server: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: FakeSnapshots, _root: str) -> None:
        raise Unavailable("the pool does not answer")

    await server.do(NIGHTLY.but(grid="1x1d"))
    await days(server, 3)
    with monkeypatch.context() as patched:
        patched.setattr(FakeSnapshots, "list_snapshots", fail)
        with pytest.raises(Unavailable):
            await pruned(server)
    assert len(in_pool(server)) == 3
    await pruned(server)
    assert len(in_pool(server)) == 1


async def test_a_volume_that_is_gone_keeps_no_group(server: ServiceFixture) -> None:
    await server.do(DATA.but(id="log"), NIGHTLY.but(grouped=True, grid="1x1d"))
    await days(server, 1)
    (first,) = all_of(server, SnapshotGroup)
    server.host.facts.effect("zvol:tank/zfsilo/log", None)
    await server.do(DeleteVolume(id="log", dependents="KEEP", record_only=True))
    await days(server, 1)
    await pruned(server)  # the listing does not have the zvol, so none of its snapshots
    assert first.id not in [one.id for one in all_of(server, SnapshotGroup)]


async def test_a_pool_that_is_rewound_keeps_its_snapshots(tmp_path: Path) -> None:
    state, pool = tmp_path / "state", tmp_path / "facts.json"
    async with daemon(state, pool) as started:
        use_clock(started.fixture)
        await started.fixture.do(DATA, NIGHTLY)
        await days(started.fixture, 3)
    checkpoint = shutil.copy(pool, tmp_path / "checkpoint.json")
    async with daemon(state, pool) as started:
        use_clock(started.fixture)
        started.fixture.clock.advance(3 * DAY)
        await days(started.fixture, 3)
        await pruned(started.fixture)
        last = set(recorded(started.fixture))
    shutil.copy(checkpoint, pool)
    async with daemon(state, pool) as started:
        use_clock(started.fixture)
        started.fixture.clock.advance(6 * DAY)
        assert started.holds == ["POOL_OLDER"]
        report = await started.adopt()
        (sentence,) = [text for text in report.unknown if "records end" in text]
        assert all(one in sentence for one in last)
        assert set(recorded(started.fixture).values()) == in_pool(started.fixture)
        await pruned(started.fixture)
        assert len(in_pool(started.fixture)) == 3


async def test_adopt_removes_the_records_of_lost_snapshots(server: ServiceFixture) -> None:
    both = CreateSnapshotGroup(id="both", volumes=("data", "log"))
    await server.do(DATA.but(id="log"), MONDAY, MONDAY.but(id="tuesday"), both)
    lose(server, recorded(server)["monday"])
    group = recorded(server)["both-data"]
    facts = server.host.facts.get(f"cut:{group}")
    data = next(one.volume_uid for one in all_of(server) if one.id == "both-data")
    left = {uid: content for uid, content in facts["of"].items() if uid != data}
    server.host.facts.effect(f"cut:{group}", facts | {"of": left})
    planned = await adopted(server, validate_only=True)
    assert len(recorded(server)) == 4
    assert (await adopted(server)).unknown == planned.unknown
    assert planned.unknown[0].endswith("their records end: both-data, monday")
    assert set(recorded(server)) == {"both-log", "tuesday"}
    assert len(all_of(server, Dependent)) == 2
    (smaller,) = all_of(server, SnapshotGroup)
    assert (smaller.volumes, smaller.snapshots) == (("log",), ("both-log",))
    lose(server, group)
    await adopted(server)
    assert all_of(server, SnapshotGroup) == []


async def test_adopt_keeps_what_the_pool_does_not_disprove(server: ServiceFixture) -> None:
    """A zvol that was renamed by hand has its snapshots with it; marks can be received ones."""
    await server.do(MONDAY)
    zvol = server.host.facts.get("zvol:tank/zfsilo/data")
    server.host.facts.effect("zvol:tank/zfsilo/data", None)
    await adopted(server)
    assert set(recorded(server)) == {"monday"}
    server.host.facts.effect("zvol:tank/zfsilo/data", zvol)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FakeSnapshots, "list_snapshots", lambda _self, _root: [])
        await adopted(server)
    assert set(recorded(server)) == {"monday"}


async def test_a_lost_snapshot_keeps_no_volume(server: ServiceFixture) -> None:
    await server.do(MONDAY, MONDAY.but(id="tuesday"))
    lose(server, recorded(server)["monday"])
    with pytest.raises(FailedPrecondition) as refused:
        await server.do(DeleteVolume(id="data"))
    assert refused.value.facts["dependents"] == "snapshots/tuesday"
    lose(server, recorded(server)["tuesday"])
    await server.do(DeleteVolume(id="data"))
    assert all_of(server, Volume) == all_of(server) == all_of(server, Dependent) == []


async def test_the_trash_is_purged_of_volumes_whose_snapshots_are_lost(
    server: ServiceFixture,
) -> None:
    await server.do(MONDAY, DeleteVolume(id="data", dependents="KEEP"))
    assert len(await purged(server)) == 1
    lose(server, recorded(server)["monday"])
    assert await purged(server) == []
    assert all_of(server) == all_of(server, Dependent) == []
    assert server.host.facts.of_kind("zvol") == {}


async def test_the_record_of_a_lost_snapshot_can_be_deleted(server: ServiceFixture) -> None:
    await server.do(MONDAY)
    lose(server, recorded(server)["monday"])
    await server.do(DeleteSnapshot(id="monday"), MONDAY)
    assert set(recorded(server).values()) == in_pool(server)


async def test_a_snapshot_that_is_recorded_after_the_listing_is_not_lost(
    server: ServiceFixture,
) -> None:
    (volume,) = all_of(server, Volume)
    await server.do(MONDAY)
    with server.service.context.read() as txn:
        stale, later = ZvolDependents(), ZvolDependents(recorded=recorded_uids(txn, volume))
        assert all_dependents(txn, volume, stale) == ["snapshots/monday"]
        assert all_dependents(txn, volume, later) == []
        assert all_dependents(txn, volume, later.but(lost=True)) == ["snapshots/monday"]
