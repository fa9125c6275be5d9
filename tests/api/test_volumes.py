"""VolumeService: the life of a volume, and refused requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import operation_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, GIB, TAKE, connect, create, publish, refused
from zfsilod.model.errors import Unavailable
from zfsilod.model.records import Dependent, Publication, Volume
from zfsilod.service import stats

if TYPE_CHECKING:
    from tests.api.running import Front

DONE = operation_pb2.OPERATION_STATE_DONE
PLANNED = operation_pb2.OPERATION_STATE_PLANNED


async def attach(volumes: Any) -> None:
    await volumes.CreateVolume(create(labels={"app": "db"}))
    await volumes.PublishVolume(publish())
    await volumes.ConnectVolume(connect())
    await volumes.StageVolume(pb.StageVolumeRequest(name=DATA, mount_options=["noatime"]))
    await volumes.MountVolume(pb.MountVolumeRequest(name=DATA, path="/srv/data"))


async def test_attaching(front: Front) -> None:
    volumes = front.root().volumes
    made = await volumes.CreateVolume(
        create(labels={"app": "db"}, properties={"compression": "lz4"})
    )
    assert made.operation.state == DONE
    assert made.operation.progress == 100
    assert made.operation.caller == "uid 0 (unix)"
    volume = made.volume
    assert (volume.name, volume.id, volume.dataset) == (DATA, "data", "tank/zfsilo/data")
    assert (volume.capacity_bytes, volume.thin, volume.mode) == (GIB, True, pb.MODE_FILESYSTEM)
    assert (dict(volume.labels), dict(volume.properties)) == ({"app": "db"}, {"compression": "lz4"})
    assert volume.state == pb.STATE_CREATED
    assert volume.access_modes == [pb.ACCESS_MODE_SINGLE_NODE_WRITER]
    assert volume.filesystem.state == pb.FILESYSTEM_STATE_NONE
    assert len(volume.uid) == 32
    assert volume.create_time.seconds
    assert not volume.HasField("attachment")

    published = (await volumes.PublishVolume(publish())).volume
    assert published.state == pb.STATE_PUBLISHED
    (one,) = published.publications
    assert (one.volume, one.host, one.epoch, one.readonly) == (DATA, TAKE, 1, False)
    assert one.transport == pb.TRANSPORT_ISCSI

    connected = (await volumes.ConnectVolume(connect(restore=pb.RESTORE_BOOT))).volume
    here = connected.attachment
    assert connected.state == pb.STATE_CONNECTED
    assert (here.server, here.volume, here.epoch) == ("give", "data", 1)
    assert (here.disk.serial, here.disk.size_bytes) == (volume.uid, GIB)
    assert here.restore == pb.RESTORE_BOOT
    assert not here.published_here

    asked = pb.StageVolumeRequest(
        name=DATA, path="/stage", mount_options=["noatime"], fs_type="xfs"
    )
    staged = (await volumes.StageVolume(asked)).volume
    assert (staged.state, staged.attachment.staging_path) == (pb.STATE_STAGED, "/stage")
    assert (staged.filesystem.state, staged.filesystem.type) == (pb.FILESYSTEM_STATE_READY, "xfs")
    assert staged.filesystem.uuid == staged.attachment.filesystem.uuid

    mount = pb.MountVolumeRequest(name=DATA, path="/srv/data", readonly=True)
    mounted = (await volumes.MountVolume(mount)).volume
    assert mounted.state == pb.STATE_MOUNTED
    assert mounted.attachment.mounts == [pb.Mount(path="/srv/data", readonly=True)]
    assert await volumes.GetVolume(pb.GetVolumeRequest(name=DATA)) == mounted


async def test_detaching_leaves_nothing(front: Front) -> None:
    volumes = front.root().volumes
    await attach(volumes)
    await volumes.UnmountVolume(pb.UnmountVolumeRequest(name=DATA, all_paths=True))
    await volumes.UnstageVolume(pb.UnstageVolumeRequest(name=DATA))
    await volumes.DisconnectVolume(pb.DisconnectVolumeRequest(name=DATA))
    down = await volumes.UnpublishVolume(pb.UnpublishVolumeRequest(name=DATA, host=TAKE))
    assert down.volume.state == pb.STATE_CREATED
    gone = await volumes.DeleteVolume(pb.DeleteVolumeRequest(name=DATA))
    assert gone.operation.state == DONE
    assert not gone.HasField("volume")
    assert {n.partition(":")[0] for n in front.fixture.facts} <= {"content"}
    with refused("NOT_FOUND"):
        await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))


async def test_connecting_publishes_if_needed_and_disconnecting_reverts_it(
    front: Front,
) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    with refused("FAILED_PRECONDITION", "NOT_PUBLISHED") as refusal:
        await volumes.ConnectVolume(connect())
    assert refusal.error.facts["server"] == "give"
    answer = await volumes.ConnectVolume(connect(publish_if_needed=True))
    assert answer.volume.attachment.published_here
    (one,) = front.read(lambda txn: list(txn.scan(Publication)))
    assert f"operations/{one.client_operation}" == answer.operation.name
    assert one.published_by.startswith("host take (certificate ")
    await volumes.DisconnectVolume(pb.DisconnectVolumeRequest(name=DATA))
    from zfsilod.service.supervisor import Supervisor

    await Supervisor(front.service, retention_s=1000).retry_releases()
    assert front.read(lambda txn: list(txn.scan(Publication))) == []


async def test_a_repeated_request_changes_nothing(front: Front) -> None:
    volumes = front.root().volumes
    await attach(volumes)
    before = front.fixture.facts
    await attach(volumes)
    assert front.fixture.facts == before
    with refused("ALREADY_EXISTS"):
        await volumes.CreateVolume(create(capacity_bytes=2 * GIB))
    with refused("ALREADY_EXISTS"):
        await volumes.PublishVolume(publish(readonly=True))


async def test_growing(front: Front) -> None:
    volumes = front.root().volumes
    await attach(volumes)
    asked = pb.UpdateVolumeRequest(
        volume=pb.Volume(name=DATA, capacity_bytes=2 * GIB, labels={"app": "web"}),
        update_mask=FieldMask(paths=["capacity_bytes", "labels"]),
    )
    updated = (await volumes.UpdateVolume(asked)).volume
    assert (updated.capacity_bytes, dict(updated.labels)) == (2 * GIB, {"app": "web"})
    assert updated.attachment.disk.size_bytes == GIB
    grown = (await volumes.GrowVolume(pb.GrowVolumeRequest(name=DATA))).volume
    assert grown.attachment.disk.size_bytes == 2 * GIB
    asked.volume.capacity_bytes = GIB
    with refused("INVALID_ARGUMENT", "SHRINK"):
        await volumes.UpdateVolume(asked)


@pytest.mark.parametrize("path", ["size", "capacity_bytes.x", "*", "labels.app", "uid"])
async def test_an_unknown_path_in_the_mask_is_refused(front: Front, path: str) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    with refused("INVALID_ARGUMENT", "BAD_MASK"):
        await volumes.UpdateVolume(
            pb.UpdateVolumeRequest(volume=pb.Volume(name=DATA), update_mask=FieldMask(paths=[path]))
        )


async def test_stats(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    of_zvol = await volumes.StatsVolume(pb.StatsVolumeRequest(name=DATA))
    assert of_zvol.volsize_bytes == GIB
    assert of_zvol.HasField("referenced_bytes")
    assert not of_zvol.HasField("inodes_total")
    await attach(volumes)
    of_filesystem = await volumes.StatsVolume(pb.StatsVolumeRequest(name=DATA))
    assert of_filesystem.filesystem_total_bytes == GIB
    assert of_filesystem.inodes_total == 65536
    assert not of_filesystem.HasField("volsize_bytes")


async def test_sync_repairs_drift(front: Front) -> None:
    volumes = front.root().volumes
    await attach(volumes)
    uid = front.read(lambda txn: txn.get(Volume, "data")).uid
    before = front.fixture.facts
    (lun,) = [name for name in before if name.startswith("lun:")]
    front.fixture.host.facts.effect(lun, None)
    answer = await volumes.SyncVolume(pb.SyncVolumeRequest(name=DATA))
    assert answer.operation.state == DONE
    assert front.fixture.facts == before
    assert (await volumes.SyncVolumes(pb.SyncVolumesRequest())).complaints == {}
    front.fixture.host.facts.effect("zvol:tank/zfsilo/data", None)
    with refused("FAILED_PRECONDITION", "LOST"):
        await volumes.SyncVolume(pb.SyncVolumeRequest(name=DATA))
    assert "missing" in (await volumes.SyncVolumes(pb.SyncVolumesRequest())).complaints["data"]
    assert uid
    with refused("NOT_FOUND"):
        await volumes.SyncVolume(pb.SyncVolumeRequest(name="volumes/none"))


async def delete_for_now(front: Front, name: str) -> pb.Volume:
    """Delete a volume and keep what depends on it."""
    volumes = front.root().volumes
    volume = await volumes.GetVolume(pb.GetVolumeRequest(name=f"volumes/{name}"))
    needs = Dependent(id=f"{volume.uid}/snapshots/a", name="snapshots/a")
    await front.service.context.write(lambda txn: txn.put(needs))
    request = pb.DeleteVolumeRequest(name=volume.name, dependents=pb.DEPENDENTS_KEEP)
    await volumes.DeleteVolume(request)
    return volume  # type: ignore[no-any-return]


async def test_trash(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    first = await delete_for_now(front, "data")
    with refused("NOT_FOUND"):
        await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
    await volumes.CreateVolume(create())
    second = await delete_for_now(front, "data")
    assert not (await volumes.ListVolumes(pb.ListVolumesRequest())).volumes
    request = pb.ListVolumesRequest(show_deleted=True, page_size=1)
    page = await volumes.ListVolumes(request)
    request.page_token = page.next_page_token
    in_trash = [*page.volumes, *(await volumes.ListVolumes(request)).volumes]
    assert {volume.uid for volume in in_trash} == {first.uid, second.uid}
    assert all(volume.HasField("delete_time") for volume in in_trash)
    asked = pb.ListVolumesRequest(show_deleted=True)
    assert not (await front.role("host", "take").volumes.ListVolumes(asked)).volumes
    back = await volumes.UndeleteVolume(pb.UndeleteVolumeRequest(name=DATA, uid=first.uid))
    assert (back.volume.uid, back.volume.dataset) == (first.uid, first.dataset)
    with refused("ALREADY_EXISTS"):
        await volumes.UndeleteVolume(pb.UndeleteVolumeRequest(name=DATA))
    with refused("FAILED_PRECONDITION", "DEPENDENTS"):
        await volumes.DeleteVolume(pb.DeleteVolumeRequest(name=DATA))


async def test_a_list_with_what_volumes_use(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create("thin"))
    await volumes.CreateVolume(create("thick", thin=False))
    asked = pb.ListVolumesRequest(show_usage=True)
    listed = {volume.id: volume for volume in (await volumes.ListVolumes(asked)).volumes}
    assert listed["thin"].HasField("used_bytes")
    assert (listed["thin"].used_bytes, listed["thick"].used_bytes) == (0, GIB)
    plain = (await volumes.ListVolumes(pb.ListVolumesRequest())).volumes
    assert not any(volume.HasField("used_bytes") for volume in plain)


async def test_a_list_while_the_pool_does_not_answer(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volumes are listed without what they use; only one listing of zfs waits."""
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    asks, answer = 0, threading.Event()

    def usages(_root: str) -> dict[str, tuple[int, int, int]]:
        nonlocal asks
        asks += 1
        answer.wait(20)
        raise Unavailable("the pool is suspended")

    monkeypatch.setattr(stats, "LISTING_S", 0.01)
    monkeypatch.setattr(front.service.context.machine.zfs, "usages", usages)
    asked = pb.ListVolumesRequest(show_usage=True)
    for _time in range(3):
        (volume,) = (await volumes.ListVolumes(asked)).volumes
        assert not volume.HasField("used_bytes")
    assert asks == 1
    answer.set()


