"""Every call that takes class parameters takes those of every shipped class.

The sidecars pass all parameters of a class to every such call, so one call that refuses a parameter
of an example makes the whole class useless.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from csi.v1 import csi_pb2 as csi
from zfsilo_csi.backends import ZONE_KEY
from zfsilo_csi.parameters import KEYS

from tests.csi.plugin_client import fails, mount, take_away, up
from zfsilod.model.host_facts import IoLimits
from zfsilod.model.records import Volume
from zfsilod.requests.volumes import CreateVolume

if TYPE_CHECKING:
    from tests.csi.cluster import Cluster

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "csi/deploy/examples"
PARAMETERS = re.compile(r"^parameters:\n((?:  .*\n)*)", re.M)
PARAMETER = re.compile(r"^  (\S+): +\"?([^\"#\n]+?)\"? *(?:#.*)?$", re.M)
CLAIM = {  # added by the provisioner and the snapshotter with --extra-create-metadata
    "csi.storage.k8s.io/pvc/name": "data",
    "csi.storage.k8s.io/pvc/namespace": "default",
    "csi.storage.k8s.io/pv/name": "pvc-1",
}
CLASSES = (
    "StorageClass",
    "VolumeAttributesClass",
    "VolumeSnapshotClass",
    "VolumeGroupSnapshotClass",
)


class ShippedClass(NamedTuple):
    """A class of the examples."""

    kind: str
    name: str
    parameters: dict[str, str]

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


def shipped() -> list[ShippedClass]:
    """Return all classes of the examples, which are plain enough to be read without a parser."""
    classes = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for text in path.read_text().split("---\n"):
            kind, name = re.search(r"^kind: (\w+)$", text, re.M), re.search(r"name: (\S+)", text)
            if kind and name and kind[1] in CLASSES:
                block = PARAMETERS.search(text)
                pairs = PARAMETER.findall(block[1]) if block else []
                assert len(pairs) == (block[1].count("\n") if block else 0), text
                classes.append(ShippedClass(kind[1], name[1], dict(pairs)))
    return classes


def of_kind(kind: str) -> pytest.MarkDecorator:
    classes = [example for example in shipped() if example.kind == kind]
    return pytest.mark.parametrize("example", classes, ids=str)


def test_each_kind_of_class_is_shipped() -> None:
    assert {example.kind for example in shipped()} == set(CLASSES)
    with_parameters = {example.kind for example in shipped() if example.parameters}
    assert {"StorageClass", "VolumeAttributesClass"} <= with_parameters


def test_each_parameter_is_in_an_example() -> None:
    """Except `backend`, which names one of the reader's own servers."""
    shown = {key for example in shipped() for key in example.parameters}
    assert set(KEYS) - shown == {"backend"}


@of_kind("StorageClass")
async def test_a_storage_class(example: ShippedClass, cluster: Cluster) -> None:
    plugin, parameters = cluster.plugin, example.parameters
    capacity = await plugin.controller.GetCapacity(
        csi.GetCapacityRequest(parameters=parameters, volume_capabilities=[mount()])
    )
    assert capacity.available_capacity > 0
    # The provisioner removes the keys that are its own.
    own = {key: value for key, value in parameters.items() if "csi.storage.k8s.io/" not in key}
    volume = await plugin.create(parameters=own | CLAIM)
    await plugin.create(parameters=own | CLAIM)
    confirmed = await plugin.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id, volume_capabilities=[mount()], parameters=parameters
        )
    )
    assert confirmed.confirmed.parameters == parameters
    for attributes in (one for one in shipped() if one.kind == "VolumeAttributesClass"):
        mutable = attributes.parameters
        create = plugin.create("other", parameters=own | CLAIM, mutable_parameters=mutable)
        if own.get("transport") == "nvme" and any(key.startswith("limit") for key in mutable):
            with fails("INVALID_ARGUMENT", "limits need the transport iscsi"):
                await create
        else:
            await create


async def test_a_schedule_is_a_label(cluster: Cluster) -> None:
    volume = await cluster.plugin.create(parameters={"schedule": "gold"} | CLAIM)
    name = volume.volume_id.rpartition("/")[2]
    with cluster.give.service.context.read() as txn:
        record = txn.get(Volume, name)
    assert record is not None
    assert dict(record.labels)["schedule"] == "gold"


async def test_an_encrypted_class(cluster: Cluster) -> None:
    encrypted = {"encrypt": "true"} | CLAIM
    volume = await cluster.plugin.create(parameters=encrypted)
    name = volume.volume_id.rpartition("/")[2]
    with cluster.give.service.context.read() as txn:
        record = txn.get(Volume, name)
    assert record is not None
    assert record.key_uid == record.uid
    await cluster.plugin.create(parameters=encrypted)  # repeated
    with fails("ALREADY_EXISTS", "encryption"):
        await cluster.plugin.create(parameters=CLAIM)
    with fails("INVALID_ARGUMENT", "encrypt"):
        await cluster.plugin.create("wrong", parameters={"encrypt": "yes"})


