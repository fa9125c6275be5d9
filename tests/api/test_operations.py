"""OperationService, and changes whose caller disconnects or reaches its deadline."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from zfsilo.v1 import operation_pb2 as pb
from zfsilo.v1 import volume_pb2

from tests.api.running import DATA, create, operations, publish, refused
from tests.worker_rig import not_sticky
from zfsilod.api.rpc.call import OPERATION_METADATA, Call
from zfsilod.model.records import Volume

if TYPE_CHECKING:
    from tests.api.running import Front


async def held(front: Front, timeout: float | None = None) -> tuple[Any, str]:
    """Submit a CreateVolume that no worker starts; return the call and its operation."""
    front.fixture.launcher.gate.clear()
    call = front.early().volumes.CreateVolume(create(), timeout=timeout)
    metadata = dict(await call.initial_metadata())
    return call, str(metadata[OPERATION_METADATA])


async def eventually(question: Any) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(10):
        while not question():
            await asyncio.sleep(0.01)


async def test_the_operation_is_named_before_it_ends(front: Front) -> None:
    call, name = await held(front)
    api = front.root().operations
    operation = await api.GetOperation(pb.GetOperationRequest(name=name))
    assert (operation.state, operation.progress) == (pb.OPERATION_STATE_RUNNING, 0)
    assert (operation.kind, operation.subject, operation.title) == ("create", DATA, "create data")
    assert operation.actions[0].step.startswith("create zvol tank/zfsilo/data (1 GiB, thin, ")
    assert (operation.actions[0].up, operation.actions[0].status) == (
        True,
        pb.ACTION_STATUS_PENDING,
    )
    volume = await front.root().volumes.ListVolumes(volume_pb2.ListVolumesRequest())
    assert list(volume.volumes) == []
    front.fixture.launcher.gate.set()
    answer = await call.read()
    assert answer.operation.name == name
    assert answer.operation.actions[0].status == pb.ACTION_STATUS_DONE
    assert answer.operation.end_time.seconds
    assert await api.GetOperation(pb.GetOperationRequest(name=name)) == answer.operation


async def test_a_volume_names_its_running_operation(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    front.fixture.launcher.gate.clear()
    call = front.early().volumes.PublishVolume(publish())
    name = dict(await call.initial_metadata())[OPERATION_METADATA]
    assert (await volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))).operation == name
    front.fixture.launcher.gate.set()
    assert (await call.read()).volume.operation == ""


async def test_after_the_deadline_the_error_names_the_operation_which_continues(
    front: Front,
) -> None:
    started = time.monotonic()
    call, name = await held(front, timeout=0.7)
    with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED") as refusal:
        await call.read()
    assert 0.3 < time.monotonic() - started < 0.7
    assert f"operations/{refusal.error.facts['operation']}" == name
    assert name.removeprefix("operations/") in refusal.error.message
    front.fixture.launcher.gate.set()
    done = await front.root().operations.WaitOperation(pb.WaitOperationRequest(name=name))
    assert done.state == pb.OPERATION_STATE_DONE


@pytest.mark.parametrize(("given_s", "left_s"), [(0.3, 0.1), (5, 4.5), (600, 599), (None, 599.8)])
def test_a_part_of_the_deadline_is_for_the_reply(given_s: float | None, left_s: float) -> None:
    """A share of it: a slow network delays the reply, too."""
    context = SimpleNamespace(time_remaining=lambda: given_s)
    call = Call(Mock(), Mock(), context, set())
    assert call.left_s == pytest.approx(left_s, abs=0.02)


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_disconnected_caller_cancels_nothing(front: Front, how: str) -> None:
    call, name = await held(front)
    if how == "cancel":
        call.cancel()
    else:
        await front.channels[0].close()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call.read()
    front.fixture.launcher.gate.set()
    done = await front.root().operations.WaitOperation(pb.WaitOperationRequest(name=name))
    assert done.state == pb.OPERATION_STATE_DONE
    assert front.read(lambda txn: txn.get(Volume, "data")) is not None


async def test_a_caller_that_disconnects_during_planning_cancels_nothing(
    front: Front,
) -> None:
    looked, resume = asyncio.Event(), asyncio.Event()
    look = front.service.context.look

    async def slow(question: Any, timeout_s: float = 20) -> Any:
        looked.set()
        await resume.wait()
        return await look(question, timeout_s)

    front.service.context.look = slow  # type: ignore[method-assign]
    call = front.root().volumes.CreateVolume(create())
    sent = asyncio.ensure_future(call.code())
    await asyncio.wait_for(looked.wait(), 10)
    call.cancel()
    assert await sent == grpc.StatusCode.CANCELLED
    resume.set()
    await eventually(lambda: front.read(lambda txn: txn.get(Volume, "data")) is not None)


async def test_the_deadline_passes_before_the_operation_is_stored(front: Front) -> None:
    async def never(_question: Any, _timeout_s: float = 20) -> Any:
        await asyncio.sleep(1)
        raise AssertionError("not reached")

    front.service.context.look = never  # type: ignore[method-assign,assignment]
    with refused("DEADLINE_EXCEEDED") as refusal:
        await front.root().volumes.CreateVolume(create(), timeout=0.5)
    assert "operation" not in refusal.error.facts


async def test_the_default_deadline(front: Front, monkeypatch: Any) -> None:
    monkeypatch.setattr("zfsilod.api.rpc.call.DEFAULT_DEADLINE_S", 0.3)
    call, _name = await held(front)
    with refused("DEADLINE_EXCEEDED"):
        await call.read()
    front.fixture.launcher.gate.set()


async def test_a_failed_change_is_rolled_back_before_the_response(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    before = front.fixture.facts
    front.fixture.host.facts.light_fuse(4, when="after", how="error")
    with refused("INTERNAL", "COMMAND_FAILED") as refusal:
        await volumes.PublishVolume(publish())
    assert not_sticky(front.fixture.facts) == not_sticky(before)
    name = f"operations/{refusal.error.facts['operation']}"
    operation = await front.root().operations.GetOperation(pb.GetOperationRequest(name=name))
    assert operation.state == pb.OPERATION_STATE_ROLLED_BACK
    assert (operation.error.name, operation.error.reason) == ("CommandFailed", "COMMAND_FAILED")
    assert operation.error.step
    assert {action.status for action in operation.actions} <= {
        pb.ACTION_STATUS_PENDING,
        pb.ACTION_STATUS_UNCHANGED,
        pb.ACTION_STATUS_REVERTED,
    }
    assert operation.progress < 100
    waited = await front.root().operations.WaitOperation(pb.WaitOperationRequest(name=name))
    assert waited == operation


async def test_a_claimed_volume_is_busy_after_the_deadline(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create())
    front.fixture.launcher.gate.clear()
    first = asyncio.ensure_future(front.root().volumes.PublishVolume(publish()).code())
    await eventually(lambda: front.read(lambda txn: txn.claimant("volume/data")))
    with refused("ABORTED", "CLAIMED") as refusal:
        await api.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA), timeout=0.6)
    assert refusal.error.facts["operation"] == front.read(lambda txn: txn.claimant("volume/data"))
    same = front.early().volumes.PublishVolume(publish())
    name = dict(await same.initial_metadata())[OPERATION_METADATA]
    assert name == f"operations/{refusal.error.facts['operation']}"
    front.fixture.launcher.gate.set()
    assert (await same.read()).operation.name == name
    assert await first == grpc.StatusCode.OK
    assert [operation.kind for operation in operations(front)].count("publish") == 1


async def test_cancelling_rolls_back(front: Front) -> None:
    call, name = await held(front)
    api = front.root().operations
    stopped = await api.CancelOperation(pb.CancelOperationRequest(name=name))
    assert stopped.name == name
    with refused("ABORTED", "STOPPED"):
        await call.read()
    done = await api.WaitOperation(pb.WaitOperationRequest(name=name))
    assert done.state == pb.OPERATION_STATE_ROLLED_BACK
    again = await api.CancelOperation(pb.CancelOperationRequest(name=name))
    assert again.state == pb.OPERATION_STATE_ROLLED_BACK


async def test_repairing(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create())
    host = front.fixture.host.facts
    effect, broken = host.effect, True

    def failing(name: str, value: Any) -> None:
        from zfsilod.model.errors import CommandFailed

        if broken and (name.startswith("lun:") or value is None):
            raise CommandFailed("it is broken")
        effect(name, value)

    host.effect = failing  # type: ignore[method-assign, assignment]
    with refused("INTERNAL") as refusal:
        await api.volumes.PublishVolume(publish())
    name = f"operations/{refusal.error.facts['operation']}"
    stuck = await api.operations.GetOperation(pb.GetOperationRequest(name=name))
    assert stuck.state == pb.OPERATION_STATE_NEEDS_REPAIR
    with refused("ABORTED", "NEEDS_REPAIR"):
        await api.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    broken = False
    await api.operations.RepairOperation(pb.RepairOperationRequest(name=name))
    await eventually(lambda: not front.read(lambda txn: txn.claimant("volume/data")))
    done = await api.operations.GetOperation(pb.GetOperationRequest(name=name))
    assert done.state == pb.OPERATION_STATE_ROLLED_BACK


async def test_waiting_ends_at_the_timeout(front: Front) -> None:
    call, name = await held(front)
    request = pb.WaitOperationRequest(name=name, timeout=Duration(nanos=50_000_000))
    operation = await front.root().operations.WaitOperation(request)
    assert operation.state == pb.OPERATION_STATE_RUNNING
    request.ClearField("timeout")
    operation = await front.root().operations.WaitOperation(request, timeout=0.4)
    assert operation.state == pb.OPERATION_STATE_RUNNING
    front.fixture.launcher.gate.set()
    await call.read()


async def test_a_watch_sends_changes_and_can_be_resumed(front: Front) -> None:
    api = front.root()
    watch = api.operations.WatchOperations(
        pb.WatchOperationsRequest(filter='subject = "volumes/b"')
    )
    for name in ("a", "b"):
        await api.volumes.CreateVolume(create(name))
    seen = []
    async for change in watch:
        seen.append(change.operation)
        if change.operation.state == pb.OPERATION_STATE_DONE:
            break
    watch.cancel()
    assert {operation.subject for operation in seen} == {"volumes/b"}
    assert [operation.revision for operation in seen] == sorted(
        operation.revision for operation in seen
    )
    resumed = api.operations.WatchOperations(
        pb.WatchOperationsRequest(after_revision=seen[-1].revision)
    )
    call = asyncio.ensure_future(front.root().volumes.CreateVolume(create("c")).code())
    first = (await resumed.read()).operation
    assert (first.subject, first.revision > seen[-1].revision) == ("volumes/c", True)
    assert await call == grpc.StatusCode.OK
    resumed.cancel()
    from_start = api.operations.WatchOperations(pb.WatchOperationsRequest())
    subjects = [(await from_start.read()).operation.subject for _number in range(3)]
    assert "volumes/a" in subjects
    from_start.cancel()


async def test_an_invalid_watch_is_refused(front: Front) -> None:
    api = front.root().operations
    for request in (
        pb.WatchOperationsRequest(after_revision=-1),
        pb.WatchOperationsRequest(filter="nonsense = 1"),
    ):
        with refused("INVALID_ARGUMENT"):
            await api.WatchOperations(request).read()


async def test_invalid_names(front: Front) -> None:
    api = front.root().operations
    with refused("INVALID_ARGUMENT", "BAD_NAME"):
        await api.GetOperation(pb.GetOperationRequest(name="operations/1"))
    unknown = "operations/01jzzzzzzzzzzzzzzzzzzzzzzz"
    for method, request in (
        ("GetOperation", pb.GetOperationRequest(name=unknown)),
        ("WaitOperation", pb.WaitOperationRequest(name=unknown)),
        ("CancelOperation", pb.CancelOperationRequest(name=unknown)),
        ("RepairOperation", pb.RepairOperationRequest(name=unknown)),
    ):
        with refused("NOT_FOUND"):
            await getattr(api, method)(request)


async def test_a_server_that_stops_ends_watches_at_once(front: Front) -> None:
    watch = front.root().operations.WatchOperations(pb.WatchOperationsRequest())
    await watch.read()
    waiting = asyncio.ensure_future(watch.read())
    await asyncio.sleep(0)
    started = time.monotonic()
    await front.server.stop(5)
    assert time.monotonic() - started < 2
    with refused("UNAVAILABLE"):
        while await waiting:
            waiting = asyncio.ensure_future(watch.read())
