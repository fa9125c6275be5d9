"""Snapshot policies: their records, runs, deletions by the grid, and timers."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import DEADLINE_S, administrator
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.model.records import Dependent, Operation, Snapshot, SnapshotGroup
from zfsilod.model.retention_grid import kept_times, parse_grid
from zfsilod.requests.replication_policies import (
    CreateReplicationPolicy,
    DeleteReplicationPolicy,
)
from zfsilod.requests.snapshot_policies import (
    CreateSnapshotPolicy,
    DeleteSnapshotPolicy,
    UpdateSnapshotPolicy,
)
from zfsilod.requests.snapshots import CreateSnapshot, DeleteSnapshot, DeleteSnapshotGroup
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.policies import snapshot_id
from zfsilod.service.policy_timers import TimerKeeper
from zfsilod.service.pool_scan import unknown_snapshots
from zfsilod.service.pruner import Pruner
from zfsilod.service.retention import SETTLING_S, Retention
from zfsilod.service.supervisor import Supervisor
from zfsilod.storage.summary import Summary

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.policies import TimedPolicy

GIB, HOUR, DAY = 1 << 30, 3600, 86400
DB = (("app", "db"),)
DATA = CreateVolume(id="data", capacity_bytes=GIB, labels=DB)
LOG = CreateVolume(id="log", capacity_bytes=GIB, labels=(("app", "db"), ("tier", "1")))
WEB = CreateVolume(id="web", capacity_bytes=GIB, labels=(("app", "web"),))
NIGHTLY = CreateSnapshotPolicy(id="nightly", calendar="daily", grid="2x1d", selector=DB)
TIMER = "zfsilo-snapshot@nightly.timer"
ME = administrator("test")


@pytest.fixture
async def server(fixture: ServiceFixture) -> ServiceFixture:
    """A server with three volumes, whose clock the test sets."""
    fixture.service.context.clock = fixture.clock
    await fixture.do(DATA, LOG, WEB)
    return fixture


async def run(server: ServiceFixture, policy: str = "nightly") -> tuple[str, ...]:
    done = await server.service.policies.run(policy, caller=ME)
    return done.failures


async def pruned(server: ServiceFixture, pruner: Pruner | None = None) -> None:
    await (pruner or Pruner(server.service.context, server.service)).prune()


def all_of(server: ServiceFixture, kind: Any = Snapshot) -> list[Any]:
    with server.service.context.read() as txn:
        return list(txn.scan(kind))


def ids(server: ServiceFixture, kind: Any = Snapshot) -> list[str]:
    return [record.id for record in all_of(server, kind)]


def outcome(server: ServiceFixture, policy: str = "nightly") -> PolicyOutcome:
    with server.service.context.read() as txn:
        record = txn.get(PolicyOutcome, policy)
    assert record is not None
    return record


async def test_a_policy_is_created_once(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid=" 2x1d  4x1w "))
    (policy,) = all_of(server, SnapshotPolicy)
    assert (policy.grid, policy.calendar, policy.selector) == ("2x1d 4x1w", "daily", DB)
    assert (await server.do(NIGHTLY.but(grid="2x1d 4x1w"))).title.endswith("already so")
    with pytest.raises(AlreadyExists, match="with another grid"):
        await server.do(NIGHTLY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"calendar": "whenever"}, "BAD_CALENDAR"),
        ({"calendar": ""}, "BAD_CALENDAR"),
        ({"calendar": "-1"}, "BAD_CALENDAR"),
        ({"calendar": "daily\nPersistent=no"}, "BAD_CALENDAR"),
        ({"calendar": "1" * 201}, "BAD_CALENDAR"),
        ({"grid": "24"}, "BAD_GRID"),
        ({"id": "Night"}, "BAD_ID"),
        ({"id": "n" * 41}, "BAD_ID"),
        ({"id": "night.timer"}, "BAD_ID"),
        ({"selector": (("", "x"),)}, "INVALID_ARGUMENT"),
        ({"max_delay_seconds": -1}, "INVALID_ARGUMENT"),
        ({"max_delay_seconds": 86401}, "INVALID_ARGUMENT"),
    ],
)
async def test_invalid_policies_are_refused(
    fixture: ServiceFixture, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await fixture.do(NIGHTLY.but(**change))
    assert refused.value.reason == reason
    assert ids(fixture, SnapshotPolicy) == []


async def test_update_and_delete_a_policy(server: ServiceFixture) -> None:
    await server.do(NIGHTLY)
    before = all_of(server, SnapshotPolicy)[0]
    update = UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="1x1h", calendar="foo")
    await server.do(update.but(etag=str(before.revision)))
    after = all_of(server, SnapshotPolicy)[0]
    assert (after.grid, after.calendar, after.created_at) == ("1x1h", "daily", before.created_at)
    with pytest.raises(Busy, match="changed since"):
        await server.do(update.but(etag=str(before.revision)))
    for mask in ((), ("id",), ("grid", "volumes")):
        with pytest.raises(InvalidArgument, match="update mask"):
            await server.do(update.but(mask=mask))
    with pytest.raises(InvalidArgument, match="invalid calendar"):
        await server.do(update.but(mask=("calendar",), calendar="foo"))
    everything = update.but(mask=("selector",), selector=())
    with pytest.raises(InvalidArgument, match="would select every volume") as refused:
        await server.do(everything)
    assert refused.value.reason == "SELECTS_ALL"
    assert all_of(server, SnapshotPolicy) == [after]
    await server.do(everything.but(select_all=True))
    await server.do(everything)  # as before
    await server.do(everything.but(selector=DB))
    await run(server)
    await server.do(DeleteSnapshotPolicy(id="nightly"))
    assert ids(server, SnapshotPolicy) == ids(server, PolicyOutcome) == []
    assert len(ids(server)) == 2
    for request in (DeleteSnapshotPolicy(id="nightly"), update):
        with pytest.raises(NotFound):
            await server.do(request)


async def test_a_run_takes_a_snapshot_of_each_selected_volume(server: ServiceFixture) -> None:
    await server.do(NIGHTLY)
    moment = time.strftime("%Y%m%dt%H%M", time.gmtime(server.clock.now()))
    assert await run(server) == ()
    taken = all_of(server)
    assert [one.volume for one in taken] == ["data", "log"]
    assert {one.policy for one in taken} == {"nightly"}
    assert all(one.id.startswith("nightly-20") and one.id[-len(one.volume) :] for one in taken)
    assert taken[0].id[: len("nightly-20260101t0000")] >= f"nightly-{moment}"
    facts: dict[str, Any] = server.facts
    marks = [
        fact["marks"]["zfsilo:policy"] for name, fact in facts.items() if name.startswith("cut:")
    ]
    assert marks == ["nightly", "nightly"]
    (policy,) = all_of(server, SnapshotPolicy)
    assert {one.policy_uid for one in taken} == {policy.uid} != {""}
    record = outcome(server)
    assert record.ran_at == record.succeeded_at > 0
    with pytest.raises(NotFound):
        await run(server, "none")


async def test_a_policy_without_labels_selects_every_volume(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(selector=()))
    await run(server)
    assert [one.volume for one in all_of(server)] == ["data", "log", "web"]


async def test_a_policy_that_selects_no_volume_takes_nothing(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(selector=(("app", "none"),)))
    assert await run(server) == ()
    assert ids(server) == []
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grouped",), grouped=True))
    assert await run(server) == ()


async def test_a_group_is_of_one_moment(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grouped=True))
    await run(server)
    (group,) = all_of(server, SnapshotGroup)
    assert (group.policy, group.volumes) == ("nightly", ("data", "log"))
    assert [one.id for one in all_of(server)] == [f"{group.id}-data", f"{group.id}-log"]
    assert len({one.uid for one in all_of(server)}) == 1


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_adopted_snapshot_has_its_policy(server: ServiceFixture, *, grouped: bool) -> None:
    """The store is restored from the pool: the grid of the policy goes on."""
    await server.do(NIGHTLY.but(grouped=grouped))
    await run(server)
    before = {one.id: (one.policy, one.policy_uid) for one in all_of(server)}
    context = server.service.context
    with context.store.write() as txn:
        for kind in (Snapshot, SnapshotGroup, Dependent):
            for record in list(txn.scan(kind)):
                txn.drop(kind.bucket(), record.key)
    requests, _problems = await unknown_snapshots(context)
    await server.do(*requests)
    assert {one.id: (one.policy, one.policy_uid) for one in all_of(server)} == before
    assert {(one.policy, one.policy_uid) for one in all_of(server, SnapshotGroup)} == (
        set(before.values()) if grouped else set()
    )


async def test_a_long_name_becomes_a_ulid() -> None:
    moment = "nightly-20260101t000000z"
    assert snapshot_id(moment, "data") == f"{moment}-data"
    assert len(snapshot_id(moment, "x" * 40)) == 26


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_clock_that_was_set_back_costs_no_snapshot(
    server: ServiceFixture, monkeypatch: pytest.MonkeyPatch, *, grouped: bool
) -> None:
    """The name of the moment is taken: the run takes new snapshots under another one."""
    times = [server.clock.now()]
    clock = SimpleNamespace(now=lambda: times[-1])
    monkeypatch.setattr(server.service.context, "clock", clock)
    await server.do(NIGHTLY.but(grouped=grouped))
    await run(server)
    times.append(times[0] + DAY)
    await run(server)
    times.append(times[0])
    before = set(ids(server))
    assert await run(server) == ()
    new = set(ids(server)) - before
    assert {name.rpartition("-")[0][-3:] for name in new} == {"z-2"}
    assert len(new) == 2
    assert await run(server) == ()
    assert len(ids(server)) == 8


async def test_a_dry_run_takes_nothing(server: ServiceFixture) -> None:
    await server.do(NIGHTLY)
    planned = await server.service.policies.plan("nightly", caller=ME)
    assert [operation.kind for operation in planned.operations] == ["snapshot", "snapshot"]
    assert ids(server) == []


async def test_a_failed_snapshot_does_not_stop_the_others(server: ServiceFixture) -> None:
    await server.do(NIGHTLY)
    dataset = next(name for name in server.facts if name.startswith("zvol:") and "data" in name)
    lost = server.facts[dataset]
    server.host.facts.effect(dataset, None)
    failures = await run(server)
    assert [text.partition(":")[0] for text in failures] == ["data"]
    assert [one.volume for one in all_of(server)] == ["log"]
    record = outcome(server)
    assert record.failures == failures
    assert record.succeeded_at == 0
    with server.service.context.read() as txn:
        (attention,) = [
            one for one in Summary(txn).attention if one.subject == "snapshotPolicies/nightly"
        ]
    assert failures[0] in attention.sentence
    assert attention.command == "zfsiloctl schedule show nightly"
    done = await server.service.policies.run("nightly", caller=ME)
    with pytest.raises(Unavailable) as failed:
        done.check("nightly")
    assert failed.value.reason == "POLICY_FAILED"
    server.host.facts.effect(dataset, lost)
    assert await run(server) == ()
    assert outcome(server).failures == ()
    with server.service.context.read() as txn:
        assert not Summary(txn).attention


async def hours(server: ServiceFixture, count: int, *, step: int = HOUR) -> None:
    """Run the policy and the pruner every `step` seconds."""
    for _hour in range(count):
        server.clock.advance(step)
        assert await run(server) == ()
        await pruned(server)


async def test_a_month_keeps_exactly_the_grid(server: ServiceFixture) -> None:
    """With the daemon's requests, workers and pruner; every 8 hours to be quick."""
    grid = "6x8h 7x1d 4x1w 12x1mon"
    await server.do(NIGHTLY.but(grid=grid))
    server.clock.advance(SETTLING_S)
    taken: dict[str, set[int]] = {"data": set(), "log": set()}
    for _third in range(3 * 31):
        server.clock.advance(8 * HOUR)
        assert await run(server) == ()
        for one in all_of(server):
            taken[one.volume].add(one.created_at)
        await pruned(server)
    for volume, times in taken.items():
        expected = kept_times(sorted(times), parse_grid(grid), int(server.clock.now()))
        left = [one.created_at for one in all_of(server) if one.volume == volume]
        assert sorted(left) == sorted(expected)
        assert 12 <= len(expected) <= 20
    present = [name for name in server.facts if name.startswith("cut:")]
    assert len(present) == len(all_of(server))