BAD: list[tuple[str, Any, str]] = [
    ("GetVolume", pb.GetVolumeRequest(name="data"), "BAD_NAME"),
    ("GetVolume", pb.GetVolumeRequest(name="hosts/data"), "BAD_NAME"),
    ("GetVolume", pb.GetVolumeRequest(name="volumes/../etc"), "BAD_ID"),
    ("GetVolume", pb.GetVolumeRequest(name="volumes/"), "BAD_ID"),
    ("CreateVolume", create("A"), "BAD_ID"),
    ("CreateVolume", create("x.mount"), "BAD_ID"),
    ("CreateVolume", create(capacity_bytes=1), "BAD_SIZE"),
    ("CreateVolume", create(capacity_bytes=-1), "BAD_SIZE"),
    ("CreateVolume", create(properties={"volmode": "full"}), "BAD_PROPERTY"),
    ("CreateVolume", create(mode=7), "BAD_ENUM"),
    ("CreateVolume", create(access_modes=[0]), "BAD_ENUM"),
    ("CreateVolume", create(hosts=["No Host"]), "BAD_ID"),
    ("PublishVolume", publish(host=""), "NO_HOST"),
    ("PublishVolume", publish(host="take"), "BAD_NAME"),
    ("PublishVolume", publish(access_mode=5), "ACCESS_MODE"),
    ("PublishVolume", publish(transport=9), "BAD_ENUM"),
    ("PublishVolume", publish(client_operation="x"), "BAD_NAME"),
    ("UnpublishVolume", pb.UnpublishVolumeRequest(name=DATA), "NO_HOST"),
    ("UnpublishVolume", pb.UnpublishVolumeRequest(name=DATA, host=TAKE, all_hosts=True), "NO_HOST"),
    ("FetchConnection", pb.FetchConnectionRequest(name=DATA), "NO_HOST"),
    ("ListPublications", pb.ListPublicationsRequest(volume="data"), "BAD_NAME"),
    ("StageVolume", pb.StageVolumeRequest(name=DATA, path="stage"), "BAD_PATH"),
    ("StageVolume", pb.StageVolumeRequest(name=DATA, mount_options=["suid"]), "BAD_MOUNT_OPTION"),
    ("UnmountVolume", pb.UnmountVolumeRequest(name=DATA), "BAD_PATH"),
    ("UnmountVolume", pb.UnmountVolumeRequest(name=DATA, path="/a", all_paths=True), "BAD_PATH"),
    ("ConnectVolume", connect(server="No Server"), "BAD_ID"),
    ("ConnectVolume", connect(restore=9), "BAD_ENUM"),
    ("AttachVolume", pb.AttachVolumeRequest(server="give", volume="data"), "BAD_PATH"),
    (
        "AttachVolume",
        pb.AttachVolumeRequest(server="give", volume="data", state=pb.STATE_ABSENT),
        "BAD_ENUM",
    ),
    ("DetachVolume", pb.DetachVolumeRequest(name=DATA, state=pb.STATE_MOUNTED), "BAD_ENUM"),
]


