"""Volumes over NVMe: their lifecycle, and what the kernel's NVMe target does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from csi.v1 import csi_pb2 as csi

from tests.csi.plugin_client import block, down, fails, mount, take_away, up

if TYPE_CHECKING:
    from tests.csi.cluster import Cluster

NVME = {"transport": "nvme"}
READERS = ("SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY")
REMEDY = "use a class with transport iscsi"


async def test_a_lifecycle_over_nvme(cluster: Cluster) -> None:
    plugin = cluster.plugin
    for kind in (mount(), block()):
        volume = await plugin.create(parameters=NVME, volume_capabilities=[kind])
        await up(plugin, volume.volume_id, capability=kind)
        assert any(name.startswith("namespace:nqn.") for name in cluster.facts)
        await down(plugin, volume.volume_id)
        assert not [name for name in cluster.facts if not name.startswith("content:")]


@pytest.mark.parametrize("mode", READERS)
async def test_read_only_modes_are_refused_before_a_claim_is_bound(
    cluster: Cluster, mode: str
) -> None:
    """A claim would be bound, and ControllerPublish would refuse it for ever."""
    plugin = cluster.plugin
    source = await plugin.create("source", parameters=NVME)
    content = csi.VolumeContentSource(
        volume=csi.VolumeContentSource.VolumeSource(volume_id=source.volume_id)
    )
    for readers in ([mount(mode)], [mount(), mount(mode)], [block(mode)]):
        with fails("INVALID_ARGUMENT", REMEDY):
            await plugin.create(
                "copy", parameters=NVME, volume_capabilities=readers, volume_content_source=content
            )
        capacity = await plugin.controller.GetCapacity(
            csi.GetCapacityRequest(parameters=NVME, volume_capabilities=readers)
        )
        assert capacity.available_capacity == 0
    validated = await plugin.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=source.volume_id, volume_capabilities=[mount(mode)]
        )
    )
    assert not validated.HasField("confirmed")
    assert REMEDY in validated.message
    with fails("INVALID_ARGUMENT", REMEDY):
        await plugin.publish(source.volume_id, volume_capability=mount(mode))


async def test_only_the_path_of_a_pod_can_be_read_only(cluster: Cluster) -> None:
    """`readOnly` of a PersistentVolume is known at ControllerPublish first, that of a pod later."""
    plugin = cluster.plugin
    volume = await plugin.create(parameters=NVME)
    with fails("INVALID_ARGUMENT", "use iscsi"):
        await plugin.publish(volume.volume_id, readonly=True)
    await up(plugin, volume.volume_id)
    await plugin.unmount(volume.volume_id)
    await plugin.mount(volume.volume_id, at="staging-pod-a", readonly=True)
    assert cluster.facts[f"mount:{plugin.path('pod-a')}"]["readonly"]
    await take_away(plugin, volume.volume_id)
