"""What is done on a node: by its own zfsilod, which this only asks."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import host_pb2, service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import capabilities, identity, ids
from zfsilo_csi.backends import ZONE_KEY
from zfsilo_csi.errors import Code, CsiError, need, not_found
from zfsilo_csi.publish import EPOCH
from zfsilo_csi.shown import condition_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilo_csi.api import Zfsilod
    from zfsilo_csi.calls import Call
    from zfsilo_csi.config import BackendConfig

Unit = csi.VolumeUsage


class Node:
    """The methods of csi.v1.Node."""

    def __init__(self, daemon: Zfsilod, backends: Mapping[str, BackendConfig]) -> None:
        self._daemon = daemon
        self._backends = backends

    async def features(self, call: Call) -> frozenset[str]:
        """Return what the node's zfsilod can do."""
        found = await self._daemon.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        return frozenset(found.features)

    async def NodeGetCapabilities(
        self, _request: csi.NodeGetCapabilitiesRequest, _call: Call
    ) -> csi.NodeGetCapabilitiesResponse:
        return identity.node()

    async def NodeGetInfo(
        self, _request: csi.NodeGetInfoRequest, call: Call
    ) -> csi.NodeGetInfoResponse:
        """Tell who this node is, once every storage host of its zone knows it."""
        found = await self._daemon.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        await asyncio.gather(*(
            self._introduce(each.server or name, call)
            for name, each in self._backends.items()
            if found.zone in each.zones
        ))  # fmt: skip
        return csi.NodeGetInfoResponse(
            node_id=ids.host_of(found.host), max_volumes_per_node=found.max_attachments,
            accessible_topology=csi.Topology(segments={ZONE_KEY: found.zone}),
        )  # fmt: skip

    async def _introduce(self, server: str, call: Call) -> None:
        try:
            await self._daemon.hosts.IntroduceHost(
                host_pb2.IntroduceHostRequest(server=server), call
            )
        except CsiError as error:
            message = f"this node is not registered at {server} yet: {error.message}"
            raise CsiError(Code.UNAVAILABLE, message) from None

    async def NodeStageVolume(
        self, request: csi.NodeStageVolumeRequest, call: Call
    ) -> csi.NodeStageVolumeResponse:
        need(request.volume_id, "the volume id")
        path = need(request.staging_target_path, "the staging target path")
        capability = _capability(request)
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle), path=path)
        name = await self._connect(handle, _epoch(request.publish_context), call)
        await self._daemon.volumes.StageVolume(
            pb.StageVolumeRequest(
                name=f"volumes/{name}", path=path, fs_type=capability.mount.fs_type,
                mount_options=capability.mount.mount_flags,
                readonly=capability.access_mode.mode in capabilities.READERS,
            ),
            call,
        )  # fmt: skip
        return csi.NodeStageVolumeResponse()

    async def _connect(self, handle: ids.Handle, epoch: int, call: Call) -> str:
        """Log in to what the controller published, and return what the volume is called here."""
        name = ids.local_name(handle)
        question = pb.ConnectVolumeRequest(
            server=self._server(handle), volume=handle.id, local_name=name,
            restore=pb.RESTORE_NEVER, epoch=epoch,
        )  # fmt: skip
        try:
            await self._daemon.volumes.ConnectVolume(question, call)
        except CsiError as error:
            if error.code != Code.NOT_FOUND:
                raise
            # A server shows a host only what is published to it. This was, or there were no epoch.
            message = f"{handle} is not published to this node any more"
            raise CsiError(Code.FAILED_PRECONDITION, message) from None
        return name

    async def NodeUnstageVolume(
        self, request: csi.NodeUnstageVolumeRequest, call: Call
    ) -> csi.NodeUnstageVolumeResponse:
        handle = ids.parse(need(request.volume_id, "the volume id"))
        path = need(request.staging_target_path, "the staging target path")
        if handle is None:
            return csi.NodeUnstageVolumeResponse()
        call.note(volume=str(handle), path=path)
        name = f"volumes/{ids.local_name(handle)}"
        await self._daemon.volumes.UnstageVolume(
            pb.UnstageVolumeRequest(name=name, path=path), call
        )
        await self._daemon.volumes.DisconnectVolume(pb.DisconnectVolumeRequest(name=name), call)
        return csi.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, call: Call
    ) -> csi.NodePublishVolumeResponse:
        need(request.volume_id, "the volume id")
        path = need(request.target_path, "the target path")
        need(request.staging_target_path, "the staging target path")
        capability = _capability(request)
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle), path=path)
        mode = capability.access_mode.mode
        await self._daemon.volumes.MountVolume(
            pb.MountVolumeRequest(
                name=f"volumes/{ids.local_name(handle)}", path=path,
                readonly=request.readonly or mode in capabilities.READERS,
                only_here=mode in capabilities.ONE_PATH,
            ),
            call,
        )  # fmt: skip
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, call: Call
    ) -> csi.NodeUnpublishVolumeResponse:
        handle = ids.parse(need(request.volume_id, "the volume id"))
        path = need(request.target_path, "the target path")
        if handle is not None:
            call.note(volume=str(handle), path=path)
            question = pb.UnmountVolumeRequest(name=f"volumes/{ids.local_name(handle)}", path=path)
            await self._daemon.volumes.UnmountVolume(question, call)
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, call: Call
    ) -> csi.NodeGetVolumeStatsResponse:
        handle = _need_both(request.volume_id, request.volume_path)
        volume = await self._attached(handle, request.volume_path, call)
        found = await self._daemon.volumes.StatsVolume(
            pb.StatsVolumeRequest(name=volume.name), call
        )
        return csi.NodeGetVolumeStatsResponse(
            usage=_usage(found),
            volume_condition=condition_of([*volume.conditions, *found.conditions]),
        )

    async def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, call: Call
    ) -> csi.NodeExpandVolumeResponse:
        handle = _need_both(request.volume_id, request.volume_path)
        volume = await self._attached(handle, request.volume_path, call)
        least = request.capacity_range.required_bytes
        answer = await self._daemon.volumes.GrowVolume(pb.GrowVolumeRequest(name=volume.name), call)
        size = answer.volume.attachment.disk.size_bytes
        if size < least:
            raise CsiError(
                Code.FAILED_PRECONDITION, f"{handle} has {size} bytes at its server, not {least}"
            )
        return csi.NodeExpandVolumeResponse(capacity_bytes=size)

    async def _attached(self, handle: ids.Handle, path: str, call: Call) -> pb.Volume:
        """Return a volume that this node uses at a path, else raise NOT_FOUND."""
        call.note(volume=str(handle), path=path)
        name = f"volumes/{ids.local_name(handle)}"
        volume: pb.Volume = await self._daemon.volumes.GetVolume(
            pb.GetVolumeRequest(name=name), call
        )
        if not volume.HasField("attachment"):
            raise not_found(f"{handle} is not on this node")
        here = volume.attachment
        wanted = PurePosixPath(path)
        paths = (here.staging_path, *(each.path for each in here.mounts))
        if not any(each and PurePosixPath(each) == wanted for each in paths):
            raise not_found(f"{handle} is not at {path[:200]}")
        return volume

    def _server(self, handle: ids.Handle) -> str:
        """Return what the node's zfsilod calls the storage host of a volume."""
        found = self._backends.get(handle.backend)
        if found is None:
            raise CsiError(
                Code.UNAVAILABLE, f"the backend {handle.backend} is not in the configuration"
            )
        return found.server or handle.backend


