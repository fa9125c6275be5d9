"""The lifecycle of a volume under Kubernetes, and the requests that the plugin refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from csi.v1 import csi_pb2 as csi

from tests.csi.plugin_client import (
    GIB,
    NODE,
    block,
    down,
    fails,
    mount,
    take_away,
    until_known,
    up,
)

if TYPE_CHECKING:
    from tests.csi.cluster import Cluster

OTHER = "other"


async def register_other(cluster: Cluster) -> None:
    """Register a second node."""
    from zfsilod.requests.hosts import CreateHost

    await cluster.give.fixture.do(CreateHost(id=OTHER, iqn="iqn.2024-01.lab.other:host"))


async def test_a_lifecycle_leaves_nothing(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for kind in (mount(), block(), mount(fs_type="xfs", mount_flags=["noatime"])):
        before = {n for n in cluster.facts if not n.startswith("content:")}
        volume = await plugin.create(volume_capabilities=[kind])
        await up(plugin, volume.volume_id, capability=kind)
        await up(plugin, volume.volume_id, capability=kind)  # repeated calls change nothing
        assert f"mount:{plugin.path('pod-a')}" in cluster.facts
        await down(plugin, volume.volume_id)
        await down(plugin, volume.volume_id)
        assert {n for n in cluster.facts if not n.startswith("content:")} == before


async def test_create_volume_response(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume = await plugin.create(name="N" * 128)
    assert volume.volume_id.startswith("give/csi-")
    assert len(volume.volume_id) == len("give/csi-") + 26
    assert volume.capacity_bytes == GIB
    assert [dict(topology.segments) for topology in volume.accessible_topology] == [
        {"topology.zfsilo.io/zone": "default"}
    ]
    assert (await plugin.create(name="N" * 128)).volume_id == volume.volume_id
    assert (await plugin.create(name="n" * 128)).volume_id != volume.volume_id
    assert (await plugin.create(name="ä" * 64)).volume_id
    with fails("INVALID_ARGUMENT"):
        await plugin.create(name="ä" * 65)


async def test_the_same_name_with_other_parameters(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await plugin.create()
    for odd in (
        {"capacity_range": csi.CapacityRange(required_bytes=2 * GIB)},
        {"capacity_range": csi.CapacityRange(limit_bytes=GIB // 2)},
        {"volume_capabilities": [block()]},
        {"parameters": {"thin": "false"}},
        {"parameters": {"zfs.volblocksize": "64k"}},
    ):
        with fails("ALREADY_EXISTS", "pvc-1 already exists with a different"):
            await plugin.create(**odd)
    await plugin.create(capacity_range=csi.CapacityRange(required_bytes=1, limit_bytes=2 * GIB))


async def test_invalid_create_volume_requests(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for odd, text in (
        ({"volume_capabilities": []}, "volume_capabilities are missing"),
        ({"volume_capabilities": [mount(), block()]}, "request only one"),
        ({"volume_capabilities": [mount("MULTI_NODE_MULTI_WRITER")]}, "raw block volumes only"),
        ({"volume_capabilities": [mount(fs_type="btrfs")]}, "use ext4 or xfs"),
        ({"volume_capabilities": [mount(mount_flags=["suid"])]}, "'suid' is not allowed"),
        ({"volume_capabilities": [mount(volume_mount_group="1000")]}, "use fsGroup"),
        ({"parameters": {"thin": "perhaps"}}, "thin"),
        ({"parameters": {"color": "red"}}, "'color'"),
        ({"parameters": {"backend": "nowhere"}}, "not in the plugin's configuration"),
        ({"parameters": {"zfs.mountpoint": "/etc"}}, "mountpoint"),
        ({"mutable_parameters": {"zfs.volblocksize": "16k"}}, "fixed"),
    ):
        with fails("INVALID_ARGUMENT", text):
            await plugin.create(**odd)
    for size in ((-1, 0), (2 * GIB, GIB), (1 << 61, 0), (0, 1)):
        wanted = csi.CapacityRange(required_bytes=size[0], limit_bytes=size[1])
        with fails("OUT_OF_RANGE"):
            await plugin.create(capacity_range=wanted)
    with fails("RESOURCE_EXHAUSTED"):
        await plugin.create(capacity_range=csi.CapacityRange(required_bytes=1 << 50))


async def test_a_second_node_is_refused_with_the_name_of_the_first(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await register_other(cluster)
    volume_id = (await plugin.create()).volume_id
    await plugin.publish(volume_id)
    with fails("FAILED_PRECONDITION", f"published to {NODE}"):
        await plugin.publish(volume_id, OTHER)
    with fails("ALREADY_EXISTS"):
        await plugin.publish(volume_id, readonly=True)
    with fails("FAILED_PRECONDITION", NODE):
        await plugin.delete(volume_id)
    with fails("NOT_FOUND", "nobody"):
        await plugin.publish(volume_id, "nobody")
    await plugin.unpublish(volume_id, "nobody")
    await plugin.unpublish(volume_id, "No id, this")
    await plugin.unpublish(volume_id, "")  # all nodes
    await plugin.publish(volume_id, OTHER)
    assert (await plugin.get(volume_id)).status.published_node_ids == [OTHER]


@pytest.mark.parametrize("mode", ["SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"])
async def test_a_read_only_filesystem_needs_a_source(cluster: Cluster, mode: str) -> None:
    """It would be bound, and NodeStage would refuse it for ever: nobody creates the filesystem."""
    plugin = cluster.plugin
    readers = [mount(mode)]
    with fails("INVALID_ARGUMENT", "create it from a snapshot or a volume"):
        await plugin.create("empty", volume_capabilities=readers)
    source = await plugin.create("source")
    content = csi.VolumeContentSource(
        volume=csi.VolumeContentSource.VolumeSource(volume_id=source.volume_id)
    )
    await plugin.create("copy", volume_capabilities=readers, volume_content_source=content)
    await plugin.create("both", volume_capabilities=[mount(), *readers])
    await plugin.create("raw", volume_capabilities=[block(mode)])


async def test_readers_on_several_nodes(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await register_other(cluster)
    readers = mount("MULTI_NODE_READER_ONLY")
    volume = await plugin.create(volume_capabilities=[mount(), readers])
    await up(plugin, volume.volume_id)  # one writer formats it first
    await take_away(plugin, volume.volume_id)
    await up(plugin, volume.volume_id, capability=readers)
    await up(plugin, volume.volume_id, capability=readers)
    await plugin.publish(volume.volume_id, OTHER, volume_capability=readers)
    assert cluster.facts[f"mount:{plugin.path('pod-a')}"]["readonly"]
    status = (await plugin.get(volume.volume_id)).status
    assert status.published_node_ids == [OTHER, NODE]


async def test_a_published_readonly_volume_is_staged_again(cluster: Cluster) -> None:
    """At NodeStage kubelet does not know that the target refuses writes."""
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)
    await take_away(plugin, volume_id)
    context = await plugin.publish(volume_id, readonly=True)
    for _time in range(2):
        await plugin.stage(volume_id, context)
        await plugin.mount(volume_id, readonly=True)


async def test_one_path_or_several(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    for mode in ("SINGLE_NODE_WRITER", "SINGLE_NODE_SINGLE_WRITER"):
        await up(plugin, volume_id, capability=mount(mode))
        with fails("FAILED_PRECONDITION", "one path only"):
            await plugin.mount(volume_id, "pod-b", mount(mode))
        await take_away(plugin, volume_id)
    shared = mount("SINGLE_NODE_MULTI_WRITER")
    await up(plugin, volume_id, capability=shared)
    await plugin.mount(volume_id, "pod-b", shared)
    with fails("ALREADY_EXISTS"):
        await plugin.mount(volume_id, "pod-b", shared, readonly=True)
    with fails("FAILED_PRECONDITION", "unmount it first"):
        await plugin.unstage(volume_id)


async def test_a_stale_epoch_is_refused(cluster: Cluster) -> None:
    """A late NodeStage of a node that was fenced in the meantime."""
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    old = await plugin.publish(volume_id)
    await plugin.unpublish(volume_id)
    with fails("FAILED_PRECONDITION", "no longer published to this node"):
        await plugin.stage(volume_id, old)
    new = await plugin.publish(volume_id)
    assert new != old
    with fails("FAILED_PRECONDITION", "has expired"):
        await plugin.stage(volume_id, old)
    for odd in ({}, {"epoch": "soon"}, {"epoch": "-1"}):
        with fails("FAILED_PRECONDITION", "no valid epoch"):
            await plugin.stage(volume_id, odd)
    await plugin.stage(volume_id, new)


async def test_a_node_that_does_not_log_out_is_fenced(cluster: Cluster) -> None:
    """Without kubelet, ControllerUnpublish alone ends the node's access."""
    plugin = cluster.plugin
    await register_other(cluster)
    volume_id = (await plugin.create()).volume_id
    old = await plugin.publish(volume_id)
    await up(plugin, volume_id)
    await plugin.unpublish(volume_id)
    assert not [name for name in cluster.facts if name.startswith(("acl:", "lun:", "target:"))]
    await plugin.publish(volume_id, OTHER)
    assert (await plugin.get(volume_id)).status.published_node_ids == [OTHER]
    with fails("FAILED_PRECONDITION"):  # a call of kubelet that was delayed all the time
        await plugin.stage(volume_id, old)
    await plugin.unmount(volume_id)  # the old node comes back and cleans up
    await plugin.unstage(volume_id)


