"""Replication policies: their records, their runs between two servers, and failures."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import replication_pb2 as pb
from zfsilo.v1 import service_pb2, volume_pb2

from tests.api.running import DATA, create, refused
from tests.service_fixture import DEADLINE_S
from zfsilod.model.identity import DAEMON
from zfsilod.model.policies import ReplicationOutcome, ReplicationPolicy
from zfsilod.model.records import Volume
from zfsilod.model.replica import Replication
from zfsilod.requests.replication import ReplicateVolume
from zfsilod.storage.selection import selected, volume_labels
from zfsilod.storage.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.replica_pair import ReplicaPair
    from zfsilod.model.records import Operation

HOUR_S = 3600
NAME = "replicationPolicies/hourly"
POLICY = pb.ReplicationPolicy(peer="other", calendar="hourly", selector={"app": "db"})
CREATE = pb.CreateReplicationPolicyRequest(policy_id="hourly", policy=POLICY)
RUN = pb.RunReplicationPolicyRequest(name=NAME)
GET = pb.GetReplicationPolicyRequest(name=NAME)


def changed(base: Any, **fields: Any) -> Any:
    """Return a request to create a policy with other values."""
    request = type(base)()
    request.CopyFrom(base)
    request.policy.MergeFrom(pb.ReplicationPolicy(**fields))
    return request


async def volumes(pair: ReplicaPair, **labels: dict[str, str]) -> None:
    """Create more volumes on the server that sends, by name and labels."""
    for name, own in labels.items():
        await pair.give.root().volumes.CreateVolume(create(name, labels=own))


def outcome(pair: ReplicaPair) -> ReplicationOutcome:
    empty = ReplicationOutcome(id="hourly")
    return pair.give.read(lambda txn: txn.get(ReplicationOutcome, "hourly")) or empty


def sent(pair: ReplicaPair) -> dict[str, int]:
    """Return how often each volume has arrived."""
    known: dict[str, int] = pair.give.read(
        lambda txn: {one.volume: one.number for one in txn.scan(Replication)}
    )
    return known


async def test_a_policy_from_its_creation_to_its_end(pair: ReplicaPair) -> None:
    api = pair.give.root().replications
    request = changed(CREATE, volumes=[DATA, DATA], bytes_per_second=1 << 20)
    made = (await api.CreateReplicationPolicy(request)).policy
    assert made == await api.GetReplicationPolicy(GET)
    assert (made.name, made.peer, made.calendar) == (NAME, "other", "hourly")
    assert (dict(made.selector), list(made.volumes)) == ({"app": "db"}, [DATA])
    assert (made.bytes_per_second, list(made.selected)) == (1 << 20, [DATA])
    assert (await api.CreateReplicationPolicy(request)).policy == made
    with refused("ALREADY_EXISTS"):
        await api.CreateReplicationPolicy(changed(request, calendar="daily"))
    update = pb.UpdateReplicationPolicyRequest(
        policy=pb.ReplicationPolicy(name=NAME, calendar="daily", peer="x"),
        update_mask=FieldMask(paths=["calendar", "volumes", "bytes_per_second"]),
        etag=made.etag,
    )
    after = (await api.UpdateReplicationPolicy(update)).policy
    assert (after.calendar, after.peer, list(after.volumes)) == ("daily", "other", [])
    assert (after.bytes_per_second, list(after.selected)) == (0, [])
    with refused("ABORTED", "ETAG"):
        await api.UpdateReplicationPolicy(update)
    request = pb.ListReplicationPoliciesRequest(filter="peer = other")
    assert list((await api.ListReplicationPolicies(request)).policies) == [after]
    gone = await api.DeleteReplicationPolicy(pb.DeleteReplicationPolicyRequest(name=NAME))
    assert not gone.HasField("policy")
    with refused("NOT_FOUND"):
        await api.GetReplicationPolicy(GET)


async def test_a_policy_does_not_come_to_select_every_volume(pair: ReplicaPair) -> None:
    api = pair.give.root().replications
    await api.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    named = pb.UpdateReplicationPolicyRequest(
        policy=pb.ReplicationPolicy(name=NAME), update_mask=FieldMask(paths=["selector"])
    )
    after = (await api.UpdateReplicationPolicy(named)).policy
    assert (dict(after.selector), list(after.volumes)) == ({}, [DATA])
    everything = pb.UpdateReplicationPolicyRequest(
        policy=pb.ReplicationPolicy(name=NAME), update_mask=FieldMask(paths=["selector", "volumes"])
    )
    with refused("INVALID_ARGUMENT", "SELECTS_ALL"):
        await api.UpdateReplicationPolicy(everything)
    assert await api.GetReplicationPolicy(GET) == after
    everything.select_all = True
    assert not (await api.UpdateReplicationPolicy(everything)).policy.volumes


async def test_what_is_refused(pair: ReplicaPair) -> None:
    api = pair.give.root().replications
    for fields, code, reason in (
        ({"peer": "nowhere"}, "NOT_FOUND", "NO_SERVER"),
        ({"peer": "a/b"}, "INVALID_ARGUMENT", "BAD_ID"),
        ({"calendar": "whenever"}, "INVALID_ARGUMENT", "BAD_CALENDAR"),
        ({"bytes_per_second": 1024}, "INVALID_ARGUMENT", "BAD_RATE"),
        ({"volumes": ["data"]}, "INVALID_ARGUMENT", "BAD_NAME"),
        ({"max_delay_seconds": 86401}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ):
        with refused(code, reason):
            await api.CreateReplicationPolicy(changed(CREATE, **fields))
    await api.CreateReplicationPolicy(CREATE)
    for role in ("controller", "reader"):
        other = pair.give.role(role, "x").replications
        assert (await other.GetReplicationPolicy(GET)).id == "hourly"
        for method, request in (
            (other.CreateReplicationPolicy, CREATE),
            (other.RunReplicationPolicy, RUN),
        ):
            with refused("PERMISSION_DENIED", "ROLE"):
                await method(request)


async def test_a_run_sends_what_is_selected(pair: ReplicaPair) -> None:
    api = pair.give.root().replications
    await volumes(pair, log={"app": "db"}, web={"app": "web"})
    await api.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    dry = pb.RunReplicationPolicyRequest(name=NAME, validate_only=True)
    assert len((await api.RunReplicationPolicy(dry)).operations) == 2
    assert sent(pair) == {}
    pair.write(0, "a")
    done = await api.RunReplicationPolicy(RUN)
    assert len(done.operations) == 2
    assert sent(pair) == {"data": 1, "log": 1}
    assert pair.is_same()
    assert done.policy.run_time == done.policy.success_time
    assert not done.policy.running
    await api.RunReplicationPolicy(RUN)
    assert sent(pair) == {"data": 2, "log": 2}
    # The peer has replicas only: its own policy, of all volumes, selects none of them.
    everything = ReplicationPolicy(id="all", peer="give", calendar="daily")
    labels = pair.other.read(volume_labels)
    for policy in (everything, everything.but(volumes=("data",))):
        assert selected(policy, labels) == []


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["data", "log", "web"]),
        ({"selector": (("app", "db"),)}, ["log"]),
        ({"volumes": ("data",)}, ["data"]),
        ({"selector": (("app", "db"),), "volumes": ("data", "gone")}, ["data", "log"]),
    ],
)
def test_selection(fields: dict[str, Any], names: list[str]) -> None:
    labels = {"data": set(), "log": {("app", "db")}, "web": {("app", "web")}}
    policy = ReplicationPolicy(id="p", peer="other", calendar="daily", **fields)
    assert selected(policy, labels) == names


async def test_a_volume_that_fails_does_not_stop_the_others(pair: ReplicaPair) -> None:
    root = pair.give.root()
    await volumes(pair, log={"app": "db"})
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA, "volumes/gone"]))
    await pair.other.root().volumes.CreateVolume(create("data"))  # of another uid
    with refused("UNAVAILABLE", "POLICY_FAILED"):
        await root.replications.RunReplicationPolicy(RUN)
    assert sent(pair) == {"data": 0, "log": 1}
    shown = await root.replications.GetReplicationPolicy(GET)
    assert [line.partition(":")[0] for line in shown.failures] == ["data", "gone"]
    assert shown.HasField("run_time")
    assert not shown.HasField("success_time")
    status = await root.service.GetStatus(service_pb2.GetStatusRequest())
    (problem,) = (one for one in status.attention if one.subject == NAME)
    assert problem.sentence.startswith("replication policy hourly could not send a volume: data: ")
    assert problem.sentence.endswith(" and 1 more")
    assert problem.command == "zfsiloctl replication show hourly"


def slow_waits(monkeypatch: pytest.MonkeyPatch, pair: ReplicaPair) -> Callable[[], None]:
    """Let runs wait for the end of their operations until the function is called."""
    service, go_on = pair.give.service, asyncio.Event()
    wait = service.wait

    async def waiting(operation_id: str, timeout_s: float) -> Operation:
        if service.operation(operation_id).kind == ReplicateVolume.kind:
            await go_on.wait()
        return await wait(operation_id, timeout_s)

    monkeypatch.setattr(service, "wait", waiting)
    return go_on.set


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("rate", "at_once"), [(0, 2), (1 << 20, 1)])
async def test_some_volumes_at_a_time_and_one_run(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch, rate: int, at_once: int
) -> None:
    root = pair.give.root()
    await volumes(pair, log={"app": "db"}, web={"app": "db"})
    await root.replications.CreateReplicationPolicy(
        changed(CREATE, volumes=[DATA], bytes_per_second=rate)
    )
    go_on = slow_waits(monkeypatch, pair)
    runs = [asyncio.ensure_future(root.replications.RunReplicationPolicy(RUN)) for _ in range(2)]
    await until(lambda: len(sent(pair)) == at_once)
    assert (await root.replications.GetReplicationPolicy(GET)).running
    await asyncio.sleep(0.1)
    assert len(sent(pair)) == at_once
    go_on()
    for done in await asyncio.gather(*runs):
        assert len(done.operations) == 3
    assert sent(pair) == {"data": 1, "log": 1, "web": 1}


async def test_a_run_that_ends_with_the_daemon_begins_again(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, service = pair.give.root(), pair.give.service
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    go_on = slow_waits(monkeypatch, pair)
    runner = service.replication_policies
    waits = asyncio.ensure_future(runner.run("hourly", caller=DAEMON))
    await until(lambda: sent(pair) == {"data": 1})
    await runner.repeat_missed()  # it runs
    await runner.close()
    assert waits.cancelled() or (await asyncio.gather(waits, return_exceptions=True))
    assert outcome(pair).missed
    go_on()
    await runner.repeat_missed()
    await until(lambda: not outcome(pair).missed)
    assert sent(pair) == {"data": 2}
    assert outcome(pair).succeeded_at
    await runner.repeat_missed()
    assert sent(pair) == {"data": 2}


async def test_a_policy_that_is_deleted_during_a_run_leaves_no_outcome(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pair.give.root()
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    go_on = slow_waits(monkeypatch, pair)
    runner = pair.give.service.replication_policies
    waits = asyncio.ensure_future(runner.run("hourly", caller=DAEMON))
    await until(lambda: sent(pair) == {"data": 1})
    await root.replications.DeleteReplicationPolicy(pb.DeleteReplicationPolicyRequest(name=NAME))
    go_on()
    assert len((await waits).operations) == 1
    assert pair.give.read(lambda txn: list(txn.scan(ReplicationOutcome))) == []
    # What is kept for the peer stays until the end of the replication.
    assert pair.give.read(lambda txn: txn.get(Volume, "data")) is not None
    assert sent(pair) == {"data": 1}
    with refused("NOT_FOUND"):
        await root.replications.RunReplicationPolicy(RUN)


async def test_a_policy_that_is_created_again_during_a_run_is_another_one(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, service = pair.give.root(), pair.give.service
    await volumes(pair, log={})
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    go_on = slow_waits(monkeypatch, pair)
    former = asyncio.ensure_future(service.replication_policies.run("hourly", caller=DAEMON))
    await until(lambda: sent(pair) == {"data": 1})
    await root.replications.DeleteReplicationPolicy(pb.DeleteReplicationPolicyRequest(name=NAME))
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=["volumes/log"]))
    run = asyncio.ensure_future(service.replication_policies.run("hourly", caller=DAEMON))
    await until(lambda: sent(pair) == {"data": 1, "log": 1})  # it does not join the former one
    go_on()
    assert [len((await one).operations) for one in (former, run)] == [1, 1]


async def test_the_outcome_of_a_run_is_not_that_of_another_policy(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, service = pair.give.root(), pair.give.service
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    go_on = slow_waits(monkeypatch, pair)
    former = asyncio.ensure_future(service.replication_policies.run("hourly", caller=DAEMON))
    await until(lambda: sent(pair) == {"data": 1})
    await root.replications.DeleteReplicationPolicy(pb.DeleteReplicationPolicyRequest(name=NAME))
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    go_on()
    await former
    assert outcome(pair) == ReplicationOutcome(id="hourly")


async def shown(pair: ReplicaPair) -> Any:
    """Return what the server that sends tells of the volume and its peer."""
    volume = await pair.give.root().volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))
    return volume.replications[0]


async def test_a_volume_is_late_when_the_second_run_was_due(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pair.give.root()
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    before = int(pair.give.service.context.now())
    await root.replications.RunReplicationPolicy(RUN)
    known = await shown(pair)
    assert 0 <= known.due_time.seconds - before - 2 * HOUR_S < DEADLINE_S
    summary = pair.give.read(Summary)
    assert summary.due == {("data", "other"): known.due_time.seconds}
    assert summary.late(known.due_time.seconds) == []
    (late,) = summary.late(known.due_time.seconds + 1)
    assert late.subject == DATA
    assert late.sentence.startswith("other has no snapshot of it that is new enough")
    # By hand: the calendar is that of the policy, so it is due when it was.
    await pair.replicate()
    assert (await shown(pair)).due_time == known.due_time
    clock = SimpleNamespace(now=lambda: known.due_time.seconds + 1)
    monkeypatch.setattr(pair.give.service.context, "clock", clock)
    status = await root.service.GetStatus(service_pb2.GetStatusRequest())
    assert late.sentence in [one.sentence for one in status.attention]


@pytest.mark.parametrize(
    "fields", [{"volumes": ["volumes/log"]}, {"calendar": "daily"}, {"peer": "third"}]
)
async def test_a_volume_that_a_policy_does_not_send_any_more_is_not_late(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    root = pair.give.root()
    await root.replications.CreateReplicationPolicy(changed(CREATE, volumes=[DATA]))
    await root.replications.RunReplicationPolicy(RUN)
    assert (await shown(pair)).HasField("due_time")
    servers = pair.give.service.context.servers
    access = servers.access("other")
    monkeypatch.setattr(servers, "access", lambda _name: access)  # of the third peer
    update = pb.UpdateReplicationPolicyRequest(
        policy=pb.ReplicationPolicy(name=NAME, **fields), update_mask=FieldMask(paths=list(fields))
    )
    await root.replications.UpdateReplicationPolicy(update)
    assert not (await shown(pair)).HasField("due_time")
    assert pair.give.read(Summary).due == {}
