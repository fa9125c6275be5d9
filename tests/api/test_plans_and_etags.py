"""VolumeService: `validate_only` and `etag` of every change."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import host_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, GIB, TAKE, UUID, connect, create, operations, publish, refused
from tests.api.test_volumes import PLANNED, attach, delete_for_now
from zfsilod.model.records import ReplicaOf, Volume
from zfsilod.model.replica import Replication

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.running import Front
    from zfsilod.host.fake import FakeHost
    from zfsilod.storage.transaction import Transaction


DRY: dict[str, Any] = {
    "CreateVolume": pb.CreateVolumeRequest(volume_id="other", volume=pb.Volume(capacity_bytes=GIB)),
    "UpdateVolume": pb.UpdateVolumeRequest(
        volume=pb.Volume(name=DATA, capacity_bytes=2 * GIB),
        update_mask=FieldMask(paths=["capacity_bytes"]),
    ),
    "DeleteVolume": pb.DeleteVolumeRequest(name="volumes/lone"),
    "RotateVolumeKey": pb.RotateVolumeKeyRequest(name="volumes/secret"),
    "ReplicateVolume": pb.ReplicateVolumeRequest(name="volumes/lone", peer="peer"),
    "EndReplication": pb.EndReplicationRequest(name="volumes/used", peer="peer"),
    "PromoteVolume": pb.PromoteVolumeRequest(name="volumes/sent", primary_is_off=True),
    "DemoteVolume": pb.DemoteVolumeRequest(name="volumes/lone", peer="peer"),
    "ReceiveReplica": pb.ReceiveReplicaRequest(
        name="volumes/replica",
        uid="d" * 32,
        capacity_bytes=GIB,
        volblocksize=16384,
        mode=pb.MODE_FILESYSTEM,
        filesystem=pb.Filesystem(state=pb.FILESYSTEM_STATE_NONE),
        snapshot_uid="c" * 32,
        snapshot_guid="17",
    ),
    "UndeleteVolume": pb.UndeleteVolumeRequest(name="volumes/gone"),
    "AdoptVolume": pb.AdoptVolumeRequest(dataset="tank/vm-1"),
    "PublishVolume": pb.PublishVolumeRequest(name="volumes/lone", host=TAKE),
    "UnpublishVolume": pb.UnpublishVolumeRequest(name=DATA, all_hosts=True),
    "ReportFilesystem": pb.ReportFilesystemRequest(
        name="volumes/used",
        host=TAKE,
        epoch=1,
        filesystem=pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="ext4", uuid=UUID),
    ),
    "AttachVolume": pb.AttachVolumeRequest(server="give", volume="used", path="/srv/used"),
    "DetachVolume": pb.DetachVolumeRequest(name=DATA),
    "ConnectVolume": pb.ConnectVolumeRequest(server="give", volume="used"),
    "DisconnectVolume": pb.DisconnectVolumeRequest(name="volumes/low"),
    "StageVolume": pb.StageVolumeRequest(name="volumes/low"),
    "UnstageVolume": pb.UnstageVolumeRequest(name="volumes/mid"),
    "MountVolume": pb.MountVolumeRequest(name=DATA, path="/srv/more"),
    "UnmountVolume": pb.UnmountVolumeRequest(name=DATA, path="/srv/data"),
    "GrowVolume": pb.GrowVolumeRequest(name=DATA),
}


async def at_all_states(front: Front) -> None:
    """Make `lone` created, `used` published, `low` connected, `mid` staged, `data` mounted.

    `gone` is in the trash, and the zvol tank/vm-1 has no record.
    """
    volumes = front.root().volumes
    await attach(volumes)
    front.fixture.host.zfs.create_zvol(
        "tank/vm-1",
        size_bytes=GIB,
        thin=True,
        volblocksize=4096,
        properties=(),
        marks=(("zfsilo:uid", ""),),
    )
    await volumes.CreateVolume(create("secret", encrypted=True))
    for name in ("gone", "lone", "used", "low", "mid"):
        await volumes.CreateVolume(create(name))
    await delete_for_now(front, "gone")
    for name in ("used", "low", "mid"):
        await volumes.PublishVolume(publish(name=f"volumes/{name}"))
    for name in ("low", "mid"):
        await volumes.ConnectVolume(connect(volume=name))
    await volumes.StageVolume(pb.StageVolumeRequest(name="volumes/mid"))
    await volumes.CreateVolume(create("sent"))
    front.fixture.host.facts.effect(*front.write(partial(as_replica, "sent"))(front.fixture.host))
    kept = front.write(partial(replicated, "used"))
    front.fixture.host.facts.effect(f"bookmark:{kept}", {"guid": "17", "txg": 1, "blocks": {}})


def as_replica(volume_id: str, txn: Transaction) -> Callable[[FakeHost], tuple[str, Any]]:
    """Make a volume the replica of a peer that is not known here; return the fact of its zvol."""
    volume = txn.get(Volume, volume_id)
    assert volume is not None
    replica = ReplicaOf(peer="nowhere", snapshot_uid="c" * 32, snapshot_guid="17")
    txn.put(volume.but(replica=replica))
    name = f"zvol:{volume.dataset}"

    def changed(host: FakeHost) -> tuple[str, Any]:
        zvol = host.facts.get(name)
        marks = {"readonly": "on", "zfsilo:replica": "nowhere"}
        sets = {"replica_sets": {"c" * 32: "17"}}
        return name, zvol | sets | {"properties": zvol["properties"] | marks}

    return changed


def replicated(volume_id: str, txn: Transaction) -> str:
    """Record that a volume was sent to a peer; return the name of the snapshot kept for it."""
    volume = txn.get(Volume, volume_id)
    assert volume is not None
    name = f"{volume.uid}/peer"
    txn.put(Replication(id=name, volume=volume_id, peer="peer", pending_uid="c" * 32))
    return f"{volume.uid}/{'c' * 32}"


async def test_validate_only_returns_the_plan_and_changes_nothing(
    front: Front,
) -> None:
    volumes = front.root().volumes
    await at_all_states(front)
    facts, stored = front.fixture.facts, operations(front)
    for method, request in DRY.items():
        request.validate_only = True
        answer = await getattr(volumes, method)(request)
        assert answer.operation.state == PLANNED, method
        assert answer.operation.actions, method
        assert answer.operation.name == "", method
        assert not answer.HasField("volume"), method
    assert (front.fixture.facts, operations(front)) == (facts, stored)


async def test_every_mutation_can_be_validated_only() -> None:
    service = pb.DESCRIPTOR.services_by_name["VolumeService"]
    answers = (pb.MutateVolumeResponse.DESCRIPTOR,)
    changing = {method.name for method in service.methods if method.output_type in answers}
    assert changing == set(DRY)


async def test_every_change_with_an_etag_refuses_an_old_one(front: Front) -> None:
    volumes = front.root().volumes
    await at_all_states(front)
    facts = front.fixture.facts
    taking = [name for name, message in DRY.items() if "etag" in message.DESCRIPTOR.fields_by_name]
    for method in taking:
        request = type(DRY[method])()
        request.CopyFrom(DRY[method])
        request.validate_only, request.etag = False, "1"
        with refused("ABORTED", "ETAG"):
            await getattr(volumes, method)(request)
    assert front.fixture.facts == facts
    assert set(DRY) - set(taking) == {
        "CreateVolume",
        "ReplicateVolume",  # it takes the volume as it is
        "EndReplication",
        "ReceiveReplica",
        "UndeleteVolume",
        "AdoptVolume",
        "ReportFilesystem",
        "AttachVolume",
        "ConnectVolume",
    }


async def test_a_fresh_etag_is_accepted(front: Front) -> None:
    volumes = front.root().volumes
    etag = (await volumes.CreateVolume(create())).volume.etag
    etag = (await volumes.PublishVolume(publish(etag=etag))).volume.etag
    down = pb.UnpublishVolumeRequest(name=DATA, host=TAKE, etag=etag)
    etag = (await volumes.UnpublishVolume(down)).volume.etag
    await volumes.DeleteVolume(pb.DeleteVolumeRequest(name=DATA, etag=etag))


CHANGED_MEANWHILE: dict[str, Any] = {
    "PublishVolume": publish(),
    "UnpublishVolume": pb.UnpublishVolumeRequest(name=DATA, host=TAKE),
}


@pytest.mark.parametrize("method", CHANGED_MEANWHILE)
async def test_an_etag_is_compared_when_the_change_is_stored(front: Front, method: str) -> None:
    """A request that waits for another change of the volume does not come behind it."""
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    request = type(CHANGED_MEANWHILE[method])()
    request.CopyFrom(CHANGED_MEANWHILE[method])
    request.etag = (await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))).etag
    front.fixture.launcher.gate.clear()
    update = pb.UpdateVolumeRequest(
        volume=pb.Volume(name=DATA, hosts=["take", "other"]), update_mask=FieldMask(paths=["hosts"])
    )
    first = asyncio.ensure_future(volumes.UpdateVolume(update))
    while not operations(front)[-1].title.startswith("update"):
        await asyncio.sleep(0.01)
    second = asyncio.ensure_future(getattr(volumes, method)(request))
    done, _pending = await asyncio.wait({second}, timeout=0.3)
    assert not done, "it waits"
    front.fixture.launcher.gate.set()
    await first
    with refused("ABORTED", "ETAG"):
        await second
    assert operations(front)[-1].title.startswith("update")


async def test_an_etag_of_a_publication_that_fences(front: Front) -> None:
    volumes = front.root().volumes
    hosts = front.root().hosts
    etag = (await volumes.CreateVolume(create())).volume.etag
    host = host_pb2.Host(name="hosts/new", iqn="iqn.2024-01.lab.new:host")
    await hosts.RegisterHost(host_pb2.RegisterHostRequest(host=host))
    await volumes.PublishVolume(publish())
    over = publish(host="hosts/new", force=True, etag=etag)
    with refused("ABORTED", "ETAG"):
        await volumes.PublishVolume(over)
    listed = await volumes.ListPublications(pb.ListPublicationsRequest(volume=DATA))
    assert [one.host for one in listed.publications] == [TAKE]
    over.etag = (await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))).etag
    assert (await volumes.PublishVolume(over)).volume.etag != over.etag
    listed = await volumes.ListPublications(pb.ListPublicationsRequest(volume=DATA))
    assert [one.host for one in listed.publications] == ["hosts/new"]
