"""csi.v1.GroupController: snapshots of several volumes at one moment, all on one backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import snapshot_pb2 as pb

from zfsilo_csi import ids, parameters, service_capabilities
from zfsilo_csi.convert import csi_group_snapshot
from zfsilo_csi.errors import Code, CsiError, ignore_not_found, invalid, need

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import CsiCall


class GroupSnapshotController:
    """The methods of csi.v1.GroupController."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def GroupControllerGetCapabilities(
        self, _request: csi.GroupControllerGetCapabilitiesRequest, call: CsiCall
    ) -> csi.GroupControllerGetCapabilitiesResponse:
        return service_capabilities.group_controller(await self._backends.features(call))

    async def CreateVolumeGroupSnapshot(
        self, request: csi.CreateVolumeGroupSnapshotRequest, call: CsiCall
    ) -> csi.CreateVolumeGroupSnapshotResponse:
        name = ids.check_name(request.name)
        need(request.source_volume_ids, "source_volume_ids")
        labels = parameters.only_labels(request.parameters)
        handles = [ids.need_handle(volume_id, "volume") for volume_id in request.source_volume_ids]
        keys = sorted({handle.backend for handle in handles})
        if len(keys) > 1:
            raise invalid(
                f"source_volume_ids are on several backends ({', '.join(keys)}); "
                "group only volumes of one backend, since only one can snapshot them atomically"
            )
        backend = self._backends.get(keys[0])
        daemon_request = pb.CreateSnapshotGroupRequest(
            group_id=ids.id_of(name),
            volumes=[f"volumes/{handle.id}" for handle in handles],
            labels=labels | {ids.NAME_LABEL: name},
        )
        response = await backend.snapshots.CreateSnapshotGroup(daemon_request, call)
        if response.group.labels.get(ids.NAME_LABEL) != name:
            raise CsiError(
                Code.ALREADY_EXISTS,
                f"group snapshot {daemon_request.group_id} exists with a name other than {name}; "
                "delete it or choose another name",
            )
        return csi.CreateVolumeGroupSnapshotResponse(
            group_snapshot=csi_group_snapshot(backend, response.group)
        )

    async def DeleteVolumeGroupSnapshot(
        self, request: csi.DeleteVolumeGroupSnapshotRequest, call: CsiCall
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        handle = ids.parse(need(request.group_snapshot_id, "group_snapshot_id"))
        if handle is None:
            return csi.DeleteVolumeGroupSnapshotResponse()
        backend = self._backends.get(handle.backend)
        with ignore_not_found():
            _check_members(await _get(backend, handle, call), request.snapshot_ids)
            daemon_request = pb.DeleteSnapshotGroupRequest(name=f"snapshotGroups/{handle.id}")
            await backend.snapshots.DeleteSnapshotGroup(daemon_request, call)
        return csi.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(
        self, request: csi.GetVolumeGroupSnapshotRequest, call: CsiCall
    ) -> csi.GetVolumeGroupSnapshotResponse:
        handle = ids.need_handle(request.group_snapshot_id, "group snapshot")
        group = await _get(self._backends.get(handle.backend), handle, call)
        _check_members(group, request.snapshot_ids)
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=group)


async def _get(backend: Backend, handle: ids.Handle, call: CsiCall) -> csi.VolumeGroupSnapshot:
    call.note(group=str(handle))
    daemon_request = pb.GetSnapshotGroupRequest(name=f"snapshotGroups/{handle.id}")
    return csi_group_snapshot(
        backend, await backend.snapshots.GetSnapshotGroup(daemon_request, call)
    )


def _check_members(group: csi.VolumeGroupSnapshot, snapshot_ids: Iterable[str]) -> None:
    """Raise INVALID_ARGUMENT if the caller names members (optional in CSI) that differ."""
    members, named = {snapshot.snapshot_id for snapshot in group.snapshots}, set(snapshot_ids)
    if named and named != members:
        raise invalid(
            f"snapshot_ids are not the members of group snapshot {group.group_snapshot_id}; "
            f"use {', '.join(sorted(members))}"
        )
