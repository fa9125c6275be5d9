"""The lines to which grids are applied: of deleted volumes, of former policies, of wrong clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.test_lost_snapshots import (
    DATA,
    DAY,
    NIGHTLY,
    all_of,
    days,
    in_pool,
    pruned,
    purged,
    recorded,
    server,
)
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.model.records import Snapshot, SnapshotGroup, Trashed
from zfsilod.model.retention_grid import ordered_times, parse_grid
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.snapshot_policies import DeleteSnapshotPolicy, UpdateSnapshotPolicy
from zfsilod.requests.snapshots import CreateSnapshot, DeleteSnapshot, DeleteSnapshotGroup
from zfsilod.service.retention import SETTLING_S

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture

__all__ = ["server"]  # a fixture
HOUR = 3600
KEEP = DeleteVolume(id="data", dependents="KEEP")


def test_the_span_of_a_rule() -> None:
    spans = [rule.span_s for rule in parse_grid("24x1h 7x1d 2x2w 12x1mon 1x2y")]
    assert spans == [24 * HOUR, 7 * DAY, 28 * DAY, 372 * DAY, 732 * DAY]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_deleted_volume_goes_after_its_snapshots(
    server: ServiceFixture, *, grouped: bool
) -> None:
    await server.do(NIGHTLY.but(grid="3x1d 2x1w", grouped=grouped))
    await days(server, 9)
    await pruned(server)
    before = len(in_pool(server))
    await purged(server)  # the clock is trusted
    await server.do(KEEP)
    server.clock.advance(3 * DAY - HOUR)
    await pruned(server)
    assert len(in_pool(server)) == before
    server.clock.advance(2 * HOUR)
    await pruned(server)
    assert len(in_pool(server)) == 2  # by weeks
    server.clock.advance(11 * DAY - 2 * HOUR)
    await pruned(server)
    assert len(await purged(server)) == 1
    server.clock.advance(2 * HOUR)
    await pruned(server)
    assert await purged(server) == all_of(server) == all_of(server, SnapshotGroup) == []
    assert server.host.facts.of_kind("zvol") == {}


async def test_a_retention_of_the_trash_keeps_the_snapshots(server: ServiceFixture) -> None:
    """Until it ends, `volume undelete` restores the volume with its snapshots."""
    context = server.service.context
    context.settings = context.settings.but(trash_retention_s=9 * DAY)
    await server.do(NIGHTLY)
    await days(server, 3)
    await purged(server)
    await server.do(KEEP)
    server.clock.advance(8 * DAY)
    await pruned(server)
    assert len(in_pool(server)) == 3
    await server.do(UndeleteVolume(id="data"))
    server.clock.advance(9 * DAY)
    await pruned(server)
    assert len(in_pool(server)) == 3


async def test_a_held_snapshot_and_one_taken_by_hand_keep_the_volume(
    server: ServiceFixture,
) -> None:
    await server.do(NIGHTLY)
    await days(server, 2)
    _older, held = recorded(server).values()
    await server.do(CreateSnapshot(id="by-hand", volume="data"))
    by_hand = recorded(server)["by-hand"]
    server.host.facts.effect(f"holds:{held}", 1)
    await purged(server)
    await server.do(KEEP)
    server.clock.advance(99 * DAY)
    await pruned(server)
    assert in_pool(server) == {held, by_hand}
    server.host.facts.effect(f"holds:{held}", None)
    await pruned(server)
    assert in_pool(server) == {by_hand}
    assert len(await purged(server)) == 1
    await server.do(DeleteSnapshot(id="by-hand"))
    assert await purged(server) == []


async def test_a_deletion_by_a_clock_that_is_behind_begins_when_it_is_trusted(
    server: ServiceFixture,
) -> None:
    await server.do(NIGHTLY)
    await days(server, 3)
    server.clock.leap(-9999 * DAY)
    await server.do(KEEP)
    await purged(server)
    server.clock.leap(9999 * DAY)
    await purged(server)
    server.clock.advance(SETTLING_S)
    await pruned(server)  # the deletion is not timed yet
    assert len(in_pool(server)) == 3
    await purged(server)
    (trashed,) = all_of(server, Trashed)
    assert trashed.clock_trusted
    server.clock.advance(3 * DAY - HOUR)
    await pruned(server)
    assert len(in_pool(server)) == 3
    server.clock.advance(2 * HOUR)
    await pruned(server)
    assert in_pool(server) == set()


async def test_a_living_volume_keeps_the_groups_with_a_deleted_one(server: ServiceFixture) -> None:
    await server.do(DATA.but(id="log"), NIGHTLY.but(grouped=True))
    await days(server, 3)
    await purged(server)
    await server.do(KEEP)
    server.clock.advance(99 * DAY)
    await pruned(server)
    assert len(in_pool(server)) == 3
    await days(server, 3)
    await pruned(server)
    assert await purged(server) == []
    assert len(all_of(server, SnapshotGroup)) == 3


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_policy_of_a_former_name_deletes_nothing_of_the_former_one(
    server: ServiceFixture, *, grouped: bool
) -> None:
    await server.do(NIGHTLY.but(grouped=grouped))
    await days(server, 3)
    kept = in_pool(server)
    former = all_of(server, SnapshotGroup if grouped else Snapshot)[0]
    await server.do(DeleteSnapshotPolicy(id="nightly"), NIGHTLY.but(grid="1x1d", grouped=grouped))
    await days(server, 3)
    await pruned(server)
    assert kept < in_pool(server)
    assert len(in_pool(server)) == len(kept) + 1
    (outcome,) = all_of(server, PolicyOutcome)
    assert outcome.prune_failures == ()  # the pruner submits nothing that is refused
    kind = DeleteSnapshotGroup if grouped else DeleteSnapshot
    with pytest.raises(FailedPrecondition) as refused:
        await server.do(kind(id=former.id, pruned_by="nightly"))
    assert refused.value.reason == "NOT_OF_POLICY"
    await server.do(kind(id=former.id))


async def test_a_policy_of_an_older_store_keeps_its_snapshots_by_its_grid(
    server: ServiceFixture,
) -> None:
    """Neither has a uid there; what the policy takes later has none either."""
    await server.do(NIGHTLY)
    (policy,) = all_of(server, SnapshotPolicy)
    await server.service.context.write(lambda txn: txn.put(policy.but(uid="")))
    await days(server, 5)
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="2x1d"))
    await pruned(server)
    assert len(in_pool(server)) == 2
    await server.do(DeleteSnapshotPolicy(id="nightly"), NIGHTLY.but(grid="1x1d"))
    await days(server, 2)
    await pruned(server)
    assert len(in_pool(server)) == 3


def test_the_order_of_the_pool_is_that_of_the_times() -> None:
    now = 100
    assert ordered_times([10, 20, 30], now) == [10, 20, 30]
    assert ordered_times([10, 20, 1, 2, 30], now) == [10, 20, 20, 20, 30]
    assert ordered_times([10, 40, 20, 50], now) == [10, 40, 40, 50]
    assert ordered_times([10, 999, 20, 30], now) == [10, 999, 20, 30]
    assert ordered_times([], now) == []


async def test_a_snapshot_of_a_clock_that_was_behind_is_not_the_oldest(
    server: ServiceFixture,
) -> None:
    """A host without a battery for its clock takes a snapshot right after a boot."""
    await server.do(NIGHTLY)
    await days(server, 3)
    before = in_pool(server)
    server.clock.leap(-9999 * DAY)
    await days(server, 1)
    newest = in_pool(server) - before
    server.clock.leap(9999 * DAY)
    server.clock.advance(SETTLING_S)
    await purged(server)
    server.clock.advance(SETTLING_S)
    await pruned(server)
    assert in_pool(server) == before | newest
    await days(server, 2)
    await pruned(server)
    assert newest < in_pool(server)
    assert len(in_pool(server)) == 4  # it goes with the one before it
    await days(server, 1)
    await pruned(server)
    assert len(in_pool(server)) == 3
    assert not newest & in_pool(server)


def restored(server: ServiceFixture, policy: SnapshotPolicy) -> None:
    """Put the record of a policy of an older day in the place of the present one."""
    with server.service.context.store.write() as txn:
        txn.put(policy.but(revision=0))


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_older_grid_of_a_restored_store_deletes_nothing(
    server: ServiceFixture, *, grouped: bool
) -> None:
    await server.do(NIGHTLY.but(grid="1x1d", grouped=grouped))
    (old,) = all_of(server, SnapshotPolicy)
    keep = UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="9x1d")
    server.clock.advance(HOUR)
    await server.do(keep)
    await days(server, 3)
    before = in_pool(server)
    restored(server, old)
    for _twice in range(2):
        server.clock.advance(2 * HOUR)
        await pruned(server)
        assert in_pool(server) == before
    (outcome,) = all_of(server, PolicyOutcome)
    (sentence,) = outcome.prune_failures
    assert sentence.endswith("zfsiloctl schedule update nightly --keep '1x1d'")
    # Another change does not say that the grid is right.
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("calendar",), calendar="hourly"))
    await pruned(server)
    assert in_pool(server) == before
    await server.do(keep.but(grid="2x1d"))
    await pruned(server)
    assert len(in_pool(server)) == 2
    (outcome,) = all_of(server, PolicyOutcome)
    assert outcome.prune_failures == ()


async def test_a_restored_store_without_records_of_the_later_snapshots(
    server: ServiceFixture,
) -> None:
    """The marks in the pool tell, before the snapshots are adopted."""
    await server.do(NIGHTLY.but(grid="1x1d"))
    (old,) = all_of(server, SnapshotPolicy)
    await days(server, 3)
    before = in_pool(server)
    known = all_of(server)
    server.clock.advance(HOUR)
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="9x1d"))
    await days(server, 1)
    (new,) = (one for one in all_of(server) if one not in known)
    with server.service.context.store.write() as txn:
        txn.drop(new.bucket(), new.key)
    restored(server, old)
    await pruned(server)
    assert in_pool(server) == {*before, new.uid}


async def test_a_change_of_the_grid_counts_at_once(server: ServiceFixture) -> None:
    """Also in the second of the former change, and by a clock that was set back."""
    await server.do(NIGHTLY.but(grid="9x1d"))
    for leap, grid in ((0, "8x1d"), (0, "7x1d"), (-99 * DAY, "2x1d"), (99 * DAY, "1x1d")):
        server.clock.leap(leap)
        versions = {one.grid_version for one in all_of(server, SnapshotPolicy)}
        await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid=grid))
        assert all_of(server, SnapshotPolicy)[0].grid_version > max(versions)
    await days(server, 3)
    await pruned(server)
    assert len(in_pool(server)) == 1