SMALL = csi.CapacityRange(required_bytes=GIB // 2)


async def test_growth(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id)

    async def expand(
        required: int, limit: int = 0, of: str = volume_id
    ) -> csi.ControllerExpandVolumeResponse:
        wanted = csi.CapacityRange(required_bytes=required, limit_bytes=limit)
        request = csi.ControllerExpandVolumeRequest(volume_id=of, capacity_range=wanted)
        answer: csi.ControllerExpandVolumeResponse = await plugin.controller.ControllerExpandVolume(
            request
        )
        return answer

    for size in (2 * GIB, GIB):  # a smaller size changes nothing
        grown = await expand(size)
        assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * GIB, True)
    with fails("OUT_OF_RANGE"):
        await expand(GIB, GIB)
    small = (await plugin.create("small", capacity_range=SMALL)).volume_id
    for limit in (0, 4 * GIB):  # no size is requested, so that it stays as it is
        assert (await expand(0, limit, small)).capacity_bytes == SMALL.required_bytes
    with fails("OUT_OF_RANGE"):
        await expand(3 * GIB + 1, 3 * GIB + 2)
    request = csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=plugin.path("pod-a"))
    assert (await plugin.node.NodeExpandVolume(request)).capacity_bytes == 2 * GIB
    assert (await plugin.stats(volume_id)).usage[0].total == 2 * GIB


