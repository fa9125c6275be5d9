"""A volume's life as Kubernetes leads it, and what is refused on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi

from tests.csi.cluster import GIB, NODE, Cluster, block, fails, mount

if TYPE_CHECKING:
    from tests.csi.cluster import Plugin

OTHER = "other"


async def known_as_other(cluster: Cluster) -> None:
    """Make a second node known."""
    from zfsilod.requests.hosts import CreateHost

    await cluster.give.zfsilo.do(CreateHost(id=OTHER, iqn="iqn.2024-01.lab.other:host"))


async def up(plugin: Plugin, volume_id: str, capability: csi.VolumeCapability) -> None:
    context = await plugin.publish(volume_id, volume_capability=capability)
    await plugin.stage(volume_id, context, capability)
    await plugin.mount(volume_id, capability=capability)


async def down(plugin: Plugin, volume_id: str) -> None:
    await plugin.unmount(volume_id)
    await plugin.unstage(volume_id)
    await plugin.unpublish(volume_id)
    await plugin.delete(volume_id)


async def test_a_life_leaves_nothing(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for kind in (mount(), block(), mount(fs_type="xfs", mount_flags=["noatime"])):
        before = {n for n in cluster.facts if not n.startswith("content:")}
        volume = await plugin.create(volume_capabilities=[kind])
        await up(plugin, volume.volume_id, kind)
        await up(plugin, volume.volume_id, kind)  # again: it is so already
        assert f"mount:{plugin.path('pod-a')}" in cluster.facts
        await down(plugin, volume.volume_id)
        await down(plugin, volume.volume_id)
        assert {n for n in cluster.facts if not n.startswith("content:")} == before


async def test_the_volume_that_comes_back(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume = await plugin.create(name="N" * 128)
    assert volume.volume_id.startswith("give/csi-")
    assert len(volume.volume_id) == len("give/csi-") + 26
    assert volume.capacity_bytes == GIB
    assert [dict(each.segments) for each in volume.accessible_topology] == [
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
        with fails("ALREADY_EXISTS", "pvc-1 exists with another"):
            await plugin.create(**odd)
    await plugin.create(capacity_range=csi.CapacityRange(required_bytes=1, limit_bytes=2 * GIB))


async def test_what_no_volume_can_be(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for odd, text in (
        ({"volume_capabilities": []}, "missing"),
        ({"volume_capabilities": [mount(), block()]}, "not both"),
        ({"volume_capabilities": [mount("MULTI_NODE_MULTI_WRITER")]}, "raw block volumes only"),
        ({"volume_capabilities": [mount(fs_type="btrfs")]}, "neither ext4 nor xfs"),
        ({"volume_capabilities": [mount(mount_flags=["suid"])]}, "'suid' is not allowed"),
        ({"volume_capabilities": [mount(volume_mount_group="1000")]}, "use fsGroup"),
        ({"parameters": {"thin": "perhaps"}}, "thin"),
        ({"parameters": {"color": "red"}}, "'color'"),
        ({"parameters": {"backend": "nowhere"}}, "not configured"),
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


async def test_a_second_node_is_told_of_the_first(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await known_as_other(cluster)
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


async def test_readers_on_several_nodes(cluster: Cluster) -> None:
    plugin = cluster.plugin
    await known_as_other(cluster)
    readers = mount("MULTI_NODE_READER_ONLY")
    volume = await plugin.create(volume_capabilities=[mount(), readers])
    await up(plugin, volume.volume_id, mount())  # it is written once
    await plugin.unmount(volume.volume_id)
    await plugin.unstage(volume.volume_id)
    await plugin.unpublish(volume.volume_id)
    await up(plugin, volume.volume_id, readers)
    await up(plugin, volume.volume_id, readers)
    await plugin.publish(volume.volume_id, OTHER, volume_capability=readers)
    assert cluster.facts[f"mount:{plugin.path('pod-a')}"]["readonly"]
    found = await plugin.get(volume.volume_id)
    assert found.status.published_node_ids == [OTHER, NODE]


async def test_a_published_readonly_volume_is_staged_again(cluster: Cluster) -> None:
    """Kubelet does not know at the staging that the target refuses writes."""
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id, mount())
    await plugin.unmount(volume_id)
    await plugin.unstage(volume_id)
    await plugin.unpublish(volume_id)
    context = await plugin.publish(volume_id, readonly=True)
    for _time in range(2):
        await plugin.stage(volume_id, context)
        await plugin.mount(volume_id, readonly=True)


async def test_one_path_or_several(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    for mode in ("SINGLE_NODE_WRITER", "SINGLE_NODE_SINGLE_WRITER"):
        await up(plugin, volume_id, mount(mode))
        with fails("FAILED_PRECONDITION", "one path only"):
            await plugin.mount(volume_id, "pod-b", mount(mode))
        await plugin.unmount(volume_id)
        await plugin.unstage(volume_id)
        await plugin.unpublish(volume_id)
    shared = mount("SINGLE_NODE_MULTI_WRITER")
    await up(plugin, volume_id, shared)
    await plugin.mount(volume_id, "pod-b", shared)
    with fails("ALREADY_EXISTS"):
        await plugin.mount(volume_id, "pod-b", shared, readonly=True)
    with fails("FAILED_PRECONDITION", "unmount it first"):
        await plugin.unstage(volume_id)


async def test_a_stale_epoch_brings_nothing_back(cluster: Cluster) -> None:
    """A late NodeStage of a node that was fenced meanwhile."""
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    old = await plugin.publish(volume_id)
    await plugin.unpublish(volume_id)
    with fails("FAILED_PRECONDITION", "not published to this node any more"):
        await plugin.stage(volume_id, old)
    new = await plugin.publish(volume_id)
    assert new != old
    with fails("FAILED_PRECONDITION", "has passed"):
        await plugin.stage(volume_id, old)
    for odd in ({}, {"epoch": "soon"}, {"epoch": "-1"}):
        with fails("FAILED_PRECONDITION", "no epoch"):
            await plugin.stage(volume_id, odd)
    await plugin.stage(volume_id, new)


async def test_a_node_that_does_not_log_out_is_fenced(cluster: Cluster) -> None:
    """No kubelet: ControllerUnpublish alone has to take the volume away, and does."""
    plugin = cluster.plugin
    await known_as_other(cluster)
    volume_id = (await plugin.create()).volume_id
    old = await plugin.publish(volume_id)
    await up(plugin, volume_id, mount())
    await plugin.unpublish(volume_id)
    assert not [name for name in cluster.facts if name.startswith(("acl:", "lun:", "target:"))]
    await plugin.publish(volume_id, OTHER)
    assert (await plugin.get(volume_id)).status.published_node_ids == [OTHER]
    with fails("FAILED_PRECONDITION"):  # a call of kubelet that was under way all the time
        await plugin.stage(volume_id, old)
    await plugin.unmount(volume_id)  # the old node comes back and cleans up
    await plugin.unstage(volume_id)


async def test_growth(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    await up(plugin, volume_id, mount())

    async def expand(required: int, limit: int = 0) -> csi.ControllerExpandVolumeResponse:
        wanted = csi.CapacityRange(required_bytes=required, limit_bytes=limit)
        request = csi.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=wanted)
        answer: csi.ControllerExpandVolumeResponse = await plugin.controller.ControllerExpandVolume(
            request
        )
        return answer

    for size in (2 * GIB, GIB):  # never smaller
        grown = await expand(size)
        assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * GIB, True)
    with fails("OUT_OF_RANGE"):
        await expand(GIB, GIB)
    with fails("OUT_OF_RANGE"):
        await expand(3 * GIB + 1, 3 * GIB + 2)
    request = csi.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=plugin.path("pod-a"))
    assert (await plugin.node.NodeExpandVolume(request)).capacity_bytes == 2 * GIB
    assert (await plugin.stats(volume_id)).usage[0].total == 2 * GIB


async def test_properties_change_later(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume = await plugin.create(parameters={"zfs.compression": "lz4", "zfs.volblocksize": "32k"})

    async def modify(**changes: str) -> None:
        given = {f"zfs.{name}": value for name, value in changes.items()}
        await plugin.controller.ControllerModifyVolume(
            csi.ControllerModifyVolumeRequest(volume_id=volume.volume_id, mutable_parameters=given)
        )

    await modify(compression="zstd")
    zvol = next(each for name, each in cluster.facts.items() if name.startswith("zvol:"))
    assert zvol["properties"]["compression"] == "zstd"
    assert zvol["properties"]["volblocksize"] == "32768"
    with fails("INVALID_ARGUMENT", "volblocksize"):
        await modify(volblocksize="16k")
    with fails("INVALID_ARGUMENT", "mountpoint"):
        await modify(mountpoint="/etc")


async def test_the_claim_is_told_in_labels(cluster: Cluster) -> None:
    from zfsilo.v1 import volume_pb2 as pb

    plugin = cluster.plugin
    await plugin.create(parameters={"csi.storage.k8s.io/pvc/name": "data"})
    found = (await cluster.give.root().volumes.ListVolumes(pb.ListVolumesRequest())).volumes[0]
    assert dict(found.labels) == {"csi.zfsilo.io/name": "pvc-1", "csi.zfsilo.io/pvc.name": "data"}
    assert not found.hosts


async def test_a_name_that_is_taken_by_hand(cluster: Cluster) -> None:
    """Whatever has the id of a CSI volume and not its name is another volume."""
    from zfsilo_csi.ids import id_of

    from tests.api.running import create

    await cluster.give.root().volumes.CreateVolume(create(id_of("pvc-1")))
    with fails("ALREADY_EXISTS", "another name"):
        await cluster.plugin.create()


async def test_a_volume_made_by_hand_is_used(cluster: Cluster) -> None:
    from tests.api.running import create

    plugin = cluster.plugin
    await cluster.give.root().volumes.CreateVolume(create("data"))
    await up(plugin, "give/data", mount("SINGLE_NODE_MULTI_WRITER"))
    assert (await plugin.stats("give/data")).usage[0].total == GIB
    await down(plugin, "give/data")


async def test_fifty_pods_at_once(cluster: Cluster) -> None:
    plugin = cluster.plugin

    async def cycle(number: int) -> None:
        kind = block() if number % 2 else mount()
        volume = await plugin.create(name=f"pvc-{number}", volume_capabilities=[kind])
        name = volume.volume_id
        context = await plugin.publish(name, volume_capability=kind)
        at, pod = f"staging-{number}", f"pod-{number}"
        await plugin.stage(name, context, kind, at)
        await plugin.mount(name, pod, kind, at)
        await plugin.unmount(name, pod)
        await plugin.unstage(name, at)
        await plugin.unpublish(name)
        await plugin.delete(name)

    await asyncio.gather(*(cycle(number) for number in range(50)))
    assert not [name for name in cluster.facts if not name.startswith("content:")]


async def test_equal_calls_are_one_operation(cluster: Cluster) -> None:
    from tests.api.running import operations

    made = await asyncio.gather(*(cluster.plugin.create() for _time in range(10)))
    assert len({each.volume_id for each in made}) == 1
    working = [each for each in operations(cluster.give) if each.kind == "create" and each.actions]
    assert len(working) == 1


async def test_a_cloned_node_is_not_let_in(cluster: Cluster) -> None:
    """Two machines with one IQN: the second is refused, naming the first, until one is renamed."""
    from zfsilod.requests.hosts import CreateHost, DeleteHost

    ask = csi.NodeGetInfoRequest()
    shared = cluster.give.service.machine.iscsi.initiator()
    await cluster.give.zfsilo.do(DeleteHost(id=NODE), CreateHost(id="first", iqn=shared))
    with fails("UNAVAILABLE", "first"):
        await cluster.plugin.node.NodeGetInfo(ask)
    await cluster.give.zfsilo.do(DeleteHost(id="first"))
    assert (await cluster.plugin.node.NodeGetInfo(ask)).node_id == NODE