async def test_limits_of_a_class_change_live(cluster: Cluster) -> None:
    async def modify(**parameters: str) -> IoLimits:
        await plugin.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(
                volume_id=volume.volume_id, mutable_parameters=parameters
            )
        )
        return limits()

    def limits() -> IoLimits:
        with cluster.give.service.context.read() as txn:
            record = txn.get(Volume, volume.volume_id.rpartition("/")[2])
        assert record is not None
        return record.limits

    plugin = cluster.plugin
    slow = {"limitReadIops": "500", "limitWriteBytes": "50Mi"} | CLAIM
    volume = await plugin.create(parameters=slow, mutable_parameters={"limitReadIops": "900"})
    assert limits() == IoLimits(read_iops=900, write_bytes=50 << 20)
    await plugin.create(parameters=slow)  # repeated; limits may have changed since
    assert await modify(limitWriteIops="30") == limits().but(write_iops=30)
    assert await modify(limitReadIops="0", limitWriteBytes="0") == IoLimits(write_iops=30)
    for value in ("fast", "1.5", "-1", "50M", "9"):
        with fails("INVALID_ARGUMENT", "limit"):
            await modify(limitReadIops=value)
    with fails("INVALID_ARGUMENT", "iscsi"):
        await plugin.create("nvme", parameters={"transport": "nvme", "limitReadIops": "500"})
    with fails("INVALID_ARGUMENT", "limitReadIops"):
        await plugin.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(
                volume_id=volume.volume_id, mutable_parameters={"thin": "true"}
            )
        )


async def test_a_class_with_tls(cluster: Cluster) -> None:
    with_tls = {"transport": "nvme", "tls": "true"} | CLAIM
    volume = await cluster.plugin.create(parameters=with_tls)
    with cluster.give.service.context.read() as txn:
        record = txn.get(Volume, volume.volume_id.rpartition("/")[2])
    assert record is not None
    assert (record.transport, record.tls) == ("NVME", True)
    await cluster.plugin.create(parameters=with_tls)  # repeated
    with fails("ALREADY_EXISTS", "tls"):
        await cluster.plugin.create(parameters={"transport": "nvme"} | CLAIM)
    with fails("INVALID_ARGUMENT", "needs the transport nvme"):
        await cluster.plugin.create("wrong", parameters={"tls": "true"})


async def test_tls_is_not_asked_of_an_older_server(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would drop the field, and create a volume without."""
    monkeypatch.setattr("zfsilod.api.rpc.service.FEATURES", ("clones",))
    with fails("FAILED_PRECONDITION", "has a zfsilod without TLS"):
        await cluster.plugin.create(parameters={"transport": "nvme", "tls": "true"} | CLAIM)
    with cluster.give.service.context.read() as txn:
        assert list(txn.scan(Volume)) == []


@of_kind("VolumeAttributesClass")
async def test_a_volume_attributes_class(example: ShippedClass, cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume = await plugin.create(mutable_parameters=example.parameters)
    plain = await plugin.create("plain")
    for volume_id in (volume.volume_id, plain.volume_id):
        await plugin.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(
                volume_id=volume_id, mutable_parameters=example.parameters
            )
        )


@of_kind("VolumeSnapshotClass")
async def test_a_snapshot_class(example: ShippedClass, cluster: Cluster) -> None:
    volume = await cluster.plugin.create()
    await cluster.plugin.controller.CreateSnapshot(
        csi.CreateSnapshotRequest(
            name="s", source_volume_id=volume.volume_id, parameters=example.parameters | CLAIM
        )
    )


@of_kind("VolumeGroupSnapshotClass")
async def test_a_group_snapshot_class(example: ShippedClass, cluster: Cluster) -> None:
    volume = await cluster.plugin.create()
    await cluster.plugin.group.CreateVolumeGroupSnapshot(
        csi.CreateVolumeGroupSnapshotRequest(
            name="g", source_volume_ids=[volume.volume_id], parameters=example.parameters | CLAIM
        )
    )


async def test_the_static_volume(cluster: Cluster) -> None:
    """A volume that was created by hand is published, staged and mounted by its handle."""
    text = (EXAMPLES / "static.yaml").read_text()
    handle = re.search(r"^    volumeHandle: (\S+)", text, re.M)
    zones = re.search(rf"^ +- key: {ZONE_KEY}\n +operator: In\n +values: \[(\w+)\]", text, re.M)
    assert handle, text
    assert zones, text
    backend, _slash, volume = handle[1].partition("/")
    await cluster.fronts[backend].fixture.do(CreateVolume(id=volume, capacity_bytes=10 << 30))
    response = await cluster.plugin.get(handle[1])
    assert [one.segments[ZONE_KEY] for one in response.volume.accessible_topology] == [zones[1]]
    await up(cluster.plugin, handle[1])
    await take_away(cluster.plugin, handle[1])


async def test_capacity_refuses_what_a_creation_refuses(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for name, value in (("volblocksize", "3k"), ("mountpoint", "/etc"), ("compression", "fast")):
        parameters = {f"zfs.{name}": value}
        with fails("INVALID_ARGUMENT", name):
            await plugin.controller.GetCapacity(csi.GetCapacityRequest(parameters=parameters))
        with fails("INVALID_ARGUMENT", name):
            await plugin.create(parameters=parameters)
