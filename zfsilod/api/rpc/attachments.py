"""VolumeService on a client: connect, stage, mount and their inverses.

For administrators of this host, and for its CSI plugin (role node) within requests/rights.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.api.rpc.volumes import change_volume
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.validation import check_id
from zfsilod.requests import attach, connect, detach, whole_paths
from zfsilod.wire import convert, enums

if TYPE_CHECKING:
    from zfsilo.v1 import volume_pb2

    from zfsilod.api.rpc.call import Call


class AttachmentMethods:
    """Attach, Detach and their parts: Connect, Disconnect, Stage, Unstage, Mount, Unmount; Grow."""

    async def AttachVolume(
        self, message: volume_pb2.AttachVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = whole_paths.AttachVolume(
            id=check_id(message.local_name or message.volume, "volume id"),
            server=check_id(message.server, "server name"),
            volume=check_id(message.volume, "volume id"),
            path=message.path,
            state=enums.VOLUME_STATES.name(message.state, "MOUNTED"),
            restore=enums.RESTORES.name(message.restore, "NEVER"),
            publish_if_needed=message.publish_if_needed,
            transport=enums.TRANSPORTS.name_or_empty(message.transport),
            tls=message.tls,
            epoch=message.epoch,
            staging_path=message.staging_path,
            fs_type=message.fs_type,
            mount_options=tuple(message.mount_options),
            readonly=message.readonly,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def DetachVolume(
        self, message: volume_pb2.DetachVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = whole_paths.DetachVolume(
            id=convert.volume_id(message.name),
            state=enums.VOLUME_STATES.name(message.state, "ABSENT"),
            path=message.path,
            unmounted=message.unmounted,
            force=message.force,
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def ConnectVolume(
        self, message: volume_pb2.ConnectVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = connect.Connect(
            id=check_id(message.local_name or message.volume, "volume id"),
            server=check_id(message.server, "server name"),
            volume=check_id(message.volume, "volume id"),
            restore=enums.RESTORES.name(message.restore, "NEVER"),
            publish_if_needed=message.publish_if_needed,
            transport=enums.TRANSPORTS.name_or_empty(message.transport),
            tls=message.tls,
            epoch=message.epoch,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def DisconnectVolume(
        self, message: volume_pb2.DisconnectVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = detach.Disconnect(
            id=convert.volume_id(message.name), force=message.force, etag=message.etag
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def StageVolume(
        self, message: volume_pb2.StageVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = attach.Stage(
            id=convert.volume_id(message.name),
            path=message.path,
            fs_type=message.fs_type,
            mount_options=tuple(message.mount_options),
            readonly=message.readonly,
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def UnstageVolume(
        self, message: volume_pb2.UnstageVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = detach.Unstage(
            id=convert.volume_id(message.name),
            path=message.path,
            force=message.force,
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def MountVolume(
        self, message: volume_pb2.MountVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = attach.MountAt(
            id=convert.volume_id(message.name),
            path=message.path,
            readonly=message.readonly,
            only_here=message.only_here,
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def UnmountVolume(
        self, message: volume_pb2.UnmountVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        if bool(message.path) == message.all_paths:
            raise InvalidArgument("exactly one of path and all_paths is needed", reason="BAD_PATH")
        request = detach.UnmountFrom(
            id=convert.volume_id(message.name),
            path=message.path,
            force=message.force,
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def GrowVolume(
        self, message: volume_pb2.GrowVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = attach.Grow(id=convert.volume_id(message.name), etag=message.etag)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)
