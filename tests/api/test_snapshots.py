"""SnapshotService: snapshots, groups, pages, filters and plans."""

from __future__ import annotations

import grpc
import pytest
from zfsilo.v1 import operation_pb2, volume_pb2
from zfsilo.v1 import snapshot_pb2 as pb

from tests.api.running import DATA, GIB, Front, create, refused


async def test_a_snapshot(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create())
    request = pb.CreateSnapshotRequest(snapshot_id="monday", volume=DATA, labels={"app": "db"})
    made = await api.snapshots.CreateSnapshot(request)
    snapshot = await api.snapshots.GetSnapshot(pb.GetSnapshotRequest(name="snapshots/monday"))
    assert made.snapshot == snapshot
    assert (snapshot.volume, snapshot.size_bytes, snapshot.labels["app"]) == (DATA, GIB, "db")
    assert (await api.snapshots.CreateSnapshot(request)).snapshot == snapshot
    with refused("ABORTED", "ETAG"):
        await api.snapshots.DeleteSnapshot(pb.DeleteSnapshotRequest(name=snapshot.name, etag="1"))
    gone = await api.snapshots.DeleteSnapshot(
        pb.DeleteSnapshotRequest(name=snapshot.name, etag=snapshot.etag)
    )
    assert not gone.HasField("snapshot")
    with refused("NOT_FOUND"):
        await api.snapshots.GetSnapshot(pb.GetSnapshotRequest(name=snapshot.name))


async def test_lists(front: Front) -> None:
    api = front.root()
    for name in ("data", "other"):
        await api.volumes.CreateVolume(create(name))
    for number in range(3):
        await api.snapshots.CreateSnapshot(
            pb.CreateSnapshotRequest(snapshot_id=f"s{number}", volume=DATA)
        )
    unnamed = await api.snapshots.CreateSnapshot(pb.CreateSnapshotRequest(volume="volumes/other"))
    request = pb.ListSnapshotsRequest(page_size=2, volume=DATA)
    page = await api.snapshots.ListSnapshots(request)
    assert [snapshot.id for snapshot in page.snapshots] == ["s0", "s1"]
    request.page_token = page.next_page_token
    page = await api.snapshots.ListSnapshots(request)
    assert [snapshot.id for snapshot in page.snapshots] == ["s2"]
    assert page.next_page_token == ""
    with refused("INVALID_ARGUMENT", "BAD_PAGE_TOKEN"):
        await api.snapshots.ListSnapshots(pb.ListSnapshotsRequest(page_token="x"))
    by_filter = await api.snapshots.ListSnapshots(pb.ListSnapshotsRequest(filter="volume = other"))
    assert [snapshot.id for snapshot in by_filter.snapshots] == [unnamed.snapshot.id]
    assert len(unnamed.snapshot.id) == 26


async def test_a_group(front: Front) -> None:
    api = front.root()
    for name in ("data", "other"):
        await api.volumes.CreateVolume(create(name))
    volumes = ["volumes/other", DATA]
    request = pb.CreateSnapshotGroupRequest(group_id="both", volumes=volumes, labels={"a": "b"})
    made = (await api.snapshots.CreateSnapshotGroup(request)).group
    assert [snapshot.volume for snapshot in made.snapshots] == volumes
    assert {snapshot.group for snapshot in made.snapshots} == {"snapshotGroups/both"}
    asked = pb.GetSnapshotGroupRequest(name=made.name)
    assert await api.snapshots.GetSnapshotGroup(asked) == made
    listed = await api.snapshots.ListSnapshotGroups(
        pb.ListSnapshotGroupsRequest(filter="volume = data AND labels.a = b")
    )
    assert list(listed.groups) == [made]
    with refused("FAILED_PRECONDITION", "IN_GROUP"):
        await api.snapshots.DeleteSnapshot(pb.DeleteSnapshotRequest(name=made.snapshots[0].name))
    await api.snapshots.DeleteSnapshotGroup(pb.DeleteSnapshotGroupRequest(name=made.name))
    assert not (await api.snapshots.ListSnapshots(pb.ListSnapshotsRequest())).snapshots


async def test_a_volume_has_a_source(front: Front) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create())
    await api.snapshots.CreateSnapshot(pb.CreateSnapshotRequest(snapshot_id="s", volume=DATA))
    for name, source in (
        ("copy", volume_pb2.VolumeSource(snapshot="snapshots/s")),
        ("twin", volume_pb2.VolumeSource(volume=DATA)),
    ):
        volume = volume_pb2.Volume(capacity_bytes=GIB, source=source)
        request = volume_pb2.CreateVolumeRequest(volume_id=name, volume=volume)
        assert (await api.volumes.CreateVolume(request)).volume.source == source
    with refused("ALREADY_EXISTS"):
        await api.volumes.CreateVolume(create("copy"))
    volume.source.snapshot = "snapshots/none"
    with refused("NOT_FOUND"):
        await api.volumes.CreateVolume(
            volume_pb2.CreateVolumeRequest(volume_id="third", volume=volume)
        )


@pytest.mark.parametrize(
    "request_",
    [
        pb.CreateSnapshotRequest(snapshot_id="s", volume=DATA),
        pb.CreateSnapshotGroupRequest(group_id="g", volumes=[DATA]),
    ],
)
async def test_a_plan_creates_nothing(front: Front, request_: pb.CreateSnapshotRequest) -> None:
    api = front.root()
    await api.volumes.CreateVolume(create())
    facts = front.fixture.facts
    request_.validate_only = True
    method = type(request_).__name__.removesuffix("Request")
    answer = await getattr(api.snapshots, method)(request_)
    assert answer.operation.state == operation_pb2.OPERATION_STATE_PLANNED
    assert len(answer.operation.actions) == 1
    assert front.fixture.facts == facts


async def test_invalid_names(front: Front) -> None:
    api = front.root()
    for name in ("", "s", "snapshots/", "snapshots/A", "volumes/s"):
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await api.snapshots.GetSnapshot(pb.GetSnapshotRequest(name=name))
