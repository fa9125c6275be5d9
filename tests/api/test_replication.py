"""Replication between two daemons, over TLS and both gateways."""

from __future__ import annotations

import asyncio
import select
import threading
from typing import TYPE_CHECKING, Any

import pytest
from zfsilo.v1 import operation_pb2, service_pb2, snapshot_pb2, volume_pb2

from tests.api.replica_pair import DATASET
from tests.api.running import DATA, create, refused
from zfsilod.gateway import dial
from zfsilod.host.fake.replicas import FakeReplicas
from zfsilod.model.records import Snapshot
from zfsilod.model.replica import Replication, SendJob
from zfsilod.service import replication

if TYPE_CHECKING:
    from tests.api.replica_pair import ReplicaPair
    from tests.api.running import Front


async def test_the_whole_volume_then_what_changed(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    pair.write(7, "b")
    await pair.replicate()
    assert pair.is_same()
    replica, volume = pair.replica(), pair.volume()
    assert (replica.uid, replica.dataset, replica.state) == (volume.uid, DATASET, "CREATED")
    assert replica.replica.peer == "give"
    assert pair.zvol()["properties"]["zfsilo:replica"] == "give"
    pair.write(7, "c")
    pair.write(9, "d")
    await pair.replicate()
    assert pair.is_same()
    known = pair.give.read(lambda txn: txn.get(Replication, f"{volume.uid}/other"))
    assert (known.number, known.pending_uid) == (2, "")
    assert [*pair.zvol()["replica_sets"]] == [known.snapshot_uid]
    assert pair.give.read(lambda txn: [one.id for one in txn.scan(Snapshot)]) == [known.snapshot]
    kept = pair.give.fixture.host.facts.names("peer")
    assert kept == [f"{volume.uid}/{known.snapshot_uid}/other"]


class CutAfter:
    """A socket to the peer that breaks after some bytes of a stream, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.cuts = 0
        carry = dial.Carrier.carry

        def cut(carrier: dial.Carrier, peer: Any) -> None:
            if self.cuts:
                carry(carrier, peer)
                return
            self.cuts += 1
            left = count
            while left and (piece := carrier.stream.recv(left)):
                peer.sendall(piece)
                left -= len(piece)
            raise ConnectionResetError("cut by the test")

        monkeypatch.setattr(dial.Carrier, "carry", cut)


@pytest.mark.parametrize("count", [0, 1, 200, 312, 380, 500])
async def test_a_cut_stream_goes_on_where_the_peer_is(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for number in range(9):
        pair.write(number, f"block {number}")
    wire = CutAfter(monkeypatch, count)
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", (0.0,) * 4)
    await pair.replicate()
    assert wire.cuts == 1
    assert pair.is_same()
    assert "receiving" not in pair.zvol()


async def test_a_daemon_that_stops_makes_no_other_attempt(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    wire = CutAfter(monkeypatch, 0)
    paused = asyncio.Event()
    context = pair.give.service.context

    async def pause(_seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(context, "pause", pause)
    request = volume_pb2.ReplicateVolumeRequest(name=DATA, peer="other")
    call = pair.give.root().volumes.ReplicateVolume(request)
    await asyncio.wait_for(paused.wait(), 60)
    await asyncio.wait_for(pair.give.service.stop_streams(), 60)
    assert (wire.cuts, pair.give.service.replicator.transfers) == (1, {})
    (live,) = pair.give.read(lambda txn: list(txn.live()))
    assert live.state == "WAITING"  # the next daemon performs the step
    call.cancel()


async def test_a_failed_operation_leaves_what_the_next_one_continues(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        pair.write(number, f"block {number}")
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", ())
    with monkeypatch.context() as only_now:
        CutAfter(only_now, 500)
        with refused("UNAVAILABLE", "STREAM_CUT"):
            await pair.replicate()
    await pair.receive_ended()
    taken = pair.give.read(lambda txn: [one.id for one in txn.scan(Snapshot)])
    assert taken == ["replica-data-other-1"]
    assert pair.replica().state == "ABSENT"
    before = pair.zvol()["receiving"]["lines"]
    assert 0 < len(before) < 10
    shown = await pair.other.root().volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))
    assert shown.replica.peer == "give"
    report = await pair.other.root().service.ListOrphans(service_pb2.ListOrphansRequest())
    assert not report.orphans
    sent: list[str] = []

    def find_size(_replicas: FakeReplicas, job: SendJob) -> int:
        sent.append(job.token)
        return 0

    monkeypatch.setattr(FakeReplicas, "find_size", find_size)
    pair.write(3, "written after the snapshot")
    await pair.replicate()
    assert sent, "nothing was sent"
    assert all(sent), "it was sent from its beginning"
    assert pair.received()["3"] == "block 3"
    await pair.replicate()
    assert pair.is_same()


async def test_a_replica_is_only_read_and_deleted(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    other = pair.other.root()
    with refused("FAILED_PRECONDITION", "REPLICA"):
        request = volume_pb2.PublishVolumeRequest(name=DATA, host="hosts/take")
        await other.volumes.PublishVolume(request)
    with refused("FAILED_PRECONDITION", "REPLICA"):
        await other.snapshots.CreateSnapshot(snapshot_pb2.CreateSnapshotRequest(volume=DATA))
    with refused("FAILED_PRECONDITION", "REPLICA"):
        await other.volumes.UpdateVolume(
            volume_pb2.UpdateVolumeRequest(
                volume=volume_pb2.Volume(name=DATA, labels={"a": "b"}),
                update_mask={"paths": ["labels"]},
            )
        )
    with refused("FAILED_PRECONDITION", "REPLICA"):
        await other.volumes.CreateVolume(
            create("copy", source=volume_pb2.VolumeSource(volume=DATA), capacity_bytes=0)
        )
    assert not await _differences(pair.other)
    facts = pair.other.fixture.host.facts
    zvol = pair.zvol()
    facts.effect(f"zvol:{DATASET}", zvol | {"properties": zvol["properties"] | {"readonly": ""}})
    assert "readonly" in (await _differences(pair.other))[0]
    await other.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    assert (pair.zvol(), pair.replica()) == (None, None)
    # The peer has nothing now: the whole volume is sent again.
    await pair.replicate()
    assert pair.is_same()


async def _differences(front: Front) -> list[str]:
    response = await front.root().volumes.SyncVolumes(
        volume_pb2.SyncVolumesRequest(validate_only=True)
    )
    return [one.fact for one in response.differences]


async def test_a_peer_may_do_nothing_else(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    stranger = pair.other.role("replica", "another")
    uid = pair.volume().uid
    asked = volume_pb2.GetReplicaRequest(name=DATA, uid=uid)
    assert (await pair.other.role("replica", "give").volumes.GetReplica(asked)).snapshot_guid
    told = await stranger.volumes.GetReplica(asked)  # it knows the uid, so it has the data
    assert told == volume_pb2.Replica(name=DATA)
    with refused("NOT_FOUND"):
        await stranger.volumes.GetReplica(volume_pb2.GetReplicaRequest(name=DATA, uid="a" * 32))
    with refused("PERMISSION_DENIED", "ROLE"):
        await stranger.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))
    with refused("PERMISSION_DENIED", "ROLE"):
        await stranger.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    with refused("FAILED_PRECONDITION", "NO_STREAM"):
        await stranger.volumes.ReceiveReplica(
            volume_pb2.ReceiveReplicaRequest(
                name=DATA,
                mode=volume_pb2.MODE_BLOCK,
                filesystem=volume_pb2.Filesystem(state=volume_pb2.FILESYSTEM_STATE_NONE),
            )
        )
    with refused("PERMISSION_DENIED", "ROLE"):
        await pair.other.role("host", "take").volumes.GetReplica(asked)


async def test_a_volume_of_the_peer_is_never_overwritten(pair: ReplicaPair) -> None:
    await pair.other.root().volumes.CreateVolume(create())
    before = pair.zvol()
    with refused("ALREADY_EXISTS", "OTHER_VOLUME"):
        await pair.replicate()
    assert pair.zvol() == before


async def test_a_stream_of_another_snapshot_is_refused(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    send = FakeReplicas.send

    def forged(replicas: FakeReplicas, job: SendJob, output: int) -> None:
        monkeypatch.setattr(
            FakeReplicas,
            "_need",
            lambda *_a: {"of": {job.volume_uid: None}, "sizes": {job.volume_uid: 1}},
        )
        send(replicas, job.but(guid="17"), output)

    monkeypatch.setattr(FakeReplicas, "send", forged)
    monkeypatch.setattr(replication, "ATTEMPTS_PAUSE_S", ())
    with refused("FAILED_PRECONDITION", "OTHER_STREAM"):
        await pair.replicate()
    assert pair.zvol() is None


async def test_the_end_of_a_replication_keeps_nothing(pair: ReplicaPair) -> None:
    pair.write(0, "a")
    await pair.replicate()
    root = pair.give.root()
    with refused("FAILED_PRECONDITION", "REPLICATED"):
        await root.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    shown = await root.volumes.GetVolume(volume_pb2.GetVolumeRequest(name=DATA))
    assert [(one.peer, one.pending) for one in shown.replications] == [("other", False)]
    await root.volumes.EndReplication(volume_pb2.EndReplicationRequest(name=DATA, peer="other"))
    assert pair.give.fixture.host.facts.names("peer") == []
    await root.volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=DATA))
    assert pair.replica().state == "CREATED"
    with refused("NOT_FOUND"):
        await root.volumes.EndReplication(volume_pb2.EndReplicationRequest(name=DATA, peer="other"))


async def test_a_cancelled_replication_ends_its_stream(
    pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.write(0, "a")
    begun = threading.Event()

    def carry(carrier: dial.Carrier, _peer: Any) -> None:
        begun.set()
        select.select([carrier.daemon], [], [])  # until it ends
        raise ConnectionAbortedError("zfsilod has ended")

    monkeypatch.setattr(dial.Carrier, "carry", carry)
    monkeypatch.setattr(replication, "LOOK_S", 0.05)
    root = pair.give.root()
    sending = asyncio.ensure_future(pair.replicate())
    await asyncio.to_thread(begun.wait)
    listed = await root.operations.ListOperations(
        operation_pb2.ListOperationsRequest(filter="kind=replicate")
    )
    (operation,) = listed.operations
    await root.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=operation.name))
    with refused("ABORTED"):
        await sending
    while pair.give.fixture.launcher.readers:
        await asyncio.sleep(0.01)
    assert pair.give.service.replicator.transfers == {}
    monkeypatch.undo()
    await pair.replicate()
    assert pair.is_same()


async def test_the_progress_of_a_stream(pair: ReplicaPair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.write(0, "a")
    shown: list[Any] = []
    note = replication.Replicator.note

    def noted(replicator: replication.Replicator, *told: Any) -> None:
        note(replicator, *told)
        shown.append(replicator.transfers[told[0]])

    monkeypatch.setattr(replication.Replicator, "note", noted)
    monkeypatch.setattr(dial, "TELL_S", 0.0)
    await pair.replicate(bytes_per_second=1 << 20)
    assert shown[-1].sent_bytes >= 312
    assert shown[-1].total_bytes >= shown[-1].sent_bytes
    assert shown[-1].rate > 0