async def test_groups_are_deleted_by_moments(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grouped=True, grid="2x1h"))
    server.clock.advance(SETTLING_S)
    await hours(server, 5)
    assert len(ids(server, SnapshotGroup)) == 2
    assert len(ids(server)) == 4


async def test_only_what_the_policy_took_is_deleted(server: ServiceFixture) -> None:
    """By hand, of another policy, and what a deleted policy left."""
    await server.do(
        NIGHTLY.but(grid="1x1h"),
        NIGHTLY.but(id="weekly", grid="9x1w"),
        NIGHTLY.but(id="former", grid="1x1h"),
        CreateSnapshot(id="by-hand", volume="data"),
        CreateSnapshot(id="nightly-20200101t000000z-data", volume="data"),
    )
    for policy in ("weekly", "former"):
        await run(server, policy)
    await server.do(DeleteSnapshotPolicy(id="former"))
    others = set(ids(server))
    server.clock.advance(SETTLING_S)
    await hours(server, 4)
    assert others < set(ids(server))
    assert len(set(ids(server)) - others) == 2  # the newest of each volume


async def test_a_prune_checks_the_policy_in_its_transaction(server: ServiceFixture) -> None:
    await server.do(NIGHTLY, CreateSnapshot(id="by-hand", volume="data"))
    with pytest.raises(FailedPrecondition) as refused:
        await server.do(DeleteSnapshot(id="by-hand", pruned_by="nightly"))
    assert refused.value.reason == "NOT_OF_POLICY"
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grouped",), grouped=True))
    await run(server)
    (group,) = ids(server, SnapshotGroup)
    with pytest.raises(FailedPrecondition):
        await server.do(DeleteSnapshotGroup(id=group, pruned_by="weekly"))
    await server.do(DeleteSnapshotGroup(id=group, pruned_by="nightly"))


