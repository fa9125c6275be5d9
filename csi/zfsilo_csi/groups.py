"""Snapshots of several volumes at one moment: all of one storage host, which cuts them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import snapshot_pb2 as pb

from zfsilo_csi import identity, ids, parameters
from zfsilo_csi.errors import Code, CsiError, absent_is_well, invalid, need
from zfsilo_csi.snapshots import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import Call


class Groups:
    """The methods of csi.v1.GroupController."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def GroupControllerGetCapabilities(
        self, _request: csi.GroupControllerGetCapabilitiesRequest, call: Call
    ) -> csi.GroupControllerGetCapabilitiesResponse:
        return identity.group(await self._backends.features(call))

    async def CreateVolumeGroupSnapshot(
        self, request: csi.CreateVolumeGroupSnapshotRequest, call: Call
    ) -> csi.CreateVolumeGroupSnapshotResponse:
        name = ids.check_name(request.name)
        need(request.source_volume_ids, "the source volume ids")
        labels = parameters.only_labels(request.parameters)
        handles = [ids.need_handle(each, "volume") for each in request.source_volume_ids]
        if len({each.backend for each in handles}) > 1:
            raise invalid("the volumes are on several storage hosts: no moment is the same there")
        backend = self._backends.get(handles[0].backend)
        question = pb.CreateSnapshotGroupRequest(
            group_id=ids.id_of(name), volumes=[f"volumes/{each.id}" for each in handles],
            labels=labels | {ids.NAME_LABEL: name},
        )  # fmt: skip
        answer = await backend.snapshots.CreateSnapshotGroup(question, call)
        if answer.group.labels.get(ids.NAME_LABEL) != name:
            raise CsiError(Code.ALREADY_EXISTS, f"the id of {name} is another group's")
        return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=_shown(backend, answer.group))

    async def DeleteVolumeGroupSnapshot(
        self, request: csi.DeleteVolumeGroupSnapshotRequest, call: Call
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        handle = ids.parse(need(request.group_snapshot_id, "the group snapshot id"))
        if handle is None:
            return csi.DeleteVolumeGroupSnapshotResponse()
        backend = self._backends.get(handle.backend)
        with absent_is_well():
            _check_members(await self._get(backend, handle, call), request.snapshot_ids)
            question = pb.DeleteSnapshotGroupRequest(name=f"snapshotGroups/{handle.id}")
            await backend.snapshots.DeleteSnapshotGroup(question, call)
        return csi.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(
        self, request: csi.GetVolumeGroupSnapshotRequest, call: Call
    ) -> csi.GetVolumeGroupSnapshotResponse:
        handle = ids.need_handle(request.group_snapshot_id, "group snapshot")
        found = await self._get(self._backends.get(handle.backend), handle, call)
        _check_members(found, request.snapshot_ids)
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=found)

    async def _get(
        self, backend: Backend, handle: ids.Handle, call: Call
    ) -> csi.VolumeGroupSnapshot:
        call.note(group=str(handle))
        question = pb.GetSnapshotGroupRequest(name=f"snapshotGroups/{handle.id}")
        return _shown(backend, await backend.snapshots.GetSnapshotGroup(question, call))


def _check_members(found: csi.VolumeGroupSnapshot, told: Iterable[str]) -> None:
    """Raise INVALID_ARGUMENT when the caller takes the group for another one."""
    members, wanted = {each.snapshot_id for each in found.snapshots}, set(told)
    if wanted and wanted != members:
        raise invalid(f"{found.group_snapshot_id} has other snapshots than those")


def _shown(backend: Backend, found: pb.SnapshotGroup) -> csi.VolumeGroupSnapshot:
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=f"{backend.key}/{found.id}", creation_time=found.create_time,
        snapshots=[shown(backend, each) for each in found.snapshots], ready_to_use=True,
    )  # fmt: skip
