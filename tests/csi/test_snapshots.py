"""Snapshots, clones and group snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csi.v1 import csi_pb2 as csi

from tests.csi.cluster import Cluster, cluster_of
from tests.csi.plugin_client import GIB, down, fails, take_away, up

if TYPE_CHECKING:
    from pathlib import Path

    from tests.csi.plugin_client import PluginClient

SnapshotSource = csi.VolumeContentSource.SnapshotSource
VolumeSource = csi.VolumeContentSource.VolumeSource


async def snapshot(plugin: PluginClient, volume_id: str, name: str = "snap-1") -> csi.Snapshot:
    request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
    response: csi.CreateSnapshotResponse = await plugin.controller.CreateSnapshot(request)
    return response.snapshot


async def listed(plugin: PluginClient, **fields: Any) -> list[str]:
    response = await plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(**fields))
    return [entry.snapshot.snapshot_id for entry in response.entries]


def from_snapshot(snapshot_id: str) -> csi.VolumeContentSource:
    return csi.VolumeContentSource(snapshot=SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> csi.VolumeContentSource:
    return csi.VolumeContentSource(volume=VolumeSource(volume_id=volume_id))


async def formatted(plugin: PluginClient, name: str = "pvc-1") -> str:
    """Create a volume and mount it once, and return its id."""
    volume = await plugin.create(name)
    await up(plugin, volume.volume_id)
    await take_away(plugin, volume.volume_id)
    return volume.volume_id


async def test_a_snapshot_outlives_its_volume(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = await formatted(plugin)
    taken = await snapshot(plugin, volume_id)
    assert (taken.ready_to_use, taken.size_bytes, taken.source_volume_id) == (True, GIB, volume_id)
    assert taken.creation_time.seconds > 0
    assert (await snapshot(plugin, volume_id)).snapshot_id == taken.snapshot_id
    await plugin.delete(volume_id)
    assert await listed(plugin) == [taken.snapshot_id]
    again = await plugin.create(volume_content_source=from_snapshot(taken.snapshot_id))
    assert again.volume_id == volume_id, "the name was free again"
    assert again.content_source.snapshot.snapshot_id == taken.snapshot_id
    with fails("ALREADY_EXISTS", "source"):
        await plugin.create()


async def test_a_clone_may_be_larger_and_never_smaller(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volume_id = await formatted(plugin)
    source = from_volume(volume_id)
    larger = csi.CapacityRange(required_bytes=2 * GIB)
    clone = await plugin.create("clone", volume_content_source=source, capacity_range=larger)
    assert clone.capacity_bytes == 2 * GIB
    await up(plugin, clone.volume_id)
    assert (await plugin.stats(clone.volume_id)).usage[0].total == 2 * GIB
    same = await plugin.create("same", volume_content_source=source, capacity_range=None)
    assert same.capacity_bytes == GIB
    with fails("OUT_OF_RANGE"):
        await plugin.create(
            "small",
            volume_content_source=source,
            capacity_range=csi.CapacityRange(required_bytes=GIB // 2),
        )
    with fails("NOT_FOUND"):
        await plugin.create("none", volume_content_source=from_snapshot("give/csi-none"))
    assert await listed(plugin) == [], "the origin snapshot of a clone is not listed"
    await down(plugin, clone.volume_id)


async def test_lists_by_volume_by_id_and_in_pages(cluster: Cluster) -> None:
    plugin = cluster.plugin
    one = (await plugin.create("one")).volume_id
    two = (await plugin.create("two")).volume_id
    of_one = {(await snapshot(plugin, one, f"one-{n}")).snapshot_id for n in range(3)}
    of_two = await snapshot(plugin, two, "two")
    assert set(await listed(plugin, source_volume_id=one)) == of_one
    assert await listed(plugin, snapshot_id=of_two.snapshot_id) == [of_two.snapshot_id]
    assert await listed(plugin, snapshot_id=of_two.snapshot_id, source_volume_id=one) == []
    assert await listed(plugin, snapshot_id="nobody's") == []
    assert await listed(plugin, source_volume_id="nobody's") == []
    first = await plugin.controller.ListSnapshots(csi.ListSnapshotsRequest(max_entries=3))
    rest = await listed(plugin, starting_token=first.next_token)
    every = {entry.snapshot.snapshot_id for entry in first.entries} | set(rest)
    assert (len(first.entries), len(rest), len(every)) == (3, 1, 4)
    with fails("ABORTED"):
        await listed(plugin, starting_token="give:made-up")
    with fails("ALREADY_EXISTS"):
        await snapshot(plugin, one, "two")
    assert len((await snapshot(plugin, one, "S" * 128)).snapshot_id) < 128
    with fails("INVALID_ARGUMENT", "longer than 128 bytes"):
        await snapshot(plugin, one, "S" * 129)


async def test_groups(cluster: Cluster) -> None:
    plugin = cluster.plugin
    volumes = [(await plugin.create(name)).volume_id for name in ("one", "two")]

    async def create(name: str, ids: list[str]) -> csi.VolumeGroupSnapshot:
        request = csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=ids)
        response: csi.CreateVolumeGroupSnapshotResponse = (
            await plugin.group.CreateVolumeGroupSnapshot(request)
        )
        return response.group_snapshot

    group = await create("G" * 128, volumes)
    assert group.ready_to_use
    assert {snap.source_volume_id for snap in group.snapshots} == set(volumes)
    assert {snap.group_snapshot_id for snap in group.snapshots} == {group.group_snapshot_id}
    times = {snap.creation_time.seconds for snap in group.snapshots}
    assert times == {group.creation_time.seconds}
    assert (await create("G" * 128, volumes)).group_snapshot_id == group.group_snapshot_id
    with fails("ALREADY_EXISTS"):
        await create("G" * 128, volumes[:1])
    members = [snap.snapshot_id for snap in group.snapshots]
    with fails("FAILED_PRECONDITION"):
        await plugin.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=members[0]))
    group_id = group.group_snapshot_id
    part = csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=members[:1])
    with fails("INVALID_ARGUMENT"):
        await plugin.group.GetVolumeGroupSnapshot(part)
    for _time in range(2):
        await plugin.group.DeleteVolumeGroupSnapshot(
            csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=members)
        )
    assert await listed(plugin) == []
    with fails("NOT_FOUND"):
        await plugin.group.GetVolumeGroupSnapshot(
            csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group_id)
        )


async def test_a_group_is_limited_to_one_backend(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, {"give": ["default"], "other": ["default"]}) as cluster:
        plugin = cluster.plugin
        volumes = [
            (await plugin.create(name, parameters={"backend": name})).volume_id
            for name in ("give", "other")
        ]
        with fails("INVALID_ARGUMENT", "several backends"):
            await plugin.group.CreateVolumeGroupSnapshot(
                csi.CreateVolumeGroupSnapshotRequest(name="group", source_volume_ids=volumes)
            )
