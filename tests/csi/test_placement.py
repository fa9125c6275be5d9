"""The choice of a backend for a new volume: zones, full and unreachable backends, sources."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi.v1 import csi_pb2 as csi

from tests.csi.cluster import Cluster, cluster_of, ranked_first, restarted
from tests.csi.plugin_client import GIB, fails

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SAME = {"give": ["default"], "other": ["default"]}
ZONE = "topology.zfsilo.io/zone"
ZONES = {"give": ["default", "west"], "other": ["east"]}


@pytest.fixture
async def two_zones(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster with one server in the west and one in the east."""
    async with cluster_of(tmp_path, ZONES) as running:
        yield running


def topology(*zones: str) -> list[csi.Topology]:
    return [csi.Topology(segments={ZONE: zone}) for zone in zones]


def chosen(zone: str) -> csi.TopologyRequirement:
    """Return what the provisioner asks for when the scheduler has chosen a node of a zone."""
    others = [name for name in ("east", "west") if name != zone]
    return csi.TopologyRequirement(
        requisite=topology("east", "west"), preferred=topology(zone, *others)
    )


async def create(cluster: Cluster, name: str, zone: str, **fields: Any) -> str:
    volume = await cluster.plugin.create(name, accessibility_requirements=chosen(zone), **fields)
    return volume.volume_id.partition("/")[0]


async def volumes_of(cluster: Cluster) -> list[str]:
    response = await cluster.plugin.controller.ListVolumes(csi.ListVolumesRequest())
    return [entry.volume.volume_id.partition("/")[0] for entry in response.entries]


async def test_a_backend_that_is_down_stops_only_its_zone(two_zones: Cluster) -> None:
    await two_zones.fronts["other"].stop()
    assert await create(two_zones, "a", "west") == "give"
    assert await create(two_zones, "a", "west") == "give"
    with fails("UNAVAILABLE", "other"):
        await create(two_zones, "b", "east")


async def test_a_full_zone_is_not_left(two_zones: Cluster) -> None:
    plugin = two_zones.plugin
    free = await plugin.controller.GetCapacity(
        csi.GetCapacityRequest(
            parameters={"thin": "false"}, accessible_topology=topology("east")[0]
        )
    )
    size = csi.CapacityRange(required_bytes=free.available_capacity // GIB * GIB)
    thick = {"thin": "false"}
    assert await create(two_zones, "a", "east", parameters=thick, capacity_range=size) == "other"
    with fails("RESOURCE_EXHAUSTED", "reserve"):
        await create(two_zones, "b", "east", parameters=thick)
    assert await create(two_zones, "b", "west", parameters=thick) == "give"
    assert sorted(await volumes_of(two_zones)) == ["give", "other"]


async def test_a_full_backend_is_passed_over_within_its_zone(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["east"], "other": ["east"]}) as cluster:
        thick = {"thin": "false"}
        whole = csi.CapacityRange(required_bytes=600 * GIB)
        backends = [
            await create(cluster, name, "east", parameters=thick, capacity_range=whole)
            for name in ("a", "b")
        ]
        assert sorted(backends) == ["give", "other"]


async def test_a_name_of_another_zone_is_found(two_zones: Cluster) -> None:
    assert await create(two_zones, "a", "east") == "other"
    assert await create(two_zones, "a", "west") == "other"


async def begin(cluster: Cluster, backend: str, name: str, zone: str) -> None:
    """Create a volume in a call that ends before the operation of the backend does."""
    gate = cluster.fronts[backend].fixture.launcher.gate
    gate.clear()
    call = asyncio.ensure_future(create(cluster, name, zone))
    while not [1 for _one in cluster.fronts[backend].read(lambda txn: list(txn.live()))]:
        await asyncio.sleep(0.01)  # the launcher has no event for this
    call.cancel()
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call


async def test_a_creation_continues_where_it_began(two_zones: Cluster) -> None:
    await begin(two_zones, "other", "a", "east")
    two_zones.fronts["other"].fixture.launcher.gate.set()
    assert await create(two_zones, "a", "west") == "other"
    assert await volumes_of(two_zones) == ["other"]


async def test_a_name_is_not_created_twice_while_its_backend_is_down(two_zones: Cluster) -> None:
    await begin(two_zones, "other", "a", "east")
    two_zones.fronts["other"].fixture.launcher.gate.set()
    await two_zones.fronts["other"].stop()
    with fails("UNAVAILABLE", "other"):
        await create(two_zones, "a", "west")
    assert await create(two_zones, "b", "west") == "give"