async def test_each_volume_has_a_grid_of_its_own(server: ServiceFixture) -> None:
    """What a volume has stays when the policy does not select it any more."""
    await server.do(NIGHTLY.but(grid="1x1h"))
    await run(server)
    await server.do(UpdateVolume(id="log", mask=("labels",)))
    server.clock.advance(SETTLING_S)
    await hours(server, 3)
    assert [one.volume for one in all_of(server)] == ["log", "data"]


async def test_what_is_cloned_or_held_stays(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid="1x1h", selector=(("tier", "1"),)))
    await run(server)
    cloned = ids(server)[0]
    await server.do(CreateVolume(id="copy", capacity_bytes=GIB, source_snapshot=cloned))
    server.clock.advance(HOUR)
    await run(server)
    held = next(one for one in all_of(server) if one.id != cloned)
    server.host.facts.effect(f"holds:{held.uid}", 1)
    server.clock.advance(SETTLING_S)
    await hours(server, 3)
    assert len(ids(server)) == 3
    assert {cloned, held.id} < set(ids(server))
    deletions = [one for one in all_of(server, Operation) if one.kind == "delete-snapshot"]
    assert {one.state for one in deletions} == {"DONE"}, "the pruner submits none that must fail"
    for name in (cloned, held.id):  # also when the hold begins after the pruner has looked
        with pytest.raises(Busy) as refused:
            await server.do(DeleteSnapshot(id=name, pruned_by="nightly"))
        assert refused.value.reason == "DATASET_BUSY"
    assert {cloned, held.id} < set(ids(server))
    server.host.facts.effect(f"holds:{held.uid}", None)
    await pruned(server)
    assert held.id not in ids(server)
    assert cloned in ids(server)


