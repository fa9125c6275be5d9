"""VolumeService: volumes, their usage, facts, reconciliation, and adoption."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, get_args

from zfsilo.v1 import volume_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.errors import NotFound
from zfsilod.model.validation import check_id
from zfsilod.model.words import STATES, Mode
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.io_limits import LIMITS
from zfsilod.requests.rights import visible_to
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service import pool_import, pool_scan
from zfsilod.service.drift import check_facts
from zfsilod.storage.volume_view import (
    VolumeView,
    volume_view,
    volume_views,
    volume_views_with_deleted,
)
from zfsilod.wire import convert, enums

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.requests.request import Request

MAX_DIFFERENCES = 1000
FIELDS = ("id", "uid", "state", "mode", "host", "server", "labels")
ENUMERATIONS = {"state": STATES, "mode": get_args(Mode)}
STATS_FIELDS = {  # the field of VolumeStats by the name of the figure
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


class VolumeMethods:
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
        matches = filters.parse(message.filter, FIELDS, ENUMERATIONS)
        deleted = message.show_deleted and call.caller.role != "host"
        scan = volume_views_with_deleted if deleted else volume_views

        def wanted(view: VolumeView) -> bool:
            visible = visible_to(call.caller, view, ())
            return visible is not None and matches(partial(_values, visible))

        def show(view: VolumeView) -> volume_pb2.Volume:
            visible = visible_to(call.caller, view, ())
            assert visible is not None, "only wanted views are shown"
            return convert.volume(visible)

        volumes, after = await call.scan(
            lambda txn: collect(
                scan(txn, page.after), page, key=lambda view: view.key, wanted=wanted, show=show
            )
        )
        if message.show_usage:
            await _add_usage(call, volumes)
        return volume_pb2.ListVolumesResponse(
            volumes=volumes, next_page_token=self._pages.token(page, after)
        )

    async def StatsVolume(
        self, message: volume_pb2.StatsVolumeRequest, call: Call
    ) -> volume_pb2.VolumeStats:
        volume_id = convert.volume_id(message.name)
        sampled = await call.service.stats.sample(need_view(call, volume_id))
        figures = {STATS_FIELDS[name]: figure for name, figure in sampled.figures.items()}
        return volume_pb2.VolumeStats(
            **figures,
            conditions=[problem.message for problem in sampled.problems],
            condition_reasons=[problem.reason for problem in sampled.problems],
        )

    async def ProbeVolume(
        self, message: volume_pb2.ProbeVolumeRequest, call: Call
    ) -> volume_pb2.ProbeVolumeResponse:
        view = need_view(call, convert.volume_id(message.name))
        context = call.service.context
        probed = await context.look(partial(check_facts, view, context.machine, context.settings))
        return volume_pb2.ProbeVolumeResponse(facts=map(convert.fact, probed))

    async def SyncVolume(
        self, message: volume_pb2.SyncVolumeRequest, call: Call
    ) -> volume_pb2.SyncVolumeResponse:
        volume_id = convert.volume_id(message.name)
        need_view(call, volume_id)
        operation = None
        if message.validate_only:
            report = await call.shielded(call.service.reconciler.report(volume_id, store=False))
        else:
            work = call.service.reconciler.sync(volume_id, caller=call.caller)
            submitted, report = await call.shielded(work)
            operation = await call.end(submitted.id)
        return volume_pb2.SyncVolumeResponse(
            volume=convert.volume(need_view(call, volume_id)),
            operation=operation,
            differences=convert.differences(report),
        )

    async def SyncVolumes(
        self, message: volume_pb2.SyncVolumesRequest, call: Call
    ) -> volume_pb2.SyncVolumesResponse:
        work = call.service.reconciler.sync_all(call.caller, validate_only=message.validate_only)
        result = await call.shielded(work)
        differences = chain.from_iterable(map(convert.differences, result.reports))
        return volume_pb2.SyncVolumesResponse(
            complaints=dict(result.complaints),
            volumes=result.volumes,
            differences=islice(differences, MAX_DIFFERENCES),
        )

    async def CreateVolume(
        self, message: volume_pb2.CreateVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        volume, source = message.volume, message.volume.source
        kind = source.WhichOneof("source")
        modes = tuple(map(enums.ACCESS_MODES.name, volume.access_modes))
        request = CreateVolume(
            id=check_id(message.volume_id, "volume id"),
            capacity_bytes=volume.capacity_bytes,
            limit_bytes=message.limit_bytes,
            thin=volume.thin if volume.HasField("thin") else True,
            mode=enums.MODES.name(volume.mode, "FILESYSTEM"),
            properties=convert.as_pairs(volume.properties),
            labels=convert.as_pairs(volume.labels),
            hosts=tuple(volume.hosts),
            access_modes=modes or ("SINGLE_NODE_WRITER",),
            transport=enums.TRANSPORTS.name(volume.transport, "ISCSI"),
            **{name: getattr(volume, name) for name in LIMITS},
            tls=volume.tls,
            source_snapshot=convert.snapshot_id(source.snapshot) if kind == "snapshot" else "",
            source_volume=convert.volume_id(source.volume) if kind == "volume" else "",
            encrypt=volume.encrypted,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def UpdateVolume(
        self, message: volume_pb2.UpdateVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        volume = message.volume
        request = UpdateVolume(
            id=convert.volume_id(volume.name),
            mask=tuple(message.update_mask.paths),
            capacity_bytes=volume.capacity_bytes,
            limit_bytes=message.limit_bytes,
            properties=convert.as_pairs(volume.properties),
            labels=convert.as_pairs(volume.labels),
            hosts=tuple(volume.hosts),
            **{name: getattr(volume, name) for name in LIMITS},
            etag=message.etag,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def DeleteVolume(
        self, message: volume_pb2.DeleteVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = DeleteVolume(
            id=convert.volume_id(message.name),
            etag=message.etag,
            dependents=enums.DEPENDENTS.name(message.dependents, "REFUSE"),
            record_only=message.record_only,
            unpublish=message.unpublish,
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
        work = pool_scan.find_zvol(
            call.service.context,
            message.dataset,
            message.volume_id,
            accept_copy=message.accept_copy,
        )
        request = await call.shielded(work)
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def AdoptVolumes(
        self, message: volume_pb2.AdoptVolumesRequest, call: Call
    ) -> volume_pb2.AdoptVolumesResponse:
        work = pool_import.adopt_all(
            call.service.context,
            call.service,
            call.caller,
            take_over=message.take_over,
            validate_only=message.validate_only,
        )
        result = await call.shielded(work)
        names: dict[str, list[str]] = {"adopt": [], "adopt-trashed": [], "adopt-snapshot": []}
        for operation in result.adopted:
            names[operation.kind].append(operation.subject)
        return volume_pb2.AdoptVolumesResponse(
            volumes=names["adopt"],
            in_trash=names["adopt-trashed"],
            snapshots=names["adopt-snapshot"],
            complaints=result.complaints,
            unknown=result.unknown,
        )


async def _add_usage(call: Call, volumes: list[volume_pb2.Volume]) -> None:
    """Add what each volume uses in the pool; nothing while the pool does not answer."""
    if any(volume.dataset for volume in volumes):
        used = await call.service.stats.usages()
        for volume in volumes:
            if volume.dataset in used:
                volume.used_bytes = used[volume.dataset]


def need_view(call: Call, volume_id: str) -> VolumeView:
    """Return the part of a volume that the caller may see, else raise NotFound.

    A caller cannot tell a volume that it may not see from one that does not exist.
    """
    view = call.read(lambda txn: volume_view(txn, volume_id))
    visible = visible_to(call.caller, view, call.service.context.settings.node_paths)
    if visible is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return visible


async def change_volume(
    call: Call, request: Request[Any], volume_id: str, *, validate_only: bool
) -> volume_pb2.MutateVolumeResponse:
    """Submit a request, and return the operation and the volume."""
    operation = await call.change(request, validate_only=validate_only)
    if call.caller.role == "host":
        operation.ClearField("actions")  # they contain names of other hosts
    response = volume_pb2.MutateVolumeResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):  # deleted, disconnected, or not visible to the caller now
            response.volume.CopyFrom(convert.volume(need_view(call, volume_id)))
    return response


def _values(view: VolumeView, field: str) -> filters.Values:
    """Return the values of a field in FIELDS."""
    volume, attachment = view.volume, view.attachment
    match field:
        case "id" | "state":
            return (str(getattr(view, field)),)
        case "uid":
            return (volume.uid,) if volume else ()
        case "mode":
            return tuple({record.mode for record in (volume, attachment) if record is not None})
        case "host":
            return tuple(publication.host for publication in view.publications)
        case "server":
            return (attachment.server,) if attachment else ()
    return filters.label_values(dict(volume.labels) if volume else {}, field)
