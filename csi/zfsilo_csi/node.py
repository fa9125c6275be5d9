"""csi.v1.Node: translated into requests to the zfsilod of the node, which does all the work."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import ids, service_capabilities, volume_capabilities
from zfsilo_csi.backends import ZONE_KEY, unconfigured
from zfsilo_csi.convert import condition
from zfsilo_csi.errors import Code, CsiError, need, not_found
from zfsilo_csi.introductions import Introductions
from zfsilo_csi.node_health import KnownVolumes, NodeHealthService
from zfsilo_csi.publications import EPOCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilo_csi.calls import CsiCall
    from zfsilo_csi.config import BackendConfig
    from zfsilo_csi.stubs import Zfsilod

Unit = csi.VolumeUsage
MAX_DIGITS = 19  # of an epoch


class NodeService:
    """The methods of csi.v1.Node."""

    def __init__(self, daemon: Zfsilod, backends: Mapping[str, BackendConfig]) -> None:
        self._daemon = daemon
        self._backends = backends
        self._introductions = Introductions(daemon)
        self._volumes = KnownVolumes()

    def health(self) -> NodeHealthService:
        """Return the methods for health, which share what this service learns."""
        return NodeHealthService(self._daemon, self._backends, self._introductions, self._volumes)

    async def close(self) -> None:
        """End what runs in the background."""
        await self._introductions.close()

    async def features(self, call: CsiCall) -> frozenset[str]:
        """Return the features of the node's zfsilod."""
        info = await self._daemon.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        return frozenset(info.features)

    async def NodeGetCapabilities(
        self, _request: csi.NodeGetCapabilitiesRequest, _call: CsiCall
    ) -> csi.NodeGetCapabilitiesResponse:
        return service_capabilities.node()

    async def NodeGetInfo(
        self, _request: csi.NodeGetInfoRequest, call: CsiCall
    ) -> csi.NodeGetInfoResponse:
        """Return the node's id and zone, which its own zfsilod knows.

        The servers of the zone learn of the node in the background: a server that is down must not
        take the volumes of all others from the node.
        """
        info = await self._daemon.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        await self._introductions.begin(
            backend.server or name
            for name, backend in self._backends.items()
            if info.zone in backend.zones
        )
        return csi.NodeGetInfoResponse(
            node_id=ids.host_of(info.host),
            max_volumes_per_node=info.max_attachments,
            accessible_topology=csi.Topology(segments={ZONE_KEY: info.zone}),
        )

    async def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, call: CsiCall
    ) -> csi.NodeStageVolumeResponse:
        need(request.volume_id, "volume_id")
        path = need(request.staging_target_path, "staging_target_path")
        capability = _capability(request)
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle), path=path)
        daemon_request = pb.AttachVolumeRequest(
            server=self._server(handle),
            volume=handle.id,
            local_name=ids.local_name(handle),
            restore=pb.RESTORE_NEVER,
            epoch=_epoch(request.publish_context),
            state=pb.STATE_STAGED,
            staging_path=path,
            fs_type=capability.mount.fs_type,
            mount_options=capability.mount.mount_flags,
            readonly=capability.access_mode.mode in volume_capabilities.READERS,
        )
        with self._volumes.staging(handle):
            await self._attach(handle, daemon_request, call)
        return csi.NodeStageVolumeResponse()

    async def _attach(
        self, handle: ids.Handle, daemon_request: pb.AttachVolumeRequest, call: CsiCall
    ) -> None:
        """Attach a volume with the publication of the controller."""
        try:
            await self._daemon.volumes.AttachVolume(daemon_request, call)
        except CsiError as error:
            if error.code != Code.NOT_FOUND:
                raise
            # A server hides a volume that is not published to the caller. The epoch proves that
            # this one was published earlier.
            self._introductions.again(daemon_request.server)
            message = f"volume {handle} is no longer published to this node; publish it again"
            raise CsiError(Code.FAILED_PRECONDITION, message) from None

    def _server(self, handle: ids.Handle) -> str:
        """Return the server of a volume, by its name in the configuration of zfsilod."""
        backend = self._backends.get(handle.backend)
        if backend is None:
            raise unconfigured(handle.backend)
        return backend.server or handle.backend

    async def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, call: CsiCall
    ) -> csi.NodeUnstageVolumeResponse:
        handle = ids.parse(need(request.volume_id, "volume_id"))
        path = need(request.staging_target_path, "staging_target_path")
        if handle is None:
            return csi.NodeUnstageVolumeResponse()
        call.note(volume=str(handle), path=path)
        daemon_request = pb.DetachVolumeRequest(name=_local(handle), path=path, unmounted=True)
        await self._daemon.volumes.DetachVolume(daemon_request, call)
        self._volumes.gone(handle)
        return csi.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, call: CsiCall
    ) -> csi.NodePublishVolumeResponse:
        need(request.volume_id, "volume_id")
        path = need(request.target_path, "target_path")
        need(request.staging_target_path, "staging_target_path")
        mode = _capability(request).access_mode.mode
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle), path=path)
        daemon_request = pb.MountVolumeRequest(
            name=_local(handle),
            path=path,
            readonly=request.readonly or mode in volume_capabilities.READERS,
            only_here=mode in volume_capabilities.ONE_PATH,
        )
        await self._daemon.volumes.MountVolume(daemon_request, call)
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, call: CsiCall
    ) -> csi.NodeUnpublishVolumeResponse:
        handle = ids.parse(need(request.volume_id, "volume_id"))
        path = need(request.target_path, "target_path")
        if handle is not None:
            call.note(volume=str(handle), path=path)
            daemon_request = pb.UnmountVolumeRequest(name=_local(handle), path=path)
            await self._daemon.volumes.UnmountVolume(daemon_request, call)
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, call: CsiCall
    ) -> csi.NodeGetVolumeStatsResponse:
        handle, volume = await self._attached(request, call)
        self._volumes.seen(handle)
        daemon_request = pb.StatsVolumeRequest(name=volume.name)
        stats = await self._daemon.volumes.StatsVolume(daemon_request, call)
        return csi.NodeGetVolumeStatsResponse(
            usage=_usage(stats),
            volume_condition=condition([*volume.conditions, *stats.conditions]),
        )

    async def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, call: CsiCall
    ) -> csi.NodeExpandVolumeResponse:
        handle, volume = await self._attached(request, call)
        required = request.capacity_range.required_bytes
        daemon_request = pb.GrowVolumeRequest(name=volume.name)
        response = await self._daemon.volumes.GrowVolume(daemon_request, call)
        size = response.volume.attachment.disk.size_bytes
        if size < required:
            raise CsiError(
                Code.FAILED_PRECONDITION,
                f"volume {handle} has {size} bytes on its server, fewer than the {required} "
                "requested; expand it there first (ControllerExpandVolume)",
            )
        return csi.NodeExpandVolumeResponse(capacity_bytes=size)

    async def _attached(
        self, request: csi.NodeGetVolumeStatsRequest | csi.NodeExpandVolumeRequest, call: CsiCall
    ) -> tuple[ids.Handle, pb.Volume]:
        """Return a volume that is attached here, at the requested path, else raise NOT_FOUND."""
        path = need(request.volume_path, "volume_path")
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle), path=path)
        daemon_request = pb.GetVolumeRequest(name=_local(handle))
        volume: pb.Volume = await self._daemon.volumes.GetVolume(daemon_request, call)
        if not volume.HasField("attachment"):
            raise not_found(f"volume {handle} is not attached to this node")
        attachment = volume.attachment
        paths = (attachment.staging_path, *(mount.path for mount in attachment.mounts))
        if _published(path) not in map(PurePosixPath, filter(None, paths)):
            raise not_found(f"volume {handle} is neither staged nor mounted at {path[:200]}")
        return handle, volume