async def test_nothing_is_deleted_by_a_clock_that_is_not_trusted(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid="1x1h", selector=(("tier", "1"),)))
    for _hour in range(3):
        server.clock.advance(HOUR)
        await run(server)
    server.service.context.retention = Retention(server.clock)  # the daemon starts
    await pruned(server)
    server.clock.advance(SETTLING_S - 10)
    await pruned(server)
    assert len(ids(server)) == 3
    server.clock.synchronised = False
    server.clock.advance(HOUR)
    await pruned(server)
    assert len(ids(server)) == 3
    server.clock.synchronised = True
    await pruned(server)
    assert len(ids(server)) == 1


async def test_a_failed_deletion_is_shown_until_it_succeeds(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid="1x1h", selector=(("tier", "1"),)))
    for _hour in range(2):
        server.clock.advance(HOUR)
        await run(server)
    server.clock.advance(SETTLING_S)
    pruner = Pruner(server.service.context, server.service)
    server.launcher.refuses = True
    await pruned(server, pruner)
    oldest = min(ids(server))
    assert outcome(server).prune_failures[0].startswith(f"{oldest}: ")
    server.launcher.refuses = False
    await pruned(server, pruner)  # it is not tried again at once, and still shown
    assert outcome(server).prune_failures
    assert oldest in ids(server)
    await pruned(server)
    assert oldest not in ids(server)
    assert outcome(server).prune_failures == ()