def _need_both(volume_id: str, path: str) -> ids.Handle:
    need(path, "the volume path")
    return ids.need_handle(volume_id, "volume")


def _capability(
    request: csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest,
) -> csi.VolumeCapability:
    need(request.HasField("volume_capability"), "the volume capability")
    capabilities.check(request.volume_capability)
    return request.volume_capability


def _epoch(context: Mapping[str, str]) -> int:
    """Return which publication the controller made for us, else raise FAILED_PRECONDITION."""
    text = context.get(EPOCH, "")
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise CsiError(
            Code.FAILED_PRECONDITION, "the publish context has no epoch: publish the volume first"
        )
    return int(text)


def _usage(found: pb.VolumeStats) -> list[csi.VolumeUsage]:
    """Return bytes and inodes of a filesystem; of a raw device its size, and what is written.

    Nothing of a filesystem that does not answer: the condition tells of it.
    """
    if found.HasField("filesystem_total_bytes"):
        return [
            csi.VolumeUsage(
                unit=Unit.BYTES, total=found.filesystem_total_bytes,
                used=found.filesystem_used_bytes, available=found.filesystem_available_bytes,
            ),
            csi.VolumeUsage(
                unit=Unit.INODES, total=found.inodes_total, used=found.inodes_used,
                available=found.inodes_available,
            ),
        ]  # fmt: skip
    if not found.HasField("volsize_bytes"):
        return []
    return [
        csi.VolumeUsage(
            unit=Unit.BYTES, total=found.volsize_bytes, used=found.referenced_bytes,
            available=max(0, found.volsize_bytes - found.referenced_bytes),
        )
    ]  # fmt: skip
