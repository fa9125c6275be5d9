"""Limits on the calls of one caller: other callers have places and threads of their own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import create, front_of, refused
from tests.api.test_gateway import eventually
from zfsilod.api.rpc import call_limits, guard, messages
from zfsilod.model.errors import ResourceExhausted
from zfsilod.model.identity import Peer
from zfsilod.service.rooms import Rooms

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from zfsilod.wire.stub import Api

LIST = "/zfsilo.v1.VolumeService/ListVolumes"
WATCH = operation_pb2.WatchOperationsRequest()


@pytest.fixture(autouse=True)
def _short_refusal(monkeypatch: Any) -> None:
    monkeypatch.setattr(guard, "REFUSAL_S", 0.05)


async def hello(api: Api) -> None:
    await api.volumes.ListVolumes(pb.ListVolumesRequest(), timeout=5)


def without_a_body(front: Front, channel: Any) -> Any:
    """Start a call whose request never comes."""
    call = channel.stream_unary(LIST)()
    front.relays.append(call.cancel)
    return call


async def cancelled(front: Front) -> None:
    """Cancel the calls, and wait until the server has noticed."""
    for cancel in front.relays:
        cancel()
    front.relays.clear()
    await asyncio.sleep(0.5)


@pytest.mark.parametrize("who", ["reader", "node", "token"])
async def test_calls_without_a_request_hold_nobody_up(front: Front, who: str) -> None:
    access = front.access(token=front.token("reader", "mon"))
    for _connection in range(8):
        match who:
            case "reader":
                access = front.certified("reader", "mon")
                front.channel_as(access)
            case "token":
                front.channel_as(access)
            case _:
                options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
                front.keep(grpc.aio.insecure_channel(f"unix:{front.node_path}", options=options))
        channel = front.channels[-1]
        for _stream in range(128):
            without_a_body(front, channel)
    await asyncio.sleep(0.5)
    for api in (front.root(), front.role("controller", "csi"), front.role("host", "take")):
        await hello_info(api)
    if who != "node":
        await hello_info(front.node())
    await cancelled(front)


async def hello_info(api: Api) -> None:
    await api.service.GetServerInfo(service_pb2.GetServerInfoRequest(), timeout=5)


async def test_a_call_beyond_the_limit_says_so(front: Front) -> None:
    # Connections of one user; each carries 128 calls.
    channels = [front.channel_as(front.certified("reader", "mon")) for _connection in range(3)]
    calls = [without_a_body(front, channel) for channel in channels for _call in range(128)]
    beyond = len(calls) - call_limits.MAX_CALLS
    await eventually(lambda: sum(call.done() for call in calls) == beyond)
    codes = {await call.code() for call in calls if call.done()}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    await cancelled(front)
    await hello_info(front.role("reader", "mon"))


async def test_the_request_must_come_in_time(front: Front, monkeypatch: Any) -> None:
    monkeypatch.setattr(messages, "FIRST_MESSAGE_S", 0.3)
    front.role("reader", "mon")
    front.root()
    for channel in front.channels[-2:]:
        silent = without_a_body(front, channel)
        assert await asyncio.wait_for(silent.code(), 5) == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_token_from_two_addresses_is_one_caller() -> None:
    limits = call_limits.CallLimits(1)
    with limits.enter(Peer(kind="tcp", address="10.0.0.1", token="t1"), lasts=False):
        with pytest.raises(ResourceExhausted):
            limits.enter(Peer(kind="tcp", address="10.0.0.2", token="t1"), lasts=False)
        limits.enter(Peer(kind="tcp", address="10.0.0.1", token="t2"), lasts=False)


REGISTER = host_pb2.RegisterHostRequest(host=host_pb2.Host(iqn="iqn.2024-01.lab.other:host"))


async def test_changes_have_a_pace(tmp_path: Path, monkeypatch: Any) -> None:
    """A caller that registers again and again waits, on all its connections, and nobody else."""
    monkeypatch.setitem(call_limits.PACES, "RegisterHost", (2, 0.01))
    async with front_of(tmp_path) as front:
        host, again, other = (front.role("host", name) for name in ("a", "a", "b"))
        for api in (host, again):
            await api.hosts.RegisterHost(REGISTER)
        with refused("DEADLINE_EXCEEDED"):
            await again.hosts.RegisterHost(REGISTER, timeout=0.5)
        other_iqn = host_pb2.Host(iqn="iqn.2024-01.lab.other:b")
        await other.hosts.RegisterHost(host_pb2.RegisterHostRequest(host=other_iqn), timeout=5)
        await hello_info(host)
        for number in range(4):
            host_of_root = host_pb2.Host(name=f"hosts/r{number}", iqn=f"iqn.2024-01.lab.r:{number}")
            request = host_pb2.RegisterHostRequest(host=host_of_root)
            await front.root().hosts.RegisterHost(request, timeout=5)


@pytest.mark.parametrize("work", ["a change", "a read"])
async def test_refusals_have_a_pace(tmp_path: Path, monkeypatch: Any, work: str) -> None:
    """They are audited, so that a caller in a loop would fill the journal."""
    monkeypatch.setitem(call_limits.PACES, call_limits.REFUSED, (2, 0.01))
    async with front_of(tmp_path) as front:
        reader = front.role("reader", "mon")

        async def call(timeout: float) -> None:
            if work == "a change":
                await reader.volumes.DeleteVolume(pb.DeleteVolumeRequest(), timeout=timeout)
            else:
                await reader.service.ListOrphans(service_pb2.ListOrphansRequest(), timeout=timeout)

        for _call in range(2):
            with refused("PERMISSION_DENIED", "ROLE"):
                await call(5)
        with refused("DEADLINE_EXCEEDED"):
            await call(0.5)
        await hello_info(reader)


async def test_a_call_without_a_request_is_refused(front: Front) -> None:
    front.root()
    call = front.channels[-1].stream_unary(LIST)()
    await call.done_writing()
    with refused("INVALID_ARGUMENT", "MALFORMED"):
        await call


async def test_watches_are_limited(front: Front) -> None:
    reader, other = front.role("reader", "mon"), front.role("reader", "other")
    most = call_limits.MAX_CALLS // call_limits.LASTING_SHARE
    watches = [reader.operations.WatchOperations(WATCH) for _watch in range(most)]
    for watch in watches:
        await watch.read()
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
        await reader.operations.WatchOperations(WATCH).read()
    await hello_info(reader)
    await other.operations.WatchOperations(WATCH).read()
    await front.root().operations.WatchOperations(WATCH).read()
    watches[0].cancel()
    await asyncio.sleep(0.3)
    await reader.operations.WatchOperations(WATCH).read()


async def test_the_limit_is_configured(tmp_path: Path) -> None:
    async with front_of(tmp_path, max_calls=8) as front:
        front.fixture.launcher.gate.clear()  # no operation ends
        api = front.role("controller", "csi")
        root = front.root()
        for number in range(8):
            call = api.volumes.CreateVolume(create(f"v{number}"), timeout=60)
            front.relays.append(call.cancel)
        await asyncio.sleep(0.5)
        with refused("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
            await api.service.GetServerInfo(service_pb2.GetServerInfoRequest())
        await hello_info(root)


async def test_threads_of_one_kind_of_caller_are_not_those_of_root(front: Front) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Rooms())
    gate = threading.Event()
    real = front.service.context.store.read

    def slow() -> Any:
        if threading.current_thread().name.startswith("room tcp"):
            gate.wait(20)
        return real()

    front.service.context.store.read = slow  # type: ignore[method-assign]
    reader = front.role("reader", "mon")
    try:
        calls = [reader.volumes.ListVolumes(pb.ListVolumesRequest()) for _call in range(40)]
        for call in calls:
            front.relays.append(call.cancel)
        await eventually(lambda: len(threading.enumerate()) > 6)
        await hello(front.root())
    finally:
        gate.set()
    await asyncio.gather(*calls)