async def test_invalid_requests(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    await volumes.PublishVolume(publish())
    await volumes.ConnectVolume(connect())
    await volumes.UnpublishVolume(pb.UnpublishVolumeRequest(name="volumes/data", host="hosts/none"))
    for method, request, reason in BAD:
        if method == "PublishVolume" and reason == "ACCESS_MODE":
            await volumes.CreateVolume(create("fresh"))
            request = publish(name="volumes/fresh", access_mode=5)
        with refused("INVALID_ARGUMENT", reason):
            await getattr(volumes, method)(request)


@pytest.mark.parametrize(
    "filesystem",
    [
        pb.Filesystem(type="ext4", uuid="1"),
        pb.Filesystem(state=pb.FILESYSTEM_STATE_NONE, type="ext4", uuid="1"),
        pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="-o x", uuid="1"),
        pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="ext4", uuid="a b"),
        pb.Filesystem(state=pb.FILESYSTEM_STATE_FORMATTING, type="ext4", uuid="1", operation="-"),
    ],
)
async def test_a_malformed_report_is_refused(front: Front, filesystem: pb.Filesystem) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    await volumes.PublishVolume(publish())
    with refused("INVALID_ARGUMENT"):
        await volumes.ReportFilesystem(
            pb.ReportFilesystemRequest(name=DATA, host=TAKE, epoch=1, filesystem=filesystem)
        )


