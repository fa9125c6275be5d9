"""VolumeService, what it says and changes of volumes themselves."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, get_args

from zfsilo.v1 import volume_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Page, Pages, collect
from zfsilod.model.errors import NotFound
from zfsilod.model.records import STATES, Mode
from zfsilod.requests import adoption, pool_import
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.request import check_etag, check_id
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.security import csi_node
from zfsilod.security.authentication import Caller, shown
from zfsilod.service.drift import facts
from zfsilod.service.stats import stats
from zfsilod.storage.volume_view import (
    VolumeView,
    volume_view,
    volume_views,
    volume_views_with_deleted,
)
from zfsilod.wire import convert, enums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfsilod.api.rpc.calls import Call
    from zfsilod.requests.request import Request
    from zfsilod.storage.store import Transaction

    Source = Callable[[Transaction, str], Iterator[VolumeView]]

MAX_DIFFERENCES = 1000
FIELDS = ("id", "uid", "state", "mode", "host", "server", "labels")
WORDS = {"state": STATES, "mode": get_args(Mode)}
STATS = {  # what the service calls a figure: what the wire does
    "volsize": "volsize_bytes",
    "used": "used_bytes",
    "referenced": "referenced_bytes",
    "bytes_total": "filesystem_total_bytes",
    "bytes_used": "filesystem_used_bytes",
    "bytes_available": "filesystem_available_bytes",
    "inodes_total": "inodes_total",
    "inodes_used": "inodes_used",
    "inodes_available": "inodes_available",
}


class Volumes:
    """Get, List, Stats, Probe, Sync, Create, Update, Delete, Undelete."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def GetVolume(
        self, message: volume_pb2.GetVolumeRequest, call: Call
    ) -> volume_pb2.Volume:
        return convert.volume(need_view(call, convert.volume_id(message.name)))

    async def ListVolumes(
        self, message: volume_pb2.ListVolumesRequest, call: Call
    ) -> volume_pb2.ListVolumesResponse:
        page = self._pages.parse("ListVolumes", message)
        wanted = filters.parse(message.filter, FIELDS, WORDS)
        deleted = message.show_deleted and call.caller.role != "host"
        source = volume_views_with_deleted if deleted else volume_views
        found, after = await call.scan(lambda txn: _page(txn, page, wanted, call.caller, source))
        return volume_pb2.ListVolumesResponse(
            volumes=found, next_page_token=self._pages.token(page, after)
        )

    async def StatsVolume(
        self, message: volume_pb2.StatsVolumeRequest, call: Call
    ) -> volume_pb2.VolumeStats:
        volume_id = convert.volume_id(message.name)
        found = await stats(call.service, need_view(call, volume_id))
        figures = {STATS[name]: figure for name, figure in found.figures.items()}
        return volume_pb2.VolumeStats(**figures, conditions=found.conditions)

    async def ProbeVolume(
        self, message: volume_pb2.ProbeVolumeRequest, call: Call
    ) -> volume_pb2.ProbeVolumeResponse:
        seen = need_view(call, convert.volume_id(message.name))
        service = call.service
        found = await service.look(partial(facts, seen, service.machine, service.settings))
        return volume_pb2.ProbeVolumeResponse(facts=map(convert.fact, found))

    async def SyncVolume(
        self, message: volume_pb2.SyncVolumeRequest, call: Call
    ) -> volume_pb2.SyncVolumeResponse:
        volume_id = convert.volume_id(message.name)
        need_view(call, volume_id)
        operation = None
        if message.validate_only:
            found = await call.lasting(call.service.survey(volume_id))
        else:
            work = call.service.sync(volume_id, caller=str(call.caller))
            begun, found = await call.lasting(work)
            operation = await call.end(begun.id)
        return volume_pb2.SyncVolumeResponse(
            volume=convert.volume(need_view(call, volume_id)),
            operation=operation,
            differences=convert.differences(found),
        )

    async def SyncVolumes(
        self, message: volume_pb2.SyncVolumesRequest, call: Call
    ) -> volume_pb2.SyncVolumesResponse:
        work = call.service.sync_all(caller=str(call.caller), validate_only=message.validate_only)
        report = await call.lasting(work)
        shown = (each for found in report.reports for each in convert.differences(found))
        return volume_pb2.SyncVolumesResponse(
            complaints=dict(report.complaints),
            volumes=report.volumes,
            differences=islice(shown, MAX_DIFFERENCES),
        )

    async def CreateVolume(
        self, message: volume_pb2.CreateVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = _create(message)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def UpdateVolume(
        self, message: volume_pb2.UpdateVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = _update(message)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def DeleteVolume(
        self, message: volume_pb2.DeleteVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = DeleteVolume(
            id=convert.volume_id(message.name),
            etag=message.etag,
            dependents=enums.DEPENDENTS.name(message.dependents, "REFUSE"),
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def UndeleteVolume(
        self, message: volume_pb2.UndeleteVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = UndeleteVolume(id=convert.volume_id(message.name), uid=message.uid)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def AdoptVolume(
        self, message: volume_pb2.AdoptVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        work = adoption.find(call.service, message.dataset, message.volume_id)
        request = await call.lasting(work)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def AdoptVolumes(
        self, _request: volume_pb2.AdoptVolumesRequest, call: Call
    ) -> volume_pb2.AdoptVolumesResponse:
        found = await call.lasting(pool_import.adopt_all(call.service, str(call.caller)))
        names: dict[str, list[str]] = {"adopt": [], "adopt-trashed": [], "adopt-snapshot": []}
        for each in found.adopted:
            names[each.kind].append(each.subject)
        return volume_pb2.AdoptVolumesResponse(
            volumes=names["adopt"],
            in_trash=names["adopt-trashed"],
            snapshots=names["adopt-snapshot"],
            complaints=found.complaints,
            unknown=found.unknown,
        )


def need_view(call: Call, volume_id: str) -> VolumeView:
    """Return what the caller is shown of a volume, else raise NotFound: there or not, it is not."""
    known = call.read(lambda txn: volume_view(txn, volume_id))
    if call.caller.role == "node":
        found = csi_node.shown(known, call.service.settings.node_paths)
    else:
        found = shown(call.caller, known)
    if found is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return found


async def change_volume(
    call: Call, request: Request, volume_id: str, *, validate_only: bool, etag: str = ""
) -> volume_pb2.MutateVolumeResponse:
    """Do what a request says, and answer the volume and the operation.

    `etag`: of requests that do not carry it themselves. It is compared when the request arrives; the
    plan of such a request looks at the state anyway.
    """
    if etag:
        call.read(lambda txn: check_etag(etag, int(volume_view(txn, volume_id).etag)))
    operation = await call.change(request, validate_only=validate_only)
    if call.caller.role == "host":
        operation.ClearField("actions")  # they name other hosts
    answer = volume_pb2.MutateVolumeResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):  # deleted, disconnected, or no more the caller's to see
            answer.volume.CopyFrom(convert.volume(need_view(call, volume_id)))
    return answer


def _create(message: volume_pb2.CreateVolumeRequest) -> CreateVolume:
    asked = message.volume
    modes = tuple(enums.ACCESS_MODES.name(each) for each in asked.access_modes)
    return CreateVolume(
        id=check_id(message.volume_id, "volume id"),
        capacity_bytes=asked.capacity_bytes,
        limit_bytes=message.limit_bytes,
        thin=asked.thin if asked.HasField("thin") else True,
        mode=enums.MODES.name(asked.mode, "FILESYSTEM"),
        properties=convert.as_pairs(asked.properties),
        labels=convert.as_pairs(asked.labels),
        hosts=tuple(asked.hosts),
        access_modes=modes or ("SINGLE_NODE_WRITER",),
        **_source(asked.source),
    )


def _source(source: volume_pb2.VolumeSource) -> dict[str, str]:
    """Return what a new volume is to begin with, as the request has it."""
    match source.WhichOneof("source"):
        case "snapshot":
            return {"source_snapshot": convert.snapshot_id(source.snapshot)}
        case "volume":
            return {"source_volume": convert.volume_id(source.volume)}
    return {}


def _update(message: volume_pb2.UpdateVolumeRequest) -> UpdateVolume:
    asked = message.volume
    return UpdateVolume(
        id=convert.volume_id(asked.name),
        mask=tuple(message.update_mask.paths),
        capacity_bytes=asked.capacity_bytes,
        limit_bytes=message.limit_bytes,
        properties=convert.as_pairs(asked.properties),
        labels=convert.as_pairs(asked.labels),
        hosts=tuple(asked.hosts),
        etag=message.etag,
    )


def _page(
    txn: Transaction, page: Page, wanted: filters.Predicate, caller: Caller, source: Source
) -> tuple[list[volume_pb2.Volume], str]:
    def is_wanted(found: VolumeView) -> bool:
        seen = shown(caller, found)
        return seen is not None and wanted(partial(_values, seen))

    def show(found: VolumeView) -> volume_pb2.Volume:
        seen = shown(caller, found)
        assert seen is not None, "it was wanted"
        return convert.volume(seen)

    return collect(
        source(txn, page.after), page, key=lambda each: each.key, wanted=is_wanted, show=show
    )


def _values(found: VolumeView, field: str) -> filters.Values:
    """Return what a volume has in a field of FIELDS."""
    volume, attachment = found.volume, found.attachment
    match field:
        case "id" | "state":
            return (str(getattr(found, field)),)
        case "uid":
            return (volume.uid,) if volume else ()
        case "mode":
            return tuple({each.mode for each in (volume, attachment) if each is not None})
        case "host":
            return tuple(each.host for each in found.publications)
        case "server":
            return (attachment.server,) if attachment else ()
    return filters.label_values(dict(volume.labels) if volume else {}, field)
