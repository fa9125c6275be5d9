"""Every message that changes something has `validate_only`, which leaves store and host alone."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from zfsilo.v1 import host_pb2, operation_pb2, replication_pb2, service_pb2, snapshot_pb2
from zfsilo.v1 import volume_pb2 as pb

from tests.api.dbus_fixture import on_private_bus, options
from tests.api.running import DATA, TAKE, create
from tests.api.test_dbus import break_down
from tests.api.test_plans_and_etags import DRY, as_replica, at_all_states, replicated
from tests.api.test_roles import METHODS
from tests.service_fixture import administrator
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    OPERATION,
    REPLICATION_POLICY,
    ROOT,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    interfaces,
    path_of,
)
from zfsilod.api.dbus.methods import QUERIES, RUNS
from zfsilod.api.dbus.mutations import MUTATIONS
from zfsilod.engine import worker
from zfsilod.model.records import Volume
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish
from zfsilod.requests.replication_policies import CreateReplicationPolicy
from zfsilod.requests.snapshot_policies import CreateSnapshotPolicy
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.volumes import CreateVolume
from zfsilod.security import certificates
from zfsilod.security.authorization import ACTIONS, READ

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front
    from tests.service_fixture import ServiceFixture
    from zfsilod.storage.store import Store

GIB = 1 << 30
READS = ("Get", "List", "Read", "Stats", "Probe", "Fetch", "Wait", "Watch")
CHANGES = {
    path.rpartition("/")[2]
    for path in METHODS
    if "zfsilo.v1" in path and not path.rpartition("/")[2].startswith(READS)
}
HOURLY = "replicationPolicies/hourly"
STRAY = "tank/zfsilo/stray"

# Each is planned on the host of `scene`; an operation's name is that of the one that needs repair.
EXAMPLES: dict[str, Any] = DRY | {
    "SyncVolume": pb.SyncVolumeRequest(name="volumes/used"),
    "SyncVolumes": pb.SyncVolumesRequest(),
    "ExportVolumeKey": pb.ExportVolumeKeyRequest(name="volumes/secret"),
    "AdoptVolumes": pb.AdoptVolumesRequest(),
    "CreateSnapshot": snapshot_pb2.CreateSnapshotRequest(snapshot_id="new", volume=DATA),
    "DeleteSnapshot": snapshot_pb2.DeleteSnapshotRequest(name="snapshots/monday"),
    "CreateSnapshotGroup": snapshot_pb2.CreateSnapshotGroupRequest(group_id="new", volumes=[DATA]),
    "DeleteSnapshotGroup": snapshot_pb2.DeleteSnapshotGroupRequest(name="snapshotGroups/all"),
    "CreateSnapshotPolicy": snapshot_pb2.CreateSnapshotPolicyRequest(
        policy_id="new", policy=snapshot_pb2.SnapshotPolicy(calendar="daily", grid="7x1d")
    ),
    "UpdateSnapshotPolicy": snapshot_pb2.UpdateSnapshotPolicyRequest(
        policy=snapshot_pb2.SnapshotPolicy(name="snapshotPolicies/nightly", grid="1x1d"),
        update_mask=FieldMask(paths=["grid"]),
    ),
    "DeleteSnapshotPolicy": snapshot_pb2.DeleteSnapshotPolicyRequest(
        name="snapshotPolicies/nightly"
    ),
    "RunSnapshotPolicy": snapshot_pb2.RunSnapshotPolicyRequest(name="snapshotPolicies/nightly"),
    "CreateReplicationPolicy": replication_pb2.CreateReplicationPolicyRequest(
        policy_id="new",
        policy=replication_pb2.ReplicationPolicy(peer="peer", calendar="daily"),
    ),
    "UpdateReplicationPolicy": replication_pb2.UpdateReplicationPolicyRequest(
        policy=replication_pb2.ReplicationPolicy(name=HOURLY, calendar="daily"),
        update_mask=FieldMask(paths=["calendar"]),
    ),
    "DeleteReplicationPolicy": replication_pb2.DeleteReplicationPolicyRequest(name=HOURLY),
    "RunReplicationPolicy": replication_pb2.RunReplicationPolicyRequest(name=HOURLY),
    "CreateHost": host_pb2.CreateHostRequest(
        host_id="more", host=host_pb2.Host(iqn="iqn.2024-01.lab:more")
    ),
    "UpdateHost": host_pb2.UpdateHostRequest(
        host=host_pb2.Host(name=TAKE, labels={"a": "b"}), update_mask=FieldMask(paths=["labels"])
    ),
    "DeleteHost": host_pb2.DeleteHostRequest(name="hosts/spare"),
    "RegisterHost": host_pb2.RegisterHostRequest(
        host=host_pb2.Host(name="hosts/spare", iqn="iqn.2024-01.lab:other")
    ),
    "IntroduceHost": host_pb2.IntroduceHostRequest(server="give"),
    "RemoveOrphans": service_pb2.RemoveOrphansRequest(names=[f"zvol/{STRAY}"]),
    "BindMachine": service_pb2.BindMachineRequest(cloned=True),
    "RotateSecrets": service_pb2.RotateSecretsRequest(volume=DATA, force=True),
    "RenewCertificate": service_pb2.RenewCertificateRequest(),
    "CancelOperation": operation_pb2.CancelOperationRequest(),
    "RepairOperation": operation_pb2.RepairOperationRequest(),
    "AbandonOperation": operation_pb2.AbandonOperationRequest(),
}


def everything(store: Store) -> dict[bytes, bytes]:
    """Return the whole content of a store."""
    with store.read() as txn:
        return dict(txn.items())


async def make_strange(fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a zvol without a record, drift, and an operation that needs repair; return its id."""
    await fixture.do(CreateVolume(id="stray", capacity_bytes=GIB))
    with fixture.service.context.store.write() as txn:
        txn.drop(Volume.bucket(), "stray")
    await fixture.do(CreateVolume(id="stuck", capacity_bytes=GIB))
    with monkeypatch.context() as patch:
        patch.setattr(worker, "rollback", break_down)
        fixture.host.facts.light_fuse(1, when="after", how="error")
        request = CreateSnapshot(volume="stuck", id="never")
        operation = await fixture.service.submit(request, caller=administrator("test"))
        assert (await fixture.service.ended(operation.id, 20)).state == "NEEDS_REPAIR"
    fixture.host.facts.effect("portal:10.0.0.2:3260", None)
    return operation.id


