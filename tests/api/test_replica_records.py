"""Replicas whose record, store or receive was lost halfway, and what a peer may fill."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import volume_pb2

from tests.api.replica_pair import DATASET
from tests.api.running import DATA, refused
from tests.api.test_replication import CutAfter
from tests.service_fixture import administrator
from tests.worker_rig import Killed
from zfsilod.gateway import dial
from zfsilod.host.fake.replicas import FakeReplicas
from zfsilod.model.errors import ResourceExhausted
from zfsilod.model.pool_space import PoolSpace, check_reserve
from zfsilod.model.records import Volume
from zfsilod.model.replica import Replication
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.service import replication
from zfsilod.wire.storage_server import StorageServers

if TYPE_CHECKING:
    from tests.api.replica_pair import ReplicaPair

ADOPT = volume_pb2.AdoptVolumesRequest()
DELETE = volume_pb2.DeleteVolumeRequest(name=DATA)


def lose_record(pair: ReplicaPair) -> None:
    """Remove the record of the replica, as the loss of a store does."""
    pair.other.write(lambda txn: txn.drop(Volume.bucket(), "data"))


def check_current(pair: ReplicaPair) -> None:
    """Check that the replica has the newest snapshot, and that its record says so."""
    assert pair.is_same()
    known = pair.give.read(lambda txn: next(txn.scan(Replication)))
    assert [*pair.zvol()["replica_sets"]] == [known.snapshot_uid]
    replica = pair.replica()
    assert (replica.state, replica.replica.snapshot_guid) == ("CREATED", known.snapshot_guid)
    assert replica.replica.snapshot_uid == known.snapshot_uid
    assert replica.replica.taken_at == known.taken_at


async def test_a_worker_that_is_killed_behind_its_receive(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = FakeReplicas.receive
    killed = threading.Event()

    def killing(replicas: FakeReplicas, *args: Any, **fields: Any) -> None:
        receive(replicas, *args, **fields)
        if not killed.is_set():
            killed.set()
            raise Killed("behind zfs receive")

    monkeypatch.setattr(FakeReplicas, "receive", killing)
    for number in range(2):
        killed.clear()
        pair.write(number, "a")
        sending = asyncio.ensure_future(pair.replicate())
        await asyncio.to_thread(killed.wait)
        (operation,) = pair.other.read(lambda txn: list(txn.live()))
        await pair.other.fixture.launcher.rollback(operation)  # as OnFailure= does
        await sending
        check_current(pair)


async def test_the_record_of_a_replica_was_lost(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    lose_record(pair)
    pair.write(1, "b")
    with refused("FAILED_PRECONDITION", "NO_RECORD"):
        await pair.replicate()
    await pair.other.root().volumes.AdoptVolumes(ADOPT)
    assert pair.replica().replica.snapshot_guid
    await pair.replicate()
    check_current(pair)


@pytest.mark.parametrize("whole", [False, True])
async def test_the_record_of_an_unfinished_replica_was_lost(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    if whole:
        pair.write(0, "a")
        await pair.replicate()
    for number in range(9):
        pair.write(number, f"block {number}")
    with monkeypatch.context() as only_now:
        only_now.setattr(replication, "ATTEMPTS_PAUSE_S", ())
        CutAfter(only_now, 500)
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate()
    await pair.receive_ended()
    assert "receiving" in pair.zvol()
    lose_record(pair)
    with refused("FAILED_PRECONDITION", "NO_RECORD"):
        await pair.replicate()
    await pair.other.root().volumes.AdoptVolumes(ADOPT)
    assert pair.replica().state == ("CREATED" if whole else "ABSENT")
    await pair.replicate()
    check_current(pair)


async def test_a_replica_that_is_deleted_while_it_receives(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    await pair.replicate()
    go_on = threading.Event()
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", (0.0,) * 4)
    carry = dial.Carrier.carry

    def waiting(carrier: dial.Carrier, peer: Any) -> None:
        go_on.wait()
        carry(carrier, peer)

    monkeypatch.setattr(dial.Carrier, "carry", waiting)
    sending = asyncio.ensure_future(pair.replicate())
    while not pair.other.read(lambda txn: txn.claimant("volume/data")):
        await asyncio.sleep(0.01)
    deleting = asyncio.ensure_future(pair.other.root().volumes.DeleteVolume(DELETE))
    try:
        ended, _waits = await asyncio.wait({sending, deleting}, timeout=1.0)
    finally:
        go_on.set()
    assert not ended
    await deleting
    await asyncio.wait({sending})  # it may find the replica, or none any more
    assert sending.exception() is None or "replicate again" in str(sending.exception())
    assert (pair.zvol(), pair.replica()) == (None, None)
    await pair.replicate()
    check_current(pair)


async def test_the_sync_makes_a_replica_read_only_again(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    zvol = pair.zvol()
    written = zvol | {"properties": zvol["properties"] | {"readonly": "off"}}
    pair.other.fixture.host.facts.effect(f"zvol:{DATASET}", written)
    await pair.other.root().volumes.SyncVolumes(volume_pb2.SyncVolumesRequest())
    assert pair.zvol()["properties"]["readonly"] == "on"


async def test_one_uid_is_received_once(pair: ReplicaPair) -> None:
    request = ReceiveReplica(
        id="first",
        peer="give",
        uid="d" * 32,
        capacity_bytes=1 << 30,
        volblocksize=16384,
        mode="BLOCK",
        filesystem=pair.volume().filesystem,
        snapshot_uid="e" * 32,
        snapshot_guid="17",
    )
    caller = administrator("a test")
    first = await pair.other.service.plan(request, caller=caller)
    second = await pair.other.service.plan(request.but(id="second"), caller=caller)
    assert {*first.claims} & {*second.claims}


async def test_nothing_is_received_below_the_reserve(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    context = pair.other.service.context
    context.settings = context.settings.but(reserve=1.0)
    pair.write(1, "b")
    with refused("RESOURCE_EXHAUSTED", "POOL_FULL"):
        await pair.replicate()
    context.settings = context.settings.but(reserve=0.0)
    await pair.replicate()
    check_current(pair)
    with pytest.raises(ResourceExhausted):
        check_reserve(
            PoolSpace(available_bytes=5, total_bytes=10), context.settings.but(reserve=0.5), "it"
        )


async def test_the_size_of_a_replica_is_that_of_its_zvol(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = StorageServers.offer

    def understated(
        servers: StorageServers, volume: Any, snapshot: Any, base: str, **fields: Any
    ) -> str:
        return offer(servers, volume, snapshot.but(size_bytes=1 << 20), base, **fields)

    monkeypatch.setattr(StorageServers, "offer", understated)
    pair.write(0, "a")
    await pair.replicate()
    assert pair.replica().capacity_bytes == pair.zvol()["size"] == 1 << 30
    assert pair.other.read(lambda txn: txn.promised()) == 1 << 30