async def test_requests_in_the_wrong_state(front: Front) -> None:
    volumes = front.root().volumes
    with refused("NOT_FOUND"):
        await volumes.PublishVolume(publish())
    await volumes.CreateVolume(create())
    with refused("NOT_FOUND"):
        await volumes.PublishVolume(publish(host="hosts/none"))
    with refused("FAILED_PRECONDITION", "NOT_CONNECTED"):
        await volumes.StageVolume(pb.StageVolumeRequest(name=DATA))
    with refused("NOT_FOUND", "NO_SERVER"):
        await volumes.ConnectVolume(connect(server="elsewhere"))
    await volumes.PublishVolume(publish())
    with refused("FAILED_PRECONDITION", "PUBLISHED") as refusal:
        await volumes.DeleteVolume(pb.DeleteVolumeRequest(name=DATA))
    assert refusal.error.facts["hosts"] == "take"
    with refused("FAILED_PRECONDITION", "NO_EPOCH"):
        await volumes.ConnectVolume(connect(epoch=7))


async def test_a_live_session_prevents_unpublishing(front: Front) -> None:
    volumes = front.root().volumes
    await attach(volumes)
    with refused("FAILED_PRECONDITION", "SESSION_LIVE"):
        await volumes.UnpublishVolume(pb.UnpublishVolumeRequest(name=DATA, host=TAKE))
    assert (await volumes.GetVolume(pb.GetVolumeRequest(name=DATA))).state == pb.STATE_MOUNTED


