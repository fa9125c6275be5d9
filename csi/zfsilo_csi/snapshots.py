"""Snapshots of single volumes. They outlive their volume, and keep its name in theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import snapshot_pb2 as pb

from zfsilo_csi import ids, parameters, tokens
from zfsilo_csi.errors import Code, CsiError, absent_is_well, need

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import Call


class Snapshots:
    """The methods of csi.v1.Controller about snapshots."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, call: Call
    ) -> csi.CreateSnapshotResponse:
        name = ids.check_name(request.name)
        need(request.source_volume_id, "the source volume id")
        labels = parameters.only_labels(request.parameters)
        handle = ids.need_handle(request.source_volume_id, "volume")
        call.note(volume=str(handle))
        backend = self._backends.get(handle.backend)
        question = pb.CreateSnapshotRequest(
            snapshot_id=ids.id_of(name), volume=f"volumes/{handle.id}",
            labels=labels | {ids.NAME_LABEL: name},
        )  # fmt: skip
        answer = await backend.snapshots.CreateSnapshot(question, call)
        if answer.snapshot.labels.get(ids.NAME_LABEL) != name:
            raise CsiError(Code.ALREADY_EXISTS, f"the id of {name} is another snapshot's")
        return csi.CreateSnapshotResponse(snapshot=shown(backend, answer.snapshot))

    async def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, call: Call
    ) -> csi.DeleteSnapshotResponse:
        handle = ids.parse(need(request.snapshot_id, "the snapshot id"))
        if handle is not None:
            call.note(snapshot=str(handle))
            question = pb.DeleteSnapshotRequest(name=f"snapshots/{handle.id}")
            with absent_is_well():
                await self._backends.get(handle.backend).snapshots.DeleteSnapshot(question, call)
        return csi.DeleteSnapshotResponse()

    async def GetSnapshot(
        self, request: csi.GetSnapshotRequest, call: Call
    ) -> csi.GetSnapshotResponse:
        handle = ids.need_handle(request.snapshot_id, "snapshot")
        return csi.GetSnapshotResponse(snapshot=await self._get(handle, call))

    async def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, call: Call
    ) -> csi.ListSnapshotsResponse:
        if request.snapshot_id:
            found = await self._one(request.snapshot_id, call)
            wanted = request.source_volume_id
            kept = [each for each in found if wanted in ("", each.source_volume_id)]
            return _answer(kept, "")
        source = ids.parse(request.source_volume_id) if request.source_volume_id else None
        if request.source_volume_id and source is None:
            return csi.ListSnapshotsResponse()
        volume = f"volumes/{source.id}" if source else ""

        async def page(backend: Backend, token: str, size: int) -> tuple[list[pb.Snapshot], str]:
            if source is not None and backend.key != source.backend:
                return [], ""
            question = pb.ListSnapshotsRequest(page_size=size, page_token=token, volume=volume)
            answer = await backend.snapshots.ListSnapshots(question, call)
            return list(answer.snapshots), answer.next_page_token

        place = tokens.read(request.starting_token, self._backends.names)
        pages, after = await tokens.walk(self._backends, place, request.max_entries, page)
        return _answer([shown(backend, each) for backend, each in pages], tokens.write(after))

    async def _one(self, snapshot_id: str, call: Call) -> list[csi.Snapshot]:
        handle = ids.parse(snapshot_id)
        with absent_is_well():
            return [await self._get(handle, call)] if handle else []
        return []

    async def _get(self, handle: ids.Handle, call: Call) -> csi.Snapshot:
        call.note(snapshot=str(handle))
        backend = self._backends.get(handle.backend)
        question = pb.GetSnapshotRequest(name=f"snapshots/{handle.id}")
        return shown(backend, await backend.snapshots.GetSnapshot(question, call))


def shown(backend: Backend, found: pb.Snapshot) -> csi.Snapshot:
    """Return a snapshot; it is ready from the moment that it is there."""
    group = found.group.removeprefix("snapshotGroups/")
    return csi.Snapshot(
        snapshot_id=f"{backend.key}/{found.id}", size_bytes=found.size_bytes,
        source_volume_id=f"{backend.key}/{found.volume.removeprefix('volumes/')}",
        creation_time=found.create_time, ready_to_use=True,
        group_snapshot_id=f"{backend.key}/{group}" if group else "",
    )  # fmt: skip


def _answer(found: list[csi.Snapshot], token: str) -> csi.ListSnapshotsResponse:
    entries = [csi.ListSnapshotsResponse.Entry(snapshot=each) for each in found]
    return csi.ListSnapshotsResponse(entries=entries, next_token=token)