class FakeTimers:
    """The timers of systemd."""

    def __init__(self) -> None:
        self.active: dict[str, str] = {"stranger": "of a policy that a restored store has not"}
        self.calls: list[str] = []

    async def present(self) -> dict[str, str]:
        return dict(self.active)

    async def start(self, policy: TimedPolicy) -> None:
        assert policy.timer not in self.active
        self.calls.append(f"start {policy.timer}")
        self.active[policy.timer] = policy.timer_text

    async def stop(self, timer: str) -> None:
        self.calls.append(f"stop {timer}")
        del self.active[timer]


async def test_timers_follow_the_policies(server: ServiceFixture) -> None:
    timers = FakeTimers()
    keeper = TimerKeeper(server.service.context, timers)
    await server.do(NIGHTLY)
    await keeper.keep()
    assert timers.calls == ["stop stranger", f"start {TIMER}"]
    await server.do(UpdateSnapshotPolicy(id="nightly", mask=("grid",), grid="3x1d"))
    await keeper.keep()
    assert len(timers.calls) == 2  # the timer is the same
    server.service.executor.listeners.append(keeper.note)
    await keeper.keep_when_due()
    for mask in ({"calendar": "hourly"}, {"max_delay_seconds": 60}):
        await server.do(UpdateSnapshotPolicy(id="nightly", mask=tuple(mask), **mask))
        await keeper.keep_when_due()
        assert timers.calls[2:] == [f"stop {TIMER}", f"start {TIMER}"]
        del timers.calls[2:]
    assert timers.active == {
        TIMER: "zfsilo: snapshots of policy nightly (hourly, up to 60 s later)"
    }
    await keeper.keep_when_due()
    assert len(timers.calls) == 2
    await server.do(DeleteSnapshotPolicy(id="nightly"))
    await keeper.keep_when_due()
    assert timers.active == {}


