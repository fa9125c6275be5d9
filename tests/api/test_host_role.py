"""The role host: its view of volumes, and the changes that it may make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilo.v1 import host_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, TAKE, UUID, connect, create, publish, refused
from zfsilod.model.records import Publication

if TYPE_CHECKING:
    from tests.api.running import Front

OTHER_IQN = "iqn.2026-01.org.example:b"


async def two_hosts(front: Front) -> tuple[Any, Any, Any]:
    """Create volumes, and return the interface as root, host take and host other."""
    root = front.root()
    await root.hosts.CreateHost(
        host_pb2.CreateHostRequest(host_id="other", host=host_pb2.Host(iqn=OTHER_IQN))
    )
    await root.volumes.CreateVolume(create())  # names take
    await root.volumes.CreateVolume(create("any", hosts=["*"]))
    await root.volumes.CreateVolume(create("given", hosts=["third"]))
    await root.volumes.CreateVolume(create("foreign", hosts=["other", "third"]))
    await root.volumes.PublishVolume(publish(name="volumes/given"))
    await root.volumes.PublishVolume(publish(name="volumes/foreign", host="hosts/other"))
    return root, front.role("host", "take"), front.role("host", "other")


async def test_a_host_sees_its_volumes_only(front: Front) -> None:
    root, take, other = await two_hosts(front)
    seen = await take.volumes.ListVolumes(pb.ListVolumesRequest())
    assert [item.id for item in seen.volumes] == ["any", "data", "given"]
    seen = await other.volumes.ListVolumes(pb.ListVolumesRequest())
    assert [item.id for item in seen.volumes] == ["any", "foreign"]
    assert list(seen.volumes[1].hosts) == ["other"]
    with refused("NOT_FOUND") as there:
        await take.volumes.GetVolume(pb.GetVolumeRequest(name="volumes/foreign"))
    with refused("NOT_FOUND") as absent:
        await take.volumes.GetVolume(pb.GetVolumeRequest(name="volumes/nothing"))
    assert there.error.message.replace("foreign", "") == absent.error.message.replace("nothing", "")
    await root.volumes.PublishVolume(publish(name="volumes/any", host="hosts/other"))
    seen = await take.volumes.GetVolume(pb.GetVolumeRequest(name="volumes/any"))
    assert list(seen.publications) == []
    listed = await take.volumes.ListVolumes(pb.ListVolumesRequest(filter="host = other"))
    assert list(listed.volumes) == []
    mine = await take.volumes.ListPublications(pb.ListPublicationsRequest())
    assert [(item.volume, item.host) for item in mine.publications] == [("volumes/given", TAKE)]
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await take.volumes.ListPublications(pb.ListPublicationsRequest(host="hosts/other"))


async def test_a_host_rotates_its_own_secrets_only(front: Front) -> None:
    root, take, other = await two_hosts(front)
    ask = service_pb2.RotateSecretsRequest
    with refused("NOT_FOUND"):
        await take.service.RotateSecrets(ask(volume="volumes/foreign"))
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await take.service.RotateSecrets(ask(volume="volumes/given", host="hosts/other"))
    await take.service.RotateSecrets(ask(volume="volumes/given"))
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await other.service.RotateSecrets(ask(volume="volumes/foreign", host=TAKE))
    mine = await take.volumes.ListPublications(pb.ListPublicationsRequest())
    assert [
        (publication.rotation, publication.rotation_due) for publication in mine.publications
    ] == [(1, False)]
    rest = await root.volumes.ListPublications(pb.ListPublicationsRequest(host="hosts/other"))
    assert [publication.rotation for publication in rest.publications] == [0]


async def test_a_host_does_not_see_attachments_of_the_server(front: Front) -> None:
    root, take, _other = await two_hosts(front)
    await root.volumes.PublishVolume(publish())
    await root.volumes.ConnectVolume(connect())
    await root.volumes.ConnectVolume(connect(local_name="local", volume="given"))
    seen = await take.volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
    assert (seen.state, seen.HasField("attachment")) == (pb.STATE_PUBLISHED, False)
    with refused("NOT_FOUND"):
        await take.volumes.GetVolume(pb.GetVolumeRequest(name="volumes/local"))


async def test_a_host_publishes_to_itself_where_allowed(front: Front) -> None:
    _root, take, other = await two_hosts(front)
    answer = await take.volumes.PublishVolume(pb.PublishVolumeRequest(name=DATA))
    assert [publication.host for publication in answer.volume.publications] == [TAKE]
    assert list(answer.operation.actions) == []
    await other.volumes.PublishVolume(publish(name="volumes/any", host="hosts/other"))
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await other.volumes.PublishVolume(publish(name="volumes/any"))
    with refused("NOT_FOUND"):
        await take.volumes.PublishVolume(publish(name="volumes/foreign"))
    with refused("PERMISSION_DENIED", "NOT_ITS_HOST"):
        await take.volumes.PublishVolume(publish(name="volumes/given"))


async def test_a_host_unpublishes_itself_only(front: Front) -> None:
    _root, take, other = await two_hosts(front)
    with refused("PERMISSION_DENIED"):
        await take.volumes.UnpublishVolume(
            pb.UnpublishVolumeRequest(name="volumes/given", all_hosts=True)
        )
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await take.volumes.UnpublishVolume(
            pb.UnpublishVolumeRequest(name="volumes/given", host="hosts/other")
        )
    with refused("NOT_FOUND"):
        await other.volumes.UnpublishVolume(pb.UnpublishVolumeRequest(name="volumes/given"))
    answer = await take.volumes.UnpublishVolume(pb.UnpublishVolumeRequest(name="volumes/given"))
    assert not answer.HasField("volume")  # no more its to see
    assert [
        publication.host for publication in front.read(lambda txn: list(txn.scan(Publication)))
    ] == ["other"]


async def test_a_host_fetches_and_reports_for_itself_only(front: Front) -> None:
    _root, take, other = await two_hosts(front)
    own = await take.volumes.FetchConnection(pb.FetchConnectionRequest(name="volumes/given"))
    assert own.chap.password
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await other.volumes.FetchConnection(
            pb.FetchConnectionRequest(name="volumes/given", host=TAKE)
        )
    for name in ("volumes/given", "volumes/nothing"):
        with refused("NOT_FOUND"):
            await other.volumes.FetchConnection(pb.FetchConnectionRequest(name=name))
    with refused("FAILED_PRECONDITION", "NOT_PUBLISHED"):
        await other.volumes.FetchConnection(pb.FetchConnectionRequest(name="volumes/any"))
    ready = pb.Filesystem(state=pb.FILESYSTEM_STATE_READY, type="ext4", uuid=UUID)
    report = pb.ReportFilesystemRequest(name="volumes/given", epoch=1, filesystem=ready)
    with refused("NOT_FOUND"):
        await other.volumes.ReportFilesystem(report)
    report.epoch = 2
    with refused("FAILED_PRECONDITION", "STALE_EPOCH"):
        await take.volumes.ReportFilesystem(report)
    report.epoch = 1
    answer = await take.volumes.ReportFilesystem(report)
    assert (answer.volume.filesystem.state, answer.volume.filesystem.host) == (ready.state, "take")


async def test_a_host_registers_itself_only(front: Front) -> None:
    _root, take, other = await two_hosts(front)
    mine = host_pb2.RegisterHostRequest(host=host_pb2.Host(iqn=OTHER_IQN, addresses=["10.0.0.9"]))
    assert (await other.hosts.RegisterHost(mine)).host.name == "hosts/other"
    with refused("ALREADY_EXISTS", "NAME_TAKEN"):
        await take.hosts.RegisterHost(mine)
    mine.host.name = TAKE
    with refused("PERMISSION_DENIED", "OTHER_HOST"):
        await other.hosts.RegisterHost(mine)