def _local(handle: ids.Handle) -> str:
    """Return the resource name of a volume on this node."""
    return f"volumes/{ids.local_name(handle)}"


def _published(path: str) -> PurePosixPath:
    """Return where a volume is mounted that kubelet names by a path of its own.

    kubelet asks for the usage of a raw device at volumeDevices/PV/dev/POD, its own bind mount of
    volumeDevices/publish/PV/POD, which is the path of NodePublishVolume.
    """
    match PurePosixPath(path).parts:
        case (*folder, "volumeDevices", volume, "dev", pod):
            return PurePosixPath(*folder, "volumeDevices/publish", volume, pod)
        case parts:
            return PurePosixPath(*parts)


def _capability(
    request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest,
) -> csi.VolumeCapability:
    need(request.HasField("volume_capability"), "volume_capability")
    volume_capabilities.check(request.volume_capability)
    return request.volume_capability


def _epoch(context: Mapping[str, str]) -> int:
    """Return the epoch of the controller's publication, else raise FAILED_PRECONDITION."""
    text = context.get(EPOCH, "")
    if len(text) > MAX_DIGITS or not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise CsiError(
            Code.FAILED_PRECONDITION,
            "publish_context has no valid epoch; call ControllerPublishVolume first",
        )
    return int(text)


def _usage(stats: pb.VolumeStats) -> list[csi.VolumeUsage]:
    """Return bytes and inodes of a filesystem, or size and referenced bytes of a raw device.

    The list is empty for a filesystem that does not respond: the volume condition reports it.
    """
    if stats.HasField("filesystem_total_bytes"):
        return [
            csi.VolumeUsage(
                unit=Unit.BYTES,
                total=stats.filesystem_total_bytes,
                used=stats.filesystem_used_bytes,
                available=stats.filesystem_available_bytes,
            ),
            csi.VolumeUsage(
                unit=Unit.INODES,
                total=stats.inodes_total,
                used=stats.inodes_used,
                available=stats.inodes_available,
            ),
        ]
    if not stats.HasField("volsize_bytes"):
        return []
    return [
        csi.VolumeUsage(
            unit=Unit.BYTES,
            total=stats.volsize_bytes,
            used=stats.referenced_bytes,
            available=max(0, stats.volsize_bytes - stats.referenced_bytes),
        )
    ]
