"""zfsilod's messages as those of CSI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi

from zfsilo_csi.backends import ZONE_KEY
from zfsilo_csi.ids import host_of

if TYPE_CHECKING:
    from zfsilo.v1 import volume_pb2 as pb

    from zfsilo_csi.backends import Backend

WELL = "the volume is well"
MAX_MESSAGE = 1024


def shown(
    backend: Backend, volume: pb.Volume, request: csi.CreateVolumeRequest | None = None
) -> csi.Volume:
    """Return a volume; to whoever created it from something, with what that was."""
    source = request is not None and request.HasField("volume_content_source")
    return csi.Volume(
        volume_id=f"{backend.key}/{volume.id}", capacity_bytes=volume.capacity_bytes,
        content_source=request.volume_content_source if request and source else None,
        accessible_topology=[csi.Topology(segments={ZONE_KEY: zone}) for zone in backend.zones],
    )  # fmt: skip


def entry(backend: Backend, volume: pb.Volume) -> csi.ListVolumesResponse.Entry:
    """Return a volume and its state as a list has them."""
    published, condition = status(volume)
    return csi.ListVolumesResponse.Entry(
        volume=shown(backend, volume),
        status=csi.ListVolumesResponse.VolumeStatus(
            published_node_ids=published, volume_condition=condition
        ),
    )


def status(volume: pb.Volume) -> tuple[list[str], csi.VolumeCondition]:
    """Return the nodes that a volume is published to, and how it is."""
    published = [host_of(each.host) for each in volume.publications]
    return published, condition_of(list(volume.conditions))


def condition_of(sentences: list[str]) -> csi.VolumeCondition:
    """Return what is wrong with a volume, or that nothing is."""
    message = "; ".join(sentences)[:MAX_MESSAGE]
    return csi.VolumeCondition(abnormal=bool(sentences), message=message or WELL)