async def scene(front: Front, monkeypatch: pytest.MonkeyPatch) -> str:
    """Bring volumes to all states, and make what `make_strange` makes; return its operation."""
    api = front.root()
    await at_all_states(front)
    await api.volumes.CreateVolume(create("cut"))
    await api.snapshots.CreateSnapshot(
        snapshot_pb2.CreateSnapshotRequest(snapshot_id="monday", volume="volumes/cut")
    )
    await api.snapshots.CreateSnapshotGroup(
        snapshot_pb2.CreateSnapshotGroupRequest(group_id="all", volumes=["volumes/cut"])
    )
    policy = snapshot_pb2.SnapshotPolicy(calendar="daily", grid="7x1d")
    await api.snapshots.CreateSnapshotPolicy(
        snapshot_pb2.CreateSnapshotPolicyRequest(policy_id="nightly", policy=policy)
    )
    sends = replication_pb2.ReplicationPolicy(
        peer="peer", calendar="hourly", volumes=["volumes/lone"]
    )
    await api.replications.CreateReplicationPolicy(
        replication_pb2.CreateReplicationPolicyRequest(policy_id="hourly", policy=sends)
    )
    await api.hosts.CreateHost(
        host_pb2.CreateHostRequest(host_id="spare", host=host_pb2.Host(iqn="iqn.2024-01.lab:spare"))
    )
    return await make_strange(front.fixture, monkeypatch)


def test_every_change_can_be_validated_only() -> None:
    assert set(EXAMPLES) == CHANGES
    fields = {
        path.rpartition("/")[2]: set(method.input_type.fields_by_name)
        for path, method in METHODS.items()
    }
    assert [name for name in sorted(CHANGES) if "validate_only" not in fields[name]] == []