async def test_the_connection_contains_the_secrets_of_a_publication(front: Front) -> None:
    volumes = front.root().volumes
    await volumes.CreateVolume(create())
    fetch = pb.FetchConnectionRequest(name=DATA, host=TAKE, view=pb.CONNECTION_VIEW_ONCE)
    with refused("FAILED_PRECONDITION", "NOT_PUBLISHED"):
        await volumes.FetchConnection(fetch)
    volume = (await volumes.PublishVolume(publish(readonly=True))).volume
    connection = await volumes.FetchConnection(fetch)
    chap = front.service.context.store.chap("data/take")
    assert {name: getattr(connection.chap, name) for name in chap.values()} == chap.values()
    assert (connection.serial, connection.size_bytes, connection.epoch) == (volume.uid, GIB, 1)
    assert connection.target.endswith(f":{volume.uid}")
    assert connection.readonly
    assert list(connection.portals) == list(front.service.context.settings.export.portals)
    fetch.host = "hosts/other"
    with refused("FAILED_PRECONDITION", "NOT_PUBLISHED"):
        await volumes.FetchConnection(fetch)


async def test_secrets_for_a_person_are_for_an_administrator(front: Front) -> None:
    await front.root().volumes.CreateVolume(create(hosts=["take"]))
    await front.root().volumes.PublishVolume(publish())
    once = pb.FetchConnectionRequest(name=DATA, host=TAKE, view=pb.CONNECTION_VIEW_ONCE)
    with refused("PERMISSION_DENIED", "ROLE"):
        await front.role("host", "take").volumes.FetchConnection(once)
    names = pb.FetchConnectionRequest(name=DATA, host=TAKE, view=pb.CONNECTION_VIEW_NAMES)
    shown = await front.role("host", "take").volumes.FetchConnection(names)
    assert (shown.chap.password, shown.chap.mutual_password) == ("", "")
    first = await front.root().volumes.FetchConnection(once)
    assert shown.chap.username == first.chap.username
    assert shown.chap.mutual_username == first.chap.mutual_username
    assert first.chap.password
    with refused("FAILED_PRECONDITION", "SECRETS_SHOWN"):
        await front.root().volumes.FetchConnection(once)
    daemon = pb.FetchConnectionRequest(name=DATA, host=TAKE)
    with refused("PERMISSION_DENIED", "ROLE"):
        await front.root().volumes.FetchConnection(daemon)
    with refused("PERMISSION_DENIED", "ROLE"):
        await front.role("admin", "ops").volumes.FetchConnection(daemon)
    assert (await front.role("host", "take").volumes.FetchConnection(daemon)).chap == first.chap


async def test_the_default_access_mode_is_one_that_the_volume_allows(
    front: Front,
) -> None:
    volumes = front.root().volumes
    modes = [pb.ACCESS_MODE_SINGLE_NODE_READER_ONLY, pb.ACCESS_MODE_MULTI_NODE_READER_ONLY]
    await volumes.CreateVolume(create(access_modes=modes))
    (one,) = (await volumes.PublishVolume(publish())).volume.publications
    assert one.access_mode == modes[0]


async def test_block_and_thick_volumes(front: Front) -> None:
    volumes = front.root().volumes
    made = (await volumes.CreateVolume(create(mode=pb.MODE_BLOCK, thin=False))).volume
    assert (made.mode, made.thin) == (pb.MODE_BLOCK, False)
    with refused("RESOURCE_EXHAUSTED", "POOL_FULL"):
        await volumes.CreateVolume(create("huge", thin=False, capacity_bytes=1 << 50))


async def test_limits(front: Front) -> None:
    volumes = front.root().volumes
    limited = create(limit_read_iops=500, limit_write_bytes=20 << 20)
    volume = (await volumes.CreateVolume(limited)).volume
    assert (volume.limit_read_iops, volume.limit_write_bytes) == (500, 20 << 20)
    change = pb.Volume(name=DATA, limit_read_iops=0, limit_write_iops=900)
    mask = FieldMask(paths=["limit_read_iops", "limit_write_iops"])
    request = pb.UpdateVolumeRequest(volume=change, update_mask=mask)
    volume = (await volumes.UpdateVolume(request)).volume
    assert (volume.limit_read_iops, volume.limit_write_iops) == (0, 900)
    assert volume.limit_write_bytes == 20 << 20
    with refused("INVALID_ARGUMENT", "NVME_LIMITS"):
        await volumes.PublishVolume(publish(transport=pb.TRANSPORT_NVME))
    with refused("INVALID_ARGUMENT", "BAD_LIMIT"):
        await volumes.CreateVolume(create("slow", limit_read_iops=1))