async def test_a_timer_that_systemd_refuses_is_a_failure_of_its_policy_only(
    server: ServiceFixture,
) -> None:
    other = "zfsilo-replicate@nightly.timer"

    class Refusing(FakeTimers):
        refused: tuple[str, ...] = (TIMER, other)

        async def start(self, policy: TimedPolicy) -> None:
            if policy.timer in self.refused:
                raise Unavailable("Invalid calendar spec", reason="SYSTEMD")
            await super().start(policy)

    timers = Refusing()
    keeper = TimerKeeper(server.service.context, timers)
    await server.do(
        NIGHTLY,
        NIGHTLY.but(id="weekly"),
        CreateReplicationPolicy(id="nightly", peer="other", calendar="hourly"),
    )
    for _pass in range(2):
        await keeper.keep()
    assert list(timers.active) == ["zfsilo-snapshot@weekly.timer"]
    with server.service.context.read() as txn:
        summary = Summary(txn)
    assert [one.sentence for one in summary.attention] == [
        f"policy nightly has no timer: {TIMER}: Invalid calendar spec",
        f"replication policy nightly has no timer: {other}: Invalid calendar spec",
    ]
    assert summary.policies["nightly"].failed == 1  # in the metrics, and the alerts
    await run(server)
    assert outcome(server).timer_failure  # a run by hand does not end it
    timers.refused = ()
    await keeper.keep()
    with server.service.context.read() as txn:
        assert not Summary(txn).attention


async def test_a_run_that_ends_with_the_daemon_begins_again(
    server: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.do(NIGHTLY)
    runner, begun = server.service.policies, asyncio.Event()

    async def waiting(_operation: str, _timeout_s: float) -> Operation:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as stopped:
        stopped.setattr(server.service, "wait", waiting)
        first = asyncio.ensure_future(run(server))
        await asyncio.wait_for(begun.wait(), DEADLINE_S)
        await asyncio.wait_for(runner.repeat_missed(), DEADLINE_S)  # it runs
        first.cancel()
        await asyncio.wait({first})
    assert outcome(server).missed
    # One that is stored now, after its request was cancelled, is launched all the same.
    await server.service.context.write(lambda _txn: None)  # after all that wait
    for operation in all_of(server, Operation):
        await server.service.wait(operation.id, DEADLINE_S)
    taken = len(ids(server))  # of one volume, or of both
    await runner.repeat_missed()
    assert not outcome(server).missed
    assert len(ids(server)) == taken + 2
    await runner.repeat_missed()
    assert len(ids(server)) == taken + 2


async def test_a_replication_policy_has_a_timer_of_its_own(server: ServiceFixture) -> None:
    timers = FakeTimers()
    keeper = TimerKeeper(server.service.context, timers)
    await server.do(NIGHTLY)
    await server.do(CreateReplicationPolicy(id="nightly", peer="other", calendar="hourly"))
    await keeper.keep()
    assert timers.active == {
        TIMER: "zfsilo: snapshots of policy nightly (daily)",
        "zfsilo-replicate@nightly.timer": "zfsilo: replication of policy nightly (hourly)",
    }
    server.service.executor.listeners.append(keeper.note)
    await keeper.keep_when_due()
    await server.do(DeleteReplicationPolicy(id="nightly"))
    await keeper.keep_when_due()
    assert list(timers.active) == [TIMER]


async def test_the_supervisor_prunes_and_keeps_the_timers(server: ServiceFixture) -> None:
    await server.do(NIGHTLY.but(grid="1x1h", selector=(("tier", "1"),)))
    for _hour in range(2):
        server.clock.advance(HOUR)
        await run(server)
    supervisor, timers = Supervisor(server.service, retention_s=DAY), FakeTimers()
    supervisor.timers = TimerKeeper(server.service.context, timers)
    await supervisor.act()
    assert timers.calls == ["stop stranger", f"start {TIMER}"]
    async with asyncio.timeout(DEADLINE_S):
        while len(ids(server)) > 1:
            await server.service.executor.wait_for_change(1)


async def test_a_daemon_with_a_policy_does_not_exit(fixture: ServiceFixture) -> None:
    assert not fixture.service.holds_anything()
    await fixture.do(NIGHTLY)
    assert fixture.service.holds_anything()
