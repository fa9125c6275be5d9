"""zfsilod's volumes, snapshots and snapshot groups as CSI messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi

from zfsilo_csi.backends import ZONE_KEY
from zfsilo_csi.health import MAX_MESSAGE_BYTES, cut
from zfsilo_csi.ids import host_of

if TYPE_CHECKING:
    from zfsilo.v1 import snapshot_pb2, volume_pb2

    from zfsilo_csi.backends import Backend

HEALTHY = "volume is healthy"


def csi_volume(
    backend: Backend, volume: volume_pb2.Volume, source: csi.VolumeContentSource | None = None
) -> csi.Volume:
    """Return a volume. Only the reply to CreateVolume contains its source."""
    return csi.Volume(
        volume_id=f"{backend.key}/{volume.id}",
        capacity_bytes=volume.capacity_bytes,
        content_source=source,
        accessible_topology=[csi.Topology(segments={ZONE_KEY: zone}) for zone in backend.zones],
    )


def volume_entry(backend: Backend, volume: volume_pb2.Volume) -> csi.ListVolumesResponse.Entry:
    """Return a volume and its status as an entry of a list."""
    return csi.ListVolumesResponse.Entry(
        volume=csi_volume(backend, volume),
        status=csi.ListVolumesResponse.VolumeStatus(
            published_node_ids=published_nodes(volume),
            volume_condition=condition(list(volume.conditions)),
        ),
    )


def published_nodes(volume: volume_pb2.Volume) -> list[str]:
    """Return the ids of the nodes that a volume is published to."""
    return [host_of(publication.host) for publication in volume.publications]


def condition(problems: list[str]) -> csi.VolumeCondition:
    """Return a volume condition: abnormal if there are problems."""
    message = cut("; ".join(problems), MAX_MESSAGE_BYTES)
    return csi.VolumeCondition(abnormal=bool(problems), message=message or HEALTHY)


def csi_snapshot(backend: Backend, snapshot: snapshot_pb2.Snapshot) -> csi.Snapshot:
    """Return a snapshot, which is always ready to use."""
    group = snapshot.group.removeprefix("snapshotGroups/")
    return csi.Snapshot(
        snapshot_id=f"{backend.key}/{snapshot.id}",
        size_bytes=snapshot.size_bytes,
        source_volume_id=f"{backend.key}/{snapshot.volume.removeprefix('volumes/')}",
        creation_time=snapshot.create_time,
        ready_to_use=True,
        group_snapshot_id=f"{backend.key}/{group}" if group else "",
    )


def csi_group_snapshot(
    backend: Backend, group: snapshot_pb2.SnapshotGroup
) -> csi.VolumeGroupSnapshot:
    """Return a group snapshot with its members."""
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=f"{backend.key}/{group.id}",
        creation_time=group.create_time,
        snapshots=[csi_snapshot(backend, snapshot) for snapshot in group.snapshots],
        ready_to_use=True,
    )