async def test_after_a_restart_the_zone_of_the_claim_still_decides(two_zones: Cluster) -> None:
    """The plugin has no memory of the creation, but the claim has the node that was chosen."""
    await begin(two_zones, "other", "a", "east")
    two_zones.fronts["other"].fixture.launcher.gate.set()
    await two_zones.fronts["other"].stop()
    async with restarted(two_zones) as plugin:
        with fails("UNAVAILABLE", "other"):
            await plugin.create("a", accessibility_requirements=chosen("east"))


async def test_a_server_that_is_down_stops_only_the_claims_that_it_may_have(tmp_path: Path) -> None:
    """With one zone for all servers, which is the default."""
    async with cluster_of(tmp_path, SAME) as cluster:
        await cluster.fronts["other"].stop()
        volume = await cluster.plugin.create(ranked_first("give", "other"))
        assert volume.volume_id.startswith("give/")
        with fails("UNAVAILABLE", "create the claim again, or use the parameter backend"):
            await cluster.plugin.create(ranked_first("other", "give"))


async def test_a_name_that_went_on_to_another_backend_stays_there(tmp_path: Path) -> None:
    """The first backend was full, and the reply of the other one may have been lost."""
    async with cluster_of(tmp_path, SAME) as cluster:
        plugin, name = cluster.plugin, ranked_first("give", "other")
        thick: dict[str, Any] = {"parameters": {"thin": "false"}}
        whole = csi.CapacityRange(required_bytes=600 * GIB)
        filler = await plugin.create(
            "filler", parameters={"thin": "false", "backend": "give"}, capacity_range=whole
        )
        first = await plugin.create(name, capacity_range=whole, **thick)
        assert first.volume_id.startswith("other/")
        await plugin.delete(filler.volume_id)
        await cluster.fronts["other"].stop()
        with fails("UNAVAILABLE", "other"):
            await plugin.create(name, capacity_range=whole, **thick)


async def test_a_name_is_free_again_after_a_deletion(two_zones: Cluster) -> None:
    volume = await two_zones.plugin.create("a", accessibility_requirements=chosen("east"))
    await two_zones.plugin.delete(volume.volume_id)
    await two_zones.fronts["other"].stop()
    assert await create(two_zones, "a", "west") == "give"


async def test_a_refused_creation_may_begin_elsewhere(two_zones: Cluster) -> None:
    huge = csi.CapacityRange(required_bytes=1 << 59)
    with fails("RESOURCE_EXHAUSTED"):
        await create(two_zones, "a", "east", capacity_range=huge)
    await two_zones.fronts["other"].stop()
    assert await create(two_zones, "a", "west") == "give"


async def test_the_backend_of_the_source_decides(two_zones: Cluster) -> None:
    plugin = two_zones.plugin
    source = await plugin.create("a", accessibility_requirements=chosen("east"))
    snapshot = await plugin.controller.CreateSnapshot(
        csi.CreateSnapshotRequest(name="s", source_volume_id=source.volume_id)
    )
    content = csi.VolumeContentSource(
        snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.snapshot.snapshot_id)
    )
    assert await create(two_zones, "b", "west", volume_content_source=content) == "other"
    clone = csi.VolumeContentSource(
        volume=csi.VolumeContentSource.VolumeSource(volume_id=source.volume_id)
    )
    assert await create(two_zones, "c", "west", volume_content_source=clone) == "other"
    await two_zones.give.stop()
    assert await create(two_zones, "d", "west", volume_content_source=content) == "other"


async def test_the_class_decides_before_the_zone(two_zones: Cluster) -> None:
    """An Immediate claim prefers a zone by its name, whatever its class."""
    await two_zones.give.stop()
    assert await create(two_zones, "a", "west", parameters={"backend": "other"}) == "other"


async def test_too_many_calls_are_no_full_backend(two_zones: Cluster) -> None:
    from zfsilod.model.errors import ResourceExhausted

    async def refuse(*_arguments: Any, **_more: Any) -> None:
        raise ResourceExhausted("too many calls", reason="TOO_MANY_CALLS")

    two_zones.give.service.submit = refuse  # type: ignore[method-assign, assignment]
    with fails("UNAVAILABLE", "too many calls"):
        await create(two_zones, "a", "west")
