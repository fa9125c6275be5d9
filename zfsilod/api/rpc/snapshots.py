"""SnapshotService: snapshots and snapshot groups."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import snapshot_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.errors import NotFound
from zfsilod.model.records import Snapshot, SnapshotGroup
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_id
from zfsilod.requests.clones import need_snapshot
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
    members_of,
    need_group,
)
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.requests.request import Request
    from zfsilod.storage.transaction import Transaction

FIELDS = ("id", "volume", "volume_uid", "group", "policy", "labels")
GROUP_FIELDS = ("id", "volume", "policy", "labels")


class SnapshotMethods:
    """The methods of zfsilo.v1.SnapshotService."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateSnapshot(
        self, message: snapshot_pb2.CreateSnapshotRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotResponse:
        request = CreateSnapshot(
            id=check_id(message.snapshot_id or new_ulid(), "snapshot id"),
            volume=convert.volume_id(message.volume),
            labels=convert.as_pairs(message.labels),
        )
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def GetSnapshot(
        self, message: snapshot_pb2.GetSnapshotRequest, call: Call
    ) -> snapshot_pb2.Snapshot:
        return call.read(partial(_find, snapshot_id=convert.snapshot_id(message.name)))

    async def ListSnapshots(
        self, message: snapshot_pb2.ListSnapshotsRequest, call: Call
    ) -> snapshot_pb2.ListSnapshotsResponse:
        page = self._pages.parse("ListSnapshots", message)
        matches = filters.parse(message.filter, FIELDS)
        volume = convert.volume_id(message.volume) if message.volume else ""

        def wanted(snapshot: Snapshot) -> bool:
            return volume in ("", snapshot.volume) and matches(partial(_values, snapshot))

        def read(txn: Transaction) -> tuple[list[snapshot_pb2.Snapshot], str]:
            return collect(
                txn.scan(Snapshot, page.after),
                page,
                key=lambda snapshot: snapshot.id,
                wanted=wanted,
                show=partial(_message, txn),
            )

        snapshots, after = await call.scan(read)
        return snapshot_pb2.ListSnapshotsResponse(
            snapshots=snapshots, next_page_token=self._pages.token(page, after)
        )

    async def DeleteSnapshot(
        self, message: snapshot_pb2.DeleteSnapshotRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotResponse:
        request = DeleteSnapshot(id=convert.snapshot_id(message.name), etag=message.etag)
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def CreateSnapshotGroup(
        self, message: snapshot_pb2.CreateSnapshotGroupRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotGroupResponse:
        request = CreateSnapshotGroup(
            id=check_id(message.group_id or new_ulid(), "group id"),
            volumes=tuple(map(convert.volume_id, message.volumes)),
            labels=convert.as_pairs(message.labels),
        )
        return await _change_group(call, request, request.id, validate_only=message.validate_only)

    async def GetSnapshotGroup(
        self, message: snapshot_pb2.GetSnapshotGroupRequest, call: Call
    ) -> snapshot_pb2.SnapshotGroup:
        return call.read(partial(_find_group, group_id=convert.group_id(message.name)))

    async def ListSnapshotGroups(
        self, message: snapshot_pb2.ListSnapshotGroupsRequest, call: Call
    ) -> snapshot_pb2.ListSnapshotGroupsResponse:
        page = self._pages.parse("ListSnapshotGroups", message)
        wanted = filters.parse(message.filter, GROUP_FIELDS)

        def read(txn: Transaction) -> tuple[list[snapshot_pb2.SnapshotGroup], str]:
            return collect(
                txn.scan(SnapshotGroup, page.after),
                page,
                key=lambda group: group.id,
                wanted=lambda group: wanted(partial(_group_values, group)),
                show=partial(_group_message, txn),
            )

        groups, after = await call.scan(read)
        return snapshot_pb2.ListSnapshotGroupsResponse(
            groups=groups, next_page_token=self._pages.token(page, after)
        )

    async def DeleteSnapshotGroup(
        self, message: snapshot_pb2.DeleteSnapshotGroupRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotGroupResponse:
        request = DeleteSnapshotGroup(id=convert.group_id(message.name), etag=message.etag)
        return await _change_group(call, request, request.id, validate_only=message.validate_only)


async def _change(
    call: Call, request: Request[Any], snapshot_id: str, *, validate_only: bool
) -> snapshot_pb2.MutateSnapshotResponse:
    """Submit a request; return the operation, and the snapshot if it exists then."""
    operation = await call.change(request, validate_only=validate_only)
    response = snapshot_pb2.MutateSnapshotResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):
            response.snapshot.CopyFrom(call.read(partial(_find, snapshot_id=snapshot_id)))
    return response


async def _change_group(
    call: Call, request: Request[Any], group_id: str, *, validate_only: bool
) -> snapshot_pb2.MutateSnapshotGroupResponse:
    operation = await call.change(request, validate_only=validate_only)
    response = snapshot_pb2.MutateSnapshotGroupResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):
            response.group.CopyFrom(call.read(partial(_find_group, group_id=group_id)))
    return response


def _find(txn: Transaction, snapshot_id: str) -> snapshot_pb2.Snapshot:
    return _message(txn, need_snapshot(txn, snapshot_id))


def _find_group(txn: Transaction, group_id: str) -> snapshot_pb2.SnapshotGroup:
    return _group_message(txn, need_group(txn, group_id))


def _message(txn: Transaction, record: Snapshot) -> snapshot_pb2.Snapshot:
    return convert.snapshot(record, operation=txn.claimant(f"snapshot/{record.id}") or "")


def _group_message(txn: Transaction, record: SnapshotGroup) -> snapshot_pb2.SnapshotGroup:
    members = [_message(txn, member) for member in members_of(txn, record)]
    return convert.snapshot_group(record, members)


def _values(snapshot: Snapshot, field: str) -> filters.Values:
    """Return the values of a field in FIELDS."""
    if field in FIELDS and field != "labels":
        return (str(getattr(snapshot, field)),)
    return filters.label_values(dict(snapshot.labels), field)


def _group_values(group: SnapshotGroup, field: str) -> filters.Values:
    """Return the values of a field in GROUP_FIELDS."""
    match field:
        case "id" | "policy":
            return (str(getattr(group, field)),)
        case "volume":
            return group.volumes
    return filters.label_values(dict(group.labels), field)
