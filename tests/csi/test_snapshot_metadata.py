"""csi.v1.SnapshotMetadata: allocated and changed blocks, and the errors of the specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from csi.v1 import csi_pb2 as csi

from tests.csi.cluster import Cluster, cluster_of
from tests.csi.plugin_client import GIB, fails
from tests.csi.test_snapshots import snapshot

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 16384
Ranges = list[tuple[int, int]]


def write(cluster: Cluster, volume_id: str, blocks: dict[str, str]) -> None:
    """Set the blocks of a volume that are in use."""
    facts = cluster.give.fixture.host.facts
    uid = facts.get(f"zvol:tank/zfsilo/{volume_id.partition('/')[2]}")["uid"]
    facts.effect(f"blocks:{uid}", blocks)


async def taken(cluster: Cluster, volume_id: str, name: str) -> str:
    return str((await snapshot(cluster.plugin, volume_id, name)).snapshot_id)


async def allocated(cluster: Cluster, snapshot_id: str, **fields: Any) -> Ranges:
    request = csi.GetMetadataAllocatedRequest(snapshot_id=snapshot_id, **fields)
    return await ranges(cluster.plugin.metadata.GetMetadataAllocated(request), fields)


async def delta(cluster: Cluster, base: str, target: str, **fields: Any) -> Ranges:
    request = csi.GetMetadataDeltaRequest(
        base_snapshot_id=base, target_snapshot_id=target, **fields
    )
    return await ranges(cluster.plugin.metadata.GetMetadataDelta(request), fields)


async def ranges(call: Any, fields: dict[str, Any]) -> Ranges:
    """Return what a stream brings, in blocks, and check what the specification demands of it."""
    result: Ranges = []
    position = fields.get("starting_offset", 0)
    async for message in call:
        assert message.block_metadata_type == csi.VARIABLE_LENGTH
        assert message.volume_capacity_bytes == GIB
        assert len(message.block_metadata) <= (fields.get("max_results", 0) or GIB)
        for one in message.block_metadata:
            assert one.byte_offset >= position
            assert one.size_bytes > 0
            position = one.byte_offset + one.size_bytes
            result.append((one.byte_offset // BLOCK, one.size_bytes // BLOCK))
    return result


async def test_the_plugin_has_the_service(cluster: Cluster) -> None:
    request = csi.GetPluginCapabilitiesRequest()
    response = await cluster.plugin.identity.GetPluginCapabilities(request)
    services = {capability.service.type for capability in response.capabilities}
    assert csi.PluginCapability.Service.SNAPSHOT_METADATA_SERVICE in services


async def test_the_blocks_of_two_snapshots(cluster: Cluster) -> None:
    volume_id = (await cluster.plugin.create()).volume_id
    write(cluster, volume_id, {"1": "a", "2": "b", "6": "c", "9": "d"})
    base = await taken(cluster, volume_id, "base")
    write(cluster, volume_id, {"1": "a", "2": "new", "9": "d", "12": "more"})
    target = await taken(cluster, volume_id, "target")
    assert await allocated(cluster, base) == [(1, 2), (6, 1), (9, 1)]
    assert await allocated(cluster, base, starting_offset=2 * BLOCK) == [(2, 1), (6, 1), (9, 1)]
    assert await allocated(cluster, base, max_results=1) == [(1, 2), (6, 1), (9, 1)]
    assert await delta(cluster, base, target) == [(2, 1), (6, 1), (12, 1)]
    assert await delta(cluster, base, target, max_results=2) == [(2, 1), (6, 1), (12, 1)]
    assert await delta(cluster, base, target, starting_offset=GIB) == []
    await cluster.plugin.delete(volume_id)
    assert await delta(cluster, base, target) == [(2, 1), (6, 1), (12, 1)]


@pytest.mark.parametrize("offset", [-1, GIB + 1])
async def test_an_offset_outside(cluster: Cluster, offset: int) -> None:
    volume_id = (await cluster.plugin.create()).volume_id
    base = await taken(cluster, volume_id, "base")
    target = await taken(cluster, volume_id, "target")
    with fails("OUT_OF_RANGE"):
        await allocated(cluster, base, starting_offset=offset)
    with fails("OUT_OF_RANGE"):
        await delta(cluster, base, target, starting_offset=offset)


async def test_snapshots_that_do_not_exist(cluster: Cluster) -> None:
    volume_id = (await cluster.plugin.create()).volume_id
    base = await taken(cluster, volume_id, "base")
    for unknown in ("give/none", "none"):
        with fails("NOT_FOUND"):
            await allocated(cluster, unknown)
        with fails("NOT_FOUND"):
            await delta(cluster, base, unknown)
        with fails("NOT_FOUND"):
            await delta(cluster, unknown, base)


async def test_a_snapshot_that_the_pool_has_lost(cluster: Cluster) -> None:
    volume_id = (await cluster.plugin.create()).volume_id
    base = await taken(cluster, volume_id, "base")
    target = await taken(cluster, volume_id, "target")
    facts = cluster.give.fixture.host.facts
    for name in list(facts.of_kind("cut")):
        facts.effect(f"cut:{name}", None)
    with fails("NOT_FOUND"):
        await allocated(cluster, target)
    with fails("NOT_FOUND"):
        await delta(cluster, base, target)


async def test_arguments_that_are_missing_or_wrong(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = (await plugin.create()).volume_id
    old, new = [await taken(cluster, volume_id, name) for name in ("old", "new")]
    other_volume = (await plugin.create("other")).volume_id
    other = await taken(cluster, other_volume, "of-other")
    source = csi.VolumeContentSource.SnapshotSource(snapshot_id=old)
    clone = await plugin.create(
        "clone", volume_content_source=csi.VolumeContentSource(snapshot=source)
    )
    of_clone = await taken(cluster, clone.volume_id, "of-clone")
    for base, target in (
        (new, old),
        (old, old),
        (old, other),
        (old, of_clone),
        ("", new),
        (old, ""),
    ):
        with fails("INVALID_ARGUMENT"):
            await delta(cluster, base, target)
    for call in (allocated(cluster, ""), allocated(cluster, old, max_results=-1)):
        with fails("INVALID_ARGUMENT"):
            await call


async def test_snapshots_of_different_servers(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        with fails("INVALID_ARGUMENT", "different servers"):
            await delta(cluster, "give/a", "other/b")


async def test_a_call_that_fails_is_counted(cluster: Cluster) -> None:
    with fails("NOT_FOUND"):
        await allocated(cluster, "give/none")
    assert 'code="NOT_FOUND"' in cluster.metrics()
    assert 'method="GetMetadataAllocated"' in cluster.metrics()
