"""Which node may use which volume. Unpublishing always fences: CSI has no word for "by force"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from google.protobuf.duration_pb2 import Duration
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import capabilities, ids
from zfsilo_csi.controller import get
from zfsilo_csi.errors import Code, CsiError, absent_is_well, need

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backends
    from zfsilo_csi.calls import Call

EPOCH = "epoch"  # in the publish context: which publication it was. A late node is told by it
GRACE_S = 5  # for a node that is alive, to log out by itself


class Publications:
    """The methods of csi.v1.Controller about publication."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def ControllerPublishVolume(
        self, request: csi.ControllerPublishVolumeRequest, call: Call
    ) -> csi.ControllerPublishVolumeResponse:
        need(request.volume_id, "the volume id")
        node = need(request.node_id, "the node id")
        need(request.HasField("volume_capability"), "the volume capability")
        call.note(node=node)
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await get(backend, handle, call)
        complaint = capabilities.unusable(volume, request.volume_capability)
        if complaint:
            raise CsiError(Code.INVALID_ARGUMENT, complaint)
        readonly = request.readonly or (
            request.volume_capability.access_mode.mode in capabilities.READERS
        )
        answer = await backend.volumes.PublishVolume(
            pb.PublishVolumeRequest(
                name=volume.name, host=f"hosts/{node}", readonly=readonly,
                access_mode=capabilities.admitted(volume, request.volume_capability),
            ),
            call,
        )  # fmt: skip
        return csi.ControllerPublishVolumeResponse(
            publish_context={EPOCH: str(_epoch(answer.volume, node))}
        )

    async def ControllerUnpublishVolume(
        self, request: csi.ControllerUnpublishVolumeRequest, call: Call
    ) -> csi.ControllerUnpublishVolumeResponse:
        handle = ids.parse(need(request.volume_id, "the volume id"))
        node = request.node_id
        if handle is None or (node and ids.ID.fullmatch(node) is None):
            return csi.ControllerUnpublishVolumeResponse()  # nobody can have it
        call.note(volume=str(handle), node=node or "all")
        question = pb.UnpublishVolumeRequest(
            name=f"volumes/{handle.id}", host=f"hosts/{node}" if node else "",
            all_hosts=not node, fence=True, grace=Duration(seconds=GRACE_S),
        )  # fmt: skip
        with absent_is_well():
            await self._backends.get(handle.backend).volumes.UnpublishVolume(question, call)
        return csi.ControllerUnpublishVolumeResponse()


def _epoch(volume: pb.Volume, node: str) -> int:
    for each in volume.publications:
        if ids.host_of(each.host) == node:
            return int(each.epoch)
    raise CsiError(Code.ABORTED, f"{volume.id} was taken back from {node} meanwhile")