async def test_validate_only_leaves_store_and_host_as_they_were(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = await scene(front, monkeypatch)
    apis = {"RenewCertificate": front.role("host", "take")}
    csr = certificates.make_request().certificate_pem.decode()
    facts, stored = front.fixture.facts, everything(front.service.context.store)
    for name, example in EXAMPLES.items():
        request = type(example)()
        request.CopyFrom(example)
        request.validate_only = True
        if name.endswith("Operation"):
            request.name = f"operations/{stuck}"
        if name == "RenewCertificate":
            request.request = csr
        api = apis.get(name, front.root())
        groups = (api.volumes, api.snapshots, api.replications, api.hosts)
        more = (api.service, api.operations)
        (method,) = (getattr(one, name) for one in (*groups, *more) if hasattr(one, name))
        try:
            answer = await method(request)
        except grpc.aio.AioRpcError as error:
            pytest.fail(f"{name}: {error.details()}")
        assert (front.fixture.facts, everything(front.service.context.store)) == (facts, stored), (
            name
        )
        if name == "AdoptVolumes":
            assert list(answer.volumes) == ["volumes/stray"]
        if name == "RenewCertificate":
            assert answer.certificate == ""


# On D-Bus: the path of the object, and the arguments before the options.
CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    f"{MANAGER}.CreateVolume": (ROOT, ("new", GIB)),
    f"{MANAGER}.UndeleteVolume": (ROOT, ("gone",)),
    f"{MANAGER}.AdoptVolume": (ROOT, (STRAY,)),
    f"{MANAGER}.Attach": (ROOT, ("give", "used", "/srv/used")),
    f"{MANAGER}.Connect": (ROOT, ("give", "used")),
    f"{MANAGER}.RegisterHost": (ROOT, ("spare",)),
    f"{MANAGER}.RemoveOrphans": (ROOT, ([f"zvol/{STRAY}"],)),
    f"{MANAGER}.BindMachine": (ROOT, (True,)),
    f"{MANAGER}.DeleteHost": (ROOT, ("spare",)),
    f"{HOST}.Update": (path_of("host", "spare"), ()),
    f"{MANAGER}.CreateSnapshotPolicy": (ROOT, ("hourly", "hourly", "24x1h")),
    f"{SNAPSHOT_POLICY}.Run": (path_of("policy", "nightly"), ()),
    f"{SNAPSHOT_POLICY}.Update": (path_of("policy", "nightly"), ()),
    f"{SNAPSHOT_POLICY}.Delete": (path_of("policy", "nightly"), ()),
    f"{MANAGER}.CreateReplicationPolicy": (ROOT, ("new", "other", "hourly")),
    f"{REPLICATION_POLICY}.Run": (path_of("replication", "hourly"), ()),
    f"{REPLICATION_POLICY}.Update": (path_of("replication", "hourly"), ()),
    f"{REPLICATION_POLICY}.Delete": (path_of("replication", "hourly"), ()),
    f"{VOLUME}.Snapshot": (path_of("volume", "data"), ("new",)),
    f"{SNAPSHOT}.Delete": (path_of("snapshot", "monday"), ()),
    f"{VOLUME}.Delete": (path_of("volume", "lone"), ()),
    f"{VOLUME}.Update": (path_of("volume", "lone"), ()),
    f"{VOLUME}.Resize": (path_of("volume", "lone"), (2 * GIB,)),
    f"{VOLUME}.Publish": (path_of("volume", "lone"), ("take",)),
    f"{VOLUME}.Unpublish": (path_of("volume", "used"), ("take",)),
    f"{VOLUME}.RotateSecrets": (path_of("volume", "used"), ("take",)),
    f"{VOLUME}.RotateKey": (path_of("volume", "secret"), ()),
    f"{VOLUME}.Replicate": (path_of("volume", "lone"), ("peer",)),
    f"{VOLUME}.EndReplication": (path_of("volume", "used"), ("peer",)),
    f"{VOLUME}.Promote": (path_of("volume", "sent"), ()),
    f"{VOLUME}.Demote": (path_of("volume", "lone"), ("peer",)),
    f"{VOLUME}.SetAside": (path_of("volume", "lone"), ("far",)),
    f"{VOLUME}.Detach": (path_of("volume", "data"), ()),
    f"{VOLUME}.Disconnect": (path_of("volume", "low"), ()),
    f"{VOLUME}.Stage": (path_of("volume", "low"), ("",)),
    f"{VOLUME}.Unstage": (path_of("volume", "mid"), ("",)),
    f"{VOLUME}.Mount": (path_of("volume", "data"), ("/srv/more",)),
    f"{VOLUME}.Unmount": (path_of("volume", "data"), ("/srv/data",)),
    f"{VOLUME}.Grow": (path_of("volume", "data"), ()),
    f"{VOLUME}.Sync": (path_of("volume", "used"), ()),
    f"{OPERATION}.Cancel": ("", ()),
    f"{OPERATION}.Repair": ("", ()),
    f"{OPERATION}.Abandon": ("", ()),
}
MORE_OPTIONS: dict[str, dict[str, tuple[str, Any]]] = {
    f"{MANAGER}.RegisterHost": {"iqn": ("s", "iqn.2024-01.lab:other")},
    f"{HOST}.Update": {"labels": ("a{ss}", {"a": "b"})},
    f"{SNAPSHOT_POLICY}.Update": {"grouped": ("b", True)},
    f"{REPLICATION_POLICY}.Update": {"volumes": ("as", ["data"])},
    f"{VOLUME}.Update": {"labels": ("a{ss}", {"a": "b"})},
    f"{VOLUME}.Promote": {"primary_is_off": ("b", True)},
}


