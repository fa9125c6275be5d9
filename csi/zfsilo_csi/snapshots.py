"""csi.v1.Controller: snapshots of single volumes. A snapshot outlives its volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import snapshot_pb2 as pb

from zfsilo_csi import ids, pagination, parameters
from zfsilo_csi.convert import csi_snapshot
from zfsilo_csi.errors import Code, CsiError, ignore_not_found, need

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import CsiCall


class SnapshotController:
    """The methods of csi.v1.Controller for snapshots."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, call: CsiCall
    ) -> csi.CreateSnapshotResponse:
        name = ids.check_name(request.name)
        need(request.source_volume_id, "source_volume_id")
        labels = parameters.only_labels(request.parameters)
        handle = ids.need_handle(request.source_volume_id, "volume")
        call.note(volume=str(handle))
        backend = self._backends.get(handle.backend)
        daemon_request = pb.CreateSnapshotRequest(
            snapshot_id=ids.id_of(name),
            volume=f"volumes/{handle.id}",
            labels=labels | {ids.NAME_LABEL: name},
        )
        response = await backend.snapshots.CreateSnapshot(daemon_request, call)
        if response.snapshot.labels.get(ids.NAME_LABEL) != name:
            raise CsiError(
                Code.ALREADY_EXISTS,
                f"snapshot {daemon_request.snapshot_id} exists with a name other than {name}; "
                "delete it or choose another name",
            )
        return csi.CreateSnapshotResponse(snapshot=csi_snapshot(backend, response.snapshot))

    async def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, call: CsiCall
    ) -> csi.DeleteSnapshotResponse:
        handle = ids.parse(need(request.snapshot_id, "snapshot_id"))
        if handle is not None:
            call.note(snapshot=str(handle))
            daemon_request = pb.DeleteSnapshotRequest(name=f"snapshots/{handle.id}")
            with ignore_not_found():
                await self._backends.get(handle.backend).snapshots.DeleteSnapshot(
                    daemon_request, call
                )
        return csi.DeleteSnapshotResponse()

    async def GetSnapshot(
        self, request: csi.GetSnapshotRequest, call: CsiCall
    ) -> csi.GetSnapshotResponse:
        handle = ids.need_handle(request.snapshot_id, "snapshot")
        return csi.GetSnapshotResponse(snapshot=await self._get(handle, call))

    async def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, call: CsiCall
    ) -> csi.ListSnapshotsResponse:
        if request.snapshot_id:
            return _list(await self._one(request, call), "")
        source = ids.parse(request.source_volume_id) if request.source_volume_id else None
        if request.source_volume_id and source is None:
            return csi.ListSnapshotsResponse()
        volume = f"volumes/{source.id}" if source else ""
        if source is not None:
            self._backends.get(source.backend)  # without it the snapshots are unknown, not gone

        async def page(backend: Backend, token: str, size: int) -> tuple[list[csi.Snapshot], str]:
            if source is not None and backend.key != source.backend:
                return [], ""
            daemon_request = pb.ListSnapshotsRequest(
                page_size=size, page_token=token, volume=volume
            )
            response = await backend.snapshots.ListSnapshots(daemon_request, call)
            snapshots = [csi_snapshot(backend, snapshot) for snapshot in response.snapshots]
            return snapshots, response.next_page_token

        start = pagination.read_token(request.starting_token, self._backends.names)
        limit = request.max_entries
        snapshots, after = await pagination.collect(self._backends, start, limit, page)
        return _list(snapshots, pagination.write_token(after))

    async def _one(self, request: csi.ListSnapshotsRequest, call: CsiCall) -> list[csi.Snapshot]:
        """Return the snapshot with the requested id, if it is of the requested volume."""
        handle = ids.parse(request.snapshot_id)
        with ignore_not_found():
            snapshot = await self._get(handle, call) if handle else None
            if snapshot is not None and request.source_volume_id in ("", snapshot.source_volume_id):
                return [snapshot]
        return []

    async def _get(self, handle: ids.Handle, call: CsiCall) -> csi.Snapshot:
        call.note(snapshot=str(handle))
        backend = self._backends.get(handle.backend)
        daemon_request = pb.GetSnapshotRequest(name=f"snapshots/{handle.id}")
        return csi_snapshot(backend, await backend.snapshots.GetSnapshot(daemon_request, call))


def _list(snapshots: list[csi.Snapshot], token: str) -> csi.ListSnapshotsResponse:
    entries = [csi.ListSnapshotsResponse.Entry(snapshot=snapshot) for snapshot in snapshots]
    return csi.ListSnapshotsResponse(entries=entries, next_token=token)
