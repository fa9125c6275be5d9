"""csi.v1.Controller: publish and unpublish. Unpublish always fences the node.

CSI has no field to request force, and a node that lost its kubelet would keep its access otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from google.protobuf.duration_pb2 import Duration
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import ids, volume_capabilities
from zfsilo_csi.errors import Code, CsiError, ignore_not_found, invalid, need, not_found

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backends
    from zfsilo_csi.calls import CsiCall

# Key in publish_context. It lets the node refuse a late NodeStage of an older publication.
EPOCH = "epoch"
NO_HOST = "NO_HOST"  # reason of zfsilod
GRACE_S = 5  # for a live node to log out before it is fenced


class PublicationController:
    """The methods of csi.v1.Controller for publications."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, call: CsiCall
    ) -> csi.ControllerPublishVolumeResponse:
        need(request.volume_id, "volume_id")
        node = need(request.node_id, "node_id")
        need(request.HasField("volume_capability"), "volume_capability")
        call.note(node=node)
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await backend.get_volume(handle, call)
        capability = request.volume_capability
        complaint = volume_capabilities.unusable(volume, capability)
        if complaint:
            raise invalid(complaint)
        reader = capability.access_mode.mode in volume_capabilities.READERS
        daemon_request = pb.PublishVolumeRequest(
            name=volume.name,
            host=f"hosts/{node}",
            readonly=request.readonly or reader,
            access_mode=volume_capabilities.publication_mode(volume, capability),
            for_csi=True,
        )
        try:
            response = await backend.volumes.PublishVolume(daemon_request, call)
        except CsiError as error:
            if error.reason != NO_HOST:
                raise
            raise not_found(
                f"{backend.name} does not know node {node}; a node introduces itself once a "
                "minute, see the log of zfsilo-csi there"
            ) from None
        return csi.ControllerPublishVolumeResponse(
            publish_context={EPOCH: str(_epoch(response.volume, node))}
        )

    async def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, call: CsiCall
    ) -> csi.ControllerUnpublishVolumeResponse:
        handle = ids.parse(need(request.volume_id, "volume_id"))
        node = request.node_id
        if handle is None or (node and ids.ID.fullmatch(node) is None):
            # A volume or node that cannot exist has no publication.
            return csi.ControllerUnpublishVolumeResponse()
        call.note(volume=str(handle), node=node or "all")
        daemon_request = pb.UnpublishVolumeRequest(
            name=f"volumes/{handle.id}",
            host=f"hosts/{node}" if node else "",
            all_hosts=not node,
            fence=True,
            grace=Duration(seconds=GRACE_S),
        )
        with ignore_not_found():
            await self._backends.get(handle.backend).volumes.UnpublishVolume(daemon_request, call)
        return csi.ControllerUnpublishVolumeResponse()


def _epoch(volume: pb.Volume, node: str) -> int:
    for publication in volume.publications:
        if ids.host_of(publication.host) == node:
            return int(publication.epoch)
    raise CsiError(
        Code.ABORTED, f"volume {volume.id} was unpublished from {node} during this call; retry"
    )