async def bus_scene(fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the same volumes for D-Bus; return the operation that needs repair."""
    for name in ("data", "gone", "lone", "used", "low", "mid", "cut", "sent"):
        await fixture.do(CreateVolume(id=name, capacity_bytes=GIB, hosts=("take",)))
    await fixture.do(CreateVolume(id="secret", capacity_bytes=GIB, encrypt=True))
    for name in ("data", "used", "low", "mid"):
        await fixture.do(Publish(volume=name, host="take"))
    for name in ("data", "low", "mid"):
        await fixture.do(Connect(id=name, server="give", volume=name))
    await fixture.do(Stage(id="data"), Stage(id="mid"), MountAt(id="data", path="/srv/data"))
    context = fixture.service.context
    settings = context.settings
    context.settings = settings.but(trash_retention_s=86400)
    await fixture.do(DeleteVolume(id="gone"))
    context.settings = settings
    await fixture.do(CreateSnapshot(volume="cut", id="monday"))
    await fixture.do(CreateHost(id="spare", iqn="iqn.2024-01.lab:spare"))
    await fixture.do(CreateSnapshotPolicy(id="nightly", calendar="daily", grid="7x1d"))
    sends = CreateReplicationPolicy(id="hourly", peer="other", calendar="hourly")
    await fixture.do(sends.but(volumes=("lone",)))
    await context.write(partial(replicated, "used"))
    changed = await context.write(partial(as_replica, "sent"))
    fixture.host.facts.effect(*changed(fixture.host))
    fixture.host.facts.effect("peer role far", {"term": 0})
    return await make_strange(fixture, monkeypatch)


def test_every_change_on_the_bus_has_options() -> None:
    changes = {name for name in (*MUTATIONS, *QUERIES, *RUNS) if ACTIONS[name] != READ}
    assert changes == set(CALLS)


@pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")
async def test_validate_only_on_the_bus_leaves_store_and_host_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_private_bus(tmp_path) as fixture:
        stuck = await bus_scene(fixture.built, monkeypatch)
        client = await fixture.client()
        facts, stored = fixture.host.facts.snapshot(), everything(fixture.store)
        for name, (path, arguments) in CALLS.items():
            interface, _dot, member = name.rpartition(".")
            signature = interfaces()[interface].methods[member].input
            only = options(validate_only=("b", True), **MORE_OPTIONS.get(name, {}))
            where = path or path_of("operation", stuck)
            reply = await client.try_call(where, interface, member, signature, *arguments, only)
            assert not reply.error, (name, reply.body)
            assert (fixture.host.facts.snapshot(), everything(fixture.store)) == (facts, stored), (
                name
            )
