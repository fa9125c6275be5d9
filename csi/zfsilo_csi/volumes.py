"""csi.v1.Controller: create, delete, validate, list, get, expand and modify volumes; free space."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.wrappers_pb2 import Int64Value
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import (
    ids,
    pagination,
    parameters,
    service_capabilities,
    volume_capabilities,
    volume_creation,
)
from zfsilo_csi.backends import OPTIONAL_S
from zfsilo_csi.convert import condition, csi_volume, published_nodes, volume_entry
from zfsilo_csi.errors import Code, CsiError, ignore_not_found, need

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import CsiCall


class VolumeController:
    """The methods of csi.v1.Controller for volumes, except publish and unpublish."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._begun = volume_creation.Begun()

    async def ControllerGetCapabilities(
        self, _request: csi.ControllerGetCapabilitiesRequest, call: CsiCall
    ) -> csi.ControllerGetCapabilitiesResponse:
        return service_capabilities.controller(await self._backends.features(call))

    async def CreateVolume(
        self, request: csi.CreateVolumeRequest, call: CsiCall
    ) -> csi.CreateVolumeResponse:
        wanted = volume_creation.read(request)
        ranked = volume_creation.candidates(self._backends, wanted)
        candidates = self._begun.first(wanted.id, ranked)
        rest = [backend for backend in self._backends if backend not in candidates]
        others = [] if wanted.pinned else rest
        match = await volume_creation.find(wanted, candidates, others, call)
        if match is None:
            match = await volume_creation.create(wanted, candidates, self._begun, call)
        backend, volume = match
        call.note(volume=f"{backend.key}/{volume.id}")
        volume_creation.check_same(volume, wanted)
        cloned = request.HasField("volume_content_source")
        source = request.volume_content_source if cloned else None
        return csi.CreateVolumeResponse(volume=csi_volume(backend, volume, source))

    async def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, call: CsiCall
    ) -> csi.DeleteVolumeResponse:
        handle = ids.parse(need(request.volume_id, "volume_id"))
        if handle is not None:
            backend = self._backends.get(handle.backend)
            daemon_request = pb.DeleteVolumeRequest(
                name=f"volumes/{handle.id}", dependents=pb.DEPENDENTS_KEEP
            )
            with ignore_not_found():
                await backend.volumes.DeleteVolume(daemon_request, call)
            self._begun.forget(handle.id, backend)
        return csi.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, call: CsiCall
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        need(request.volume_id, "volume_id")
        need(request.volume_capabilities, "volume_capabilities")
        handle = ids.need_handle(request.volume_id, "volume")
        volume = await self._backends.get(handle.backend).get_volume(handle, call)
        for capability in request.volume_capabilities:
            complaint = volume_capabilities.unusable(volume, capability)
            if complaint:
                return csi.ValidateVolumeCapabilitiesResponse(message=complaint)
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            parameters=request.parameters,
            volume_capabilities=request.volume_capabilities,
            mutable_parameters=request.mutable_parameters,
        )
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def ListVolumes(
        self, request: csi.ListVolumesRequest, call: CsiCall
    ) -> csi.ListVolumesResponse:
        async def page(
            backend: Backend, token: str, size: int
        ) -> tuple[list[csi.ListVolumesResponse.Entry], str]:
            daemon_request = pb.ListVolumesRequest(page_size=size, page_token=token)
            response = await backend.volumes.ListVolumes(daemon_request, call)
            # A volume without uid is only attached to this server: another server stores it.
            stored = [volume for volume in response.volumes if volume.uid]
            entries = [volume_entry(backend, volume) for volume in stored]
            return entries, response.next_page_token

        start = pagination.read_token(request.starting_token, self._backends.names)
        entries, after = await pagination.collect(self._backends, start, request.max_entries, page)
        return csi.ListVolumesResponse(entries=entries, next_token=pagination.write_token(after))

    async def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, call: CsiCall
    ) -> csi.ControllerGetVolumeResponse:
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await backend.get_volume(handle, call)
        problems = [*volume.conditions, *await _current_problems(backend, volume, call)]
        return csi.ControllerGetVolumeResponse(
            volume=csi_volume(backend, volume),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=published_nodes(volume), volume_condition=condition(problems)
            ),
        )

    async def GetCapacity(
        self, request: csi.GetCapacityRequest, call: CsiCall
    ) -> csi.GetCapacityResponse:
        wanted = parameters.read(request.parameters, {})
        if any(
            volume_capabilities.problem(capability, wanted.transport)
            for capability in request.volume_capabilities
        ):
            return csi.GetCapacityResponse(available_capacity=0)
        topology = request.accessible_topology if request.HasField("accessible_topology") else None
        backends = self._backends.within(topology)
        if wanted.backend:
            backends = [b for b in backends if b is self._backends.chosen(wanted.backend)]
        daemon_request = service_pb2.GetCapacityRequest(
            thin=wanted.thin, properties=wanted.properties
        )
        free = await _free(backends, daemon_request, call)
        return csi.GetCapacityResponse(
            available_capacity=sum(free),
            maximum_volume_size=Int64Value(value=max(free, default=0)),
            minimum_volume_size=Int64Value(value=volume_creation.MIN_BYTES),
        )

    async def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, call: CsiCall
    ) -> csi.ControllerExpandVolumeResponse:
        need(request.volume_id, "volume_id")
        need(request.HasField("capacity_range"), "capacity_range")
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await backend.get_volume(handle, call)
        if request.HasField("volume_capability"):
            volume_capabilities.check(request.volume_capability)
        size = volume_creation.size_of(request.capacity_range)
        limit = request.capacity_range.limit_bytes
        if limit and volume.capacity_bytes > limit:
            raise CsiError(
                Code.OUT_OF_RANGE,
                f"volume {handle} has {volume.capacity_bytes} bytes and cannot shrink; "
                f"raise limit_bytes, which is {limit}",
            )
        if request.capacity_range.required_bytes and size > volume.capacity_bytes:
            change = pb.Volume(name=volume.name, capacity_bytes=size)
            volume = await _update(backend, change, ("capacity_bytes",), call, limit_bytes=limit)
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=volume.capacity_bytes, node_expansion_required=True
        )

    async def ControllerModifyVolume(
        self, request: csi.ControllerModifyVolumeRequest, call: CsiCall
    ) -> csi.ControllerModifyVolumeResponse:
        handle = ids.need_handle(request.volume_id, "volume")
        changes = parameters.changes(request.mutable_parameters)
        backend = self._backends.get(handle.backend)
        volume = await backend.get_volume(handle, call)
        fields = (*(("properties",) if changes.properties else ()), *changes.limits)
        if fields:
            change = pb.Volume(name=volume.name, properties=changes.properties, **changes.limits)
            await _update(backend, change, fields, call)
        return csi.ControllerModifyVolumeResponse()