async def test_properties_change_later(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume = await plugin.create(parameters={"zfs.compression": "lz4", "zfs.volblocksize": "32k"})

    async def modify(**changes: str) -> None:
        await plugin.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(
                volume_id=volume.volume_id,
                mutable_parameters={f"zfs.{name}": value for name, value in changes.items()},
            )
        )

    await modify(compression="zstd")
    zvol = next(fact for name, fact in cluster.facts.items() if name.startswith("zvol:"))
    assert zvol["properties"]["compression"] == "zstd"
    assert zvol["properties"]["volblocksize"] == "32768"
    with fails("INVALID_ARGUMENT", "volblocksize"):
        await modify(volblocksize="16k")
    with fails("INVALID_ARGUMENT", "mountpoint"):
        await modify(mountpoint="/etc")


async def test_claim_metadata_becomes_labels(cluster: Cluster) -> None:
    from zfsilo.v1 import volume_pb2 as pb

    plugin = cluster.plugin
    await plugin.create(parameters={"csi.storage.k8s.io/pvc/name": "data"})
    volume = (await cluster.give.root().volumes.ListVolumes(pb.ListVolumesRequest())).volumes[0]
    assert dict(volume.labels) == {"csi.zfsilo.io/name": "pvc-1", "csi.zfsilo.io/pvc.name": "data"}
    assert not volume.hosts


async def test_an_id_that_was_taken_outside_csi(cluster: Cluster) -> None:
    """A volume with the id of a CSI volume, but without its name, is another volume."""
    from zfsilo_csi.ids import id_of

    from tests.api.running import create

    await cluster.give.root().volumes.CreateVolume(create(id_of("pvc-1")))
    with fails("ALREADY_EXISTS", "a different name"):
        await cluster.plugin.create()


async def test_a_volume_created_outside_csi_is_used(cluster: Cluster) -> None:
    from tests.api.running import create

    plugin = cluster.plugin
    await cluster.give.root().volumes.CreateVolume(create("data"))
    await up(plugin, "give/data", capability=mount("SINGLE_NODE_MULTI_WRITER"))
    assert (await plugin.stats("give/data")).usage[0].total == GIB
    await down(plugin, "give/data")


async def test_fifty_pods_at_once(cluster: Cluster) -> None:
    plugin = cluster.plugin

    async def cycle(number: int) -> None:
        kind = block() if number % 2 else mount()
        volume = await plugin.create(name=f"pvc-{number}", volume_capabilities=[kind])
        await up(plugin, volume.volume_id, f"pod-{number}", kind)
        await down(plugin, volume.volume_id, f"pod-{number}")

    await asyncio.gather(*(cycle(number) for number in range(50)))
    assert not [name for name in cluster.facts if not name.startswith("content:")]


async def test_equal_calls_are_one_operation(cluster: Cluster) -> None:
    from tests.api.running import operations

    volumes = await asyncio.gather(*(cluster.plugin.create() for _time in range(10)))
    assert len({volume.volume_id for volume in volumes}) == 1
    stored = operations(cluster.give)
    creations = [
        operation for operation in stored if operation.kind == "create" and operation.actions
    ]
    assert len(creations) == 1


async def test_a_cloned_node_is_refused(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Of two machines with one IQN the second is refused until the first is deleted."""
    from zfsilod.requests.hosts import CreateHost, DeleteHost

    request = csi.NodeGetInfoRequest()
    shared = cluster.give.service.context.machine.iscsi.initiator()
    await cluster.give.fixture.do(DeleteHost(id=NODE), CreateHost(id="first", iqn=shared))
    assert (await cluster.plugin.node.NodeGetInfo(request)).node_id == NODE
    assert "is the name of host first" in caplog.text
    volume_id = (await cluster.plugin.create()).volume_id
    with fails("NOT_FOUND", "does not know node"):
        await cluster.plugin.publish(volume_id)
    await cluster.give.fixture.do(DeleteHost(id="first"))
    await until_known(cluster.give)
    await cluster.plugin.publish(volume_id)
