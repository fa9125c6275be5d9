"""HostService and Service over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import host_pb2 as pb
from zfsilo.v1 import operation_pb2, service_pb2

from tests.api.running import create, front_of, publish, refused
from tests.service_fixture import SETTINGS
from zfsilod import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front

IQN = "iqn.2026-01.org.example:b"
OTHER = "hosts/other"


def other(**fields: object) -> pb.CreateHostRequest:
    values = {"iqn": IQN, "addresses": ["10.0.0.2"], "labels": {"rack": "7"}, "max_attachments": 9}
    return pb.CreateHostRequest(host_id="other", host=pb.Host(**(values | fields)))  # type: ignore[arg-type]


async def test_life_of_a_host(front: Front) -> None:
    hosts = front.root().hosts
    made = (await hosts.CreateHost(other())).host
    assert (made.name, made.id, made.iqn, made.max_attachments) == (OTHER, "other", IQN, 9)
    assert (list(made.addresses), dict(made.labels)) == (["10.0.0.2"], {"rack": "7"})
    assert await hosts.GetHost(pb.GetHostRequest(name=OTHER)) == made
    update = pb.UpdateHostRequest(
        host=pb.Host(name=OTHER, nqn="nqn.2026-01.org.example:b", iqn="ignored"),
        update_mask=FieldMask(paths=["nqn", "labels"]),
        etag=made.etag,
    )
    changed = (await hosts.UpdateHost(update)).host
    assert (changed.nqn, changed.iqn, dict(changed.labels)) == (update.host.nqn, IQN, {})
    with refused("ABORTED", "ETAG"):
        await hosts.UpdateHost(update)
    with refused("ABORTED", "ETAG"):
        await hosts.DeleteHost(pb.DeleteHostRequest(name=OTHER, etag=made.etag))
    gone = await hosts.DeleteHost(pb.DeleteHostRequest(name=OTHER, etag=changed.etag))
    assert gone.operation.state == operation_pb2.OPERATION_STATE_DONE
    assert not gone.HasField("host")
    with refused("NOT_FOUND"):
        await hosts.GetHost(pb.GetHostRequest(name=OTHER))


async def test_an_iqn_in_any_case_is_kept_in_lower_case(front: Front) -> None:
    hosts = front.root().hosts
    request = pb.CreateHostRequest(host_id="b", host=pb.Host(iqn="iqn.2026-01.org.Example:Host_B"))
    for _attempt in ("create", "repeat"):
        created = (await hosts.CreateHost(request)).host
        assert created.iqn == "iqn.2026-01.org.example:host_b"


async def test_invalid_hosts_are_refused(front: Front) -> None:
    root = front.root()
    await root.hosts.CreateHost(other())
    with refused("ALREADY_EXISTS"):
        await root.hosts.CreateHost(other(max_attachments=1))
    twin = other()
    twin.host_id = "twin"
    with refused("ALREADY_EXISTS", "NAME_TAKEN") as refusal:
        await root.hosts.CreateHost(twin)
    assert refusal.error.facts["host"] == "other"
    twin.host.iqn = "no iqn"
    with refused("INVALID_ARGUMENT", "BAD_IQN"):
        await root.hosts.CreateHost(twin)
    with refused("INVALID_ARGUMENT", "BAD_MASK"):
        await root.hosts.UpdateHost(
            pb.UpdateHostRequest(host=pb.Host(name=OTHER), update_mask=FieldMask(paths=["id"]))
        )
    with refused("INVALID_ARGUMENT", "BAD_NAME"):
        await root.hosts.GetHost(pb.GetHostRequest(name="other"))
    await root.volumes.CreateVolume(create())
    await root.volumes.PublishVolume(publish())
    with refused("FAILED_PRECONDITION", "PUBLISHED"):
        await root.hosts.DeleteHost(pb.DeleteHostRequest(name="hosts/take"))


async def test_registering_updates_a_host(front: Front) -> None:
    hosts = front.root().hosts
    request = pb.RegisterHostRequest(host=pb.Host(name=OTHER, iqn=IQN))
    first = (await hosts.RegisterHost(request)).host
    request.host.addresses.append("10.0.0.3")
    second = (await hosts.RegisterHost(request)).host
    assert list(second.addresses) == ["10.0.0.3"]
    assert second.create_time == first.create_time
    with refused("INVALID_ARGUMENT", "NO_HOST"):
        await hosts.RegisterHost(pb.RegisterHostRequest(host=pb.Host(iqn=IQN)))


async def test_every_change_of_a_host_can_be_validated_only(front: Front) -> None:
    hosts = front.root().hosts
    await hosts.CreateHost(other())
    for method, request in {
        "CreateHost": pb.CreateHostRequest(host_id="more", host=pb.Host(iqn=IQN + "c")),
        "UpdateHost": pb.UpdateHostRequest(
            host=pb.Host(name=OTHER), update_mask=FieldMask(paths=["labels"])
        ),
        "DeleteHost": pb.DeleteHostRequest(name=OTHER),
        "RegisterHost": pb.RegisterHostRequest(host=pb.Host(name=OTHER, iqn=IQN)),
    }.items():
        request.validate_only = True  # type: ignore[attr-defined]
        answer = await getattr(hosts, method)(request)
        assert answer.operation.state == operation_pb2.OPERATION_STATE_PLANNED
        assert not answer.HasField("host")
    listed = await hosts.ListHosts(pb.ListHostsRequest())
    assert [host.id for host in listed.hosts] == ["other", "take"]
    assert dict(listed.hosts[0].labels) == {"rack": "7"}


async def test_server_info(front: Front) -> None:
    info = await front.root().service.GetServerInfo(service_pb2.GetServerInfoRequest())
    assert (info.nvme_cntlid_min, info.nvme_cntlid_max) == (32000, 65519)
    assert (info.version, info.host, list(info.roles)) == (
        __version__,
        "hosts/take",
        ["server", "client"],
    )
    assert info.caller == "uid 0 (unix)"


async def test_capacity(front: Front) -> None:
    service = front.root().service
    room = await service.GetCapacity(service_pb2.GetCapacityRequest())
    assert 0 < room.available_bytes <= room.total_bytes
    with refused("INVALID_ARGUMENT"):
        await service.GetCapacity(service_pb2.GetCapacityRequest(root="tank/other"))


async def test_the_capacity_names_the_problem_of_the_pool(front: Front) -> None:
    service, facts = front.root().service, front.fixture.host.facts
    facts.effect("pool:tank", "DEGRADED")
    degraded = await service.GetCapacity(service_pb2.GetCapacityRequest())
    assert degraded.condition_reasons == ["POOL_DEGRADED"]
    assert "tank is DEGRADED" in degraded.conditions[0]
    assert degraded.available_bytes
    facts.effect("pool:tank", "LOCKED")  # encrypted by the administrator, without its key
    locked = await service.GetCapacity(service_pb2.GetCapacityRequest())
    assert locked.condition_reasons == ["KEY_NOT_LOADED"]
    shown = (await service.GetStatus(service_pb2.GetStatusRequest())).attention
    assert ["zfs load-key tank" in one.sentence for one in shown] == [True]
    facts.effect("pool:tank", "SUSPENDED")
    with refused("UNAVAILABLE", "POOL_SUSPENDED"):
        await service.GetCapacity(service_pb2.GetCapacityRequest())
    with refused("INVALID_ARGUMENT"):
        await service.GetCapacity(service_pb2.GetCapacityRequest(root="elsewhere"))


async def test_a_host_without_a_root_has_no_capacity(tmp_path: Path) -> None:
    async with front_of(tmp_path, SETTINGS.but(root="")) as front:
        service = front.root().service
        info = await service.GetServerInfo(service_pb2.GetServerInfoRequest())
        assert list(info.roles) == ["client"]
        with refused("FAILED_PRECONDITION", "NO_ROOT"):
            await service.GetCapacity(service_pb2.GetCapacityRequest())


async def test_capacity_for_thin_and_thick_volumes(front: Front) -> None:
    service = front.root().service
    plain = await service.GetCapacity(service_pb2.GetCapacityRequest())
    thick = await service.GetCapacity(service_pb2.GetCapacityRequest(thin=False))
    thin = await service.GetCapacity(service_pb2.GetCapacityRequest(thin=True))
    assert thick.available_bytes < plain.available_bytes < thin.available_bytes
    assert not plain.conditions
    with refused("INVALID_ARGUMENT", "BAD_PROPERTY"):
        await service.GetCapacity(service_pb2.GetCapacityRequest(properties={"sync": "never"}))