async def _free(
    backends: list[Backend], daemon_request: service_pb2.GetCapacityRequest, call: CsiCall
) -> list[int]:
    """Return the free bytes of the backends that reply. Raises if none does, or for a parameter.

    Nothing can be created on the others now, and one of them must not stop the claims of a zone.
    """
    limited = call.at_most(OPTIONAL_S) if len(backends) > 1 else call
    replies = await asyncio.gather(
        *(backend.service.GetCapacity(daemon_request, limited) for backend in backends),
        return_exceptions=True,
    )
    errors = [reply for reply in replies if isinstance(reply, BaseException)]
    for error in errors:
        unknown = isinstance(error, CsiError) and error.code != Code.INVALID_ARGUMENT
        if not unknown or len(errors) == len(replies):
            raise error
    return [reply.available_bytes for reply in replies if not isinstance(reply, BaseException)]


async def _current_problems(backend: Backend, volume: pb.Volume, call: CsiCall) -> list[str]:
    """Probe pool and zvol, and return the problems that the record does not have yet."""
    try:
        stats = await backend.volumes.StatsVolume(pb.StatsVolumeRequest(name=volume.name), call)
    except CsiError as error:
        return [error.message]
    return [problem for problem in stats.conditions if problem not in volume.conditions]


async def _update(
    backend: Backend,
    change: pb.Volume,
    fields: tuple[str, ...],
    call: CsiCall,
    *,
    limit_bytes: int = 0,
) -> pb.Volume:
    mask = FieldMask(paths=fields)
    daemon_request = pb.UpdateVolumeRequest(
        volume=change, update_mask=mask, limit_bytes=limit_bytes
    )
    response = await backend.volumes.UpdateVolume(daemon_request, call)
    volume: pb.Volume = response.volume
    return volume
