"""VolumeService, what it does on the host that uses a volume. No server and no host may ask.

A node may, for what is its own (node.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfsilod.api.rpc.volumes import change_volume
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.records import Attachment
from zfsilod.requests import attach, detach
from zfsilod.requests.request import check_id
from zfsilod.security import csi_node
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilo.v1 import volume_pb2

    from zfsilod.api.rpc.calls import Call

    Changing = detach.Descent | attach.Stage | attach.MountAt | attach.Grow
    Changes = (
        volume_pb2.DisconnectVolumeRequest
        | volume_pb2.StageVolumeRequest
        | volume_pb2.UnstageVolumeRequest
        | volume_pb2.MountVolumeRequest
        | volume_pb2.UnmountVolumeRequest
        | volume_pb2.GrowVolumeRequest
    )


class Attachments:
    """Connect, Disconnect, Stage, Unstage, Mount, Unmount, Grow."""

    async def ConnectVolume(
        self, request: volume_pb2.ConnectVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = attach.Connect(
            id=check_id(request.local_name or request.volume, "volume id"),
            server=check_id(request.server, "server name"),
            volume=check_id(request.volume, "volume id"),
            restore=convert.RESTORES.name(request.restore, "NEVER"),
            publish_if_needed=request.publish_if_needed,
            epoch=request.epoch,
        )
        if call.caller.role == "node":
            csi_node.check_connect(verb)
        await _check_node(call, verb.id)
        return await change_volume(call, verb, verb.id, validate_only=request.validate_only)

    async def DisconnectVolume(
        self, request: volume_pb2.DisconnectVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = detach.Disconnect(id=convert.volume_id(request.name), force=request.force)
        return await _change(call, verb, request)

    async def StageVolume(
        self, request: volume_pb2.StageVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = attach.Stage(
            id=convert.volume_id(request.name),
            path=request.path,
            fs_type=request.fs_type,
            mount_options=tuple(request.mount_options),
            readonly=request.readonly,
        )
        return await _change(call, verb, request, verb.path)

    async def UnstageVolume(
        self, request: volume_pb2.UnstageVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = detach.Unstage(
            id=convert.volume_id(request.name), path=request.path, force=request.force
        )
        return await _change(call, verb, request)

    async def MountVolume(
        self, request: volume_pb2.MountVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = attach.MountAt(
            id=convert.volume_id(request.name),
            path=request.path,
            readonly=request.readonly,
            only_here=request.only_here,
        )
        return await _change(call, verb, request, verb.path)

    async def UnmountVolume(
        self, request: volume_pb2.UnmountVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        if bool(request.path) == request.all_paths:
            raise InvalidArgument("name a path, or ask for all paths", reason="BAD_PATH")
        verb = detach.UnmountFrom(
            id=convert.volume_id(request.name), path=request.path, force=request.force
        )
        return await _change(call, verb, request)

    async def GrowVolume(
        self, request: volume_pb2.GrowVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        verb = attach.Grow(id=convert.volume_id(request.name))
        return await _change(call, verb, request)


async def _change(
    call: Call, verb: Changing, request: Changes, *paths: str
) -> volume_pb2.MutateVolumeResponse:
    """Do what a verb says of an attachment and paths that the caller may change."""
    await _check_node(call, verb.id, *paths)
    return await change_volume(
        call, verb, verb.id, validate_only=request.validate_only, etag=request.etag
    )


async def _check_node(call: Call, attachment_id: str, *paths: str) -> None:
    """Refuse a node what is not its own: an attachment, and the path that it asks for."""
    if call.caller.role != "node":
        return
    allowed = call.service.settings.node_paths
    found = call.read(lambda txn: txn.get(Attachment, attachment_id))
    if found is not None:
        csi_node.check_attachment(found, allowed)
    for path in paths:
        await call.service.look(partial(csi_node.check_path, path, allowed))
