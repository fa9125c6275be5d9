"""The controller's work on volumes: create, delete, grow, modify, list, room."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.wrappers_pb2 import Int64Value
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import capabilities, identity, ids, parameters, tokens
from zfsilo_csi.backends import in_order
from zfsilo_csi.errors import Code, CsiError, absent_is_well, need
from zfsilo_csi.shown import entry, shown, status

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import Call
    from zfsilo_csi.ids import Handle
    from zfsilo_csi.parameters import Parameters

DEFAULT_BYTES = 1 << 30
MIN_BYTES = 1 << 20


class Volumes:
    """The methods of csi.v1.Controller about volumes, but for their publication."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def ControllerGetCapabilities(
        self, _request: csi.ControllerGetCapabilitiesRequest, call: Call
    ) -> csi.ControllerGetCapabilitiesResponse:
        return identity.controller(await self._backends.features(call))

    async def CreateVolume(
        self, request: csi.CreateVolumeRequest, call: Call
    ) -> csi.CreateVolumeResponse:
        name = ids.check_name(request.name)
        capabilities.check_all(request.volume_capabilities)
        wanted = parameters.read(request.parameters, request.mutable_parameters)
        size = size_of(request.capacity_range)
        if not request.capacity_range.required_bytes and source_of(request) is not None:
            size = 0  # as large as the source
        candidates = self._candidates(request, wanted)
        found = await self._find(ids.id_of(name), candidates, call)
        if found is None:
            backend, volume = await self._create(request, wanted, size, candidates, call)
        else:
            backend, volume = found
        call.note(volume=f"{backend.key}/{volume.id}")
        check_same(volume, request, wanted)
        return csi.CreateVolumeResponse(volume=shown(backend, volume, request))

    async def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, call: Call
    ) -> csi.DeleteVolumeResponse:
        handle = ids.parse(need(request.volume_id, "the volume id"))
        if handle is not None:
            backend = self._backends.get(handle.backend)
            with absent_is_well():
                await backend.volumes.DeleteVolume(
                    pb.DeleteVolumeRequest(
                        name=f"volumes/{handle.id}", dependents=pb.DEPENDENTS_KEEP
                    ),
                    call,
                )
        return csi.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, call: Call
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        need(request.volume_id, "the volume id")
        need(request.volume_capabilities, "the volume capabilities")
        handle = ids.need_handle(request.volume_id, "volume")
        volume = await get(self._backends.get(handle.backend), handle, call)
        for each in request.volume_capabilities:
            complaint = capabilities.unusable(volume, each)
            if complaint:
                return csi.ValidateVolumeCapabilitiesResponse(message=complaint)
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context, parameters=request.parameters,
            volume_capabilities=request.volume_capabilities,
            mutable_parameters=request.mutable_parameters,
        )  # fmt: skip
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def ListVolumes(
        self, request: csi.ListVolumesRequest, call: Call
    ) -> csi.ListVolumesResponse:
        async def page(backend: Backend, token: str, size: int) -> tuple[list[pb.Volume], str]:
            question = pb.ListVolumesRequest(page_size=size, page_token=token)
            answer = await backend.volumes.ListVolumes(question, call)
            # What this host only uses has no uid: another one serves it.
            return [each for each in answer.volumes if each.uid], answer.next_page_token

        place = tokens.read(request.starting_token, self._backends.names)
        found, after = await tokens.walk(self._backends, place, request.max_entries, page)
        return csi.ListVolumesResponse(
            entries=[entry(backend, each) for backend, each in found],
            next_token=tokens.write(after),
        )

    async def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, call: Call
    ) -> csi.ControllerGetVolumeResponse:
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await get(backend, handle, call)
        volume.conditions.extend(await _seen_now(backend, volume, call))
        published, condition = status(volume)
        return csi.ControllerGetVolumeResponse(
            volume=shown(backend, volume),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=published, volume_condition=condition
            ),
        )

    async def GetCapacity(
        self, request: csi.GetCapacityRequest, call: Call
    ) -> csi.GetCapacityResponse:
        given = parameters.read(request.parameters, {})
        if any(capabilities.problem(each) for each in request.volume_capabilities):
            return csi.GetCapacityResponse(available_capacity=0)
        topology = request.accessible_topology if request.HasField("accessible_topology") else None
        asked = self._backends.within(topology)
        if given.backend:
            asked = [each for each in asked if each == self._backends.chosen(given.backend)]
        question = service_pb2.GetCapacityRequest(thin=given.thin, properties=given.properties)
        rooms = await asyncio.gather(*(each.service.GetCapacity(question, call) for each in asked))
        free = [each.available_bytes for each in rooms]
        return csi.GetCapacityResponse(
            available_capacity=sum(free),
            maximum_volume_size=Int64Value(value=max(free, default=0)),
            minimum_volume_size=Int64Value(value=MIN_BYTES),
        )

    async def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, call: Call
    ) -> csi.ControllerExpandVolumeResponse:
        need(request.volume_id, "the volume id")
        need(request.HasField("capacity_range"), "the capacity range")
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await get(backend, handle, call)
        if request.HasField("volume_capability"):
            capabilities.check(request.volume_capability)
        size = size_of(request.capacity_range)
        limit = request.capacity_range.limit_bytes
        if limit and volume.capacity_bytes > limit:
            raise CsiError(
                Code.OUT_OF_RANGE,
                f"{request.volume_id} has {volume.capacity_bytes} bytes already, and never shrinks",
            )
        if size > volume.capacity_bytes:
            change = pb.Volume(name=volume.name, capacity_bytes=size)
            volume = await _update(backend, change, "capacity_bytes", call, limit_bytes=limit)
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=volume.capacity_bytes, node_expansion_required=True
        )

    async def ControllerModifyVolume(
        self, request: csi.ControllerModifyVolumeRequest, call: Call
    ) -> csi.ControllerModifyVolumeResponse:
        handle = ids.need_handle(request.volume_id, "volume")
        properties = parameters.changes(request.mutable_parameters)
        backend = self._backends.get(handle.backend)
        volume = await get(backend, handle, call)
        if properties:
            change = pb.Volume(name=volume.name, properties=properties)
            await _update(backend, change, "properties", call)
        return csi.ControllerModifyVolumeResponse()

    # Creation

    def _candidates(self, request: csi.CreateVolumeRequest, wanted: Parameters) -> list[Backend]:
        """Return the backends that may have the volume, best first; there is at least one."""
        allowed = list(self._backends)
        if wanted.backend:
            allowed = [self._backends.chosen(wanted.backend)]
        source = source_of(request)
        if source is not None:
            allowed = [each for each in allowed if each.key == source.backend]
        topology = (
            request.accessibility_requirements
            if request.HasField("accessibility_requirements")
            else None
        )
        found = in_order(allowed, topology, request.name)
        if not found:
            raise CsiError(
                Code.RESOURCE_EXHAUSTED, "no backend serves the zones that were asked for"
            )
        return found

    async def _find(
        self, volume_id: str, candidates: list[Backend], call: Call
    ) -> tuple[Backend, pb.Volume] | None:
        """Return a volume of this id. Every backend that might have it has to answer."""
        question = pb.GetVolumeRequest(name=f"volumes/{volume_id}")
        answers = await asyncio.gather(
            *(each.volumes.GetVolume(question, call) for each in candidates),
            return_exceptions=True,
        )
        found = None
        for backend, answer in zip(candidates, answers, strict=True):
            if not isinstance(answer, BaseException):
                found = found or (backend, answer)
            elif not isinstance(answer, CsiError) or answer.code != Code.NOT_FOUND:
                raise answer
        return found

    async def _create(
        self, request: csi.CreateVolumeRequest, wanted: Parameters, size: int,
        candidates: list[Backend], call: Call,
    ) -> tuple[Backend, pb.Volume]:  # fmt: skip
        """Make the volume at the first backend that has room for it."""
        question = pb.CreateVolumeRequest(
            volume_id=ids.id_of(request.name), limit_bytes=request.capacity_range.limit_bytes,
            volume=pb.Volume(
                capacity_bytes=size, thin=wanted.thin, properties=wanted.properties,
                mode=capabilities.check_all(request.volume_capabilities),
                access_modes=capabilities.granted(request.volume_capabilities),
                labels=wanted.labels | {ids.NAME_LABEL: request.name},
                source=_source(request),
            ),
        )  # fmt: skip
        for backend in candidates:
            try:
                answer = await backend.volumes.CreateVolume(question, call)
            except CsiError as error:
                if error.code != Code.RESOURCE_EXHAUSTED or backend is candidates[-1]:
                    raise
            else:
                return backend, answer.volume
        raise AssertionError("there is at least one candidate")


def _source(request: csi.CreateVolumeRequest) -> pb.VolumeSource | None:
    handle = source_of(request)
    if handle is None:
        return None
    if request.volume_content_source.WhichOneof("type") == "snapshot":
        return pb.VolumeSource(snapshot=f"snapshots/{handle.id}")
    return pb.VolumeSource(volume=f"volumes/{handle.id}")


async def _seen_now(backend: Backend, volume: pb.Volume, call: Call) -> list[str]:
    """Return what is wrong with a volume on its host this moment: its pool, its zvol."""
    try:
        found = await backend.volumes.StatsVolume(pb.StatsVolumeRequest(name=volume.name), call)
    except CsiError as error:
        return [error.message]
    return [each for each in found.conditions if each not in volume.conditions]


async def get(backend: Backend, handle: Handle, call: Call) -> pb.Volume:
    """Return a volume that a backend serves, else raise NOT_FOUND."""
    call.note(volume=str(handle))
    found: pb.Volume = await backend.volumes.GetVolume(
        pb.GetVolumeRequest(name=f"volumes/{handle.id}"), call
    )
    if not found.uid:
        raise ids.unknown(str(handle), "volume")
    return found


def size_of(wanted: csi.CapacityRange) -> int:
    """Return the size to make, else raise OUT_OF_RANGE."""
    least, most = wanted.required_bytes, wanted.limit_bytes
    if least < 0 or most < 0 or (most and least > most) or 0 < most < MIN_BYTES:
        raise CsiError(Code.OUT_OF_RANGE, f"no volume has {least} to {most} bytes")
    size = least or min(DEFAULT_BYTES, most or DEFAULT_BYTES)
    return max(size, MIN_BYTES)


def source_of(request: csi.CreateVolumeRequest) -> Handle | None:
    """Return what a new volume begins as a copy of."""
    match request.volume_content_source.WhichOneof("type"):
        case "snapshot":
            given = request.volume_content_source.snapshot.snapshot_id
            return ids.need_handle(given, "snapshot")
        case "volume":
            given = request.volume_content_source.volume.volume_id
            return ids.need_handle(given, "volume")
    return None


def check_same(volume: pb.Volume, request: csi.CreateVolumeRequest, wanted: Parameters) -> None:
    """Raise ALREADY_EXISTS when the volume of that name is another one than was asked for."""
    least, most = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
    block = wanted.properties.get(parameters.FIXED)
    granted = set(capabilities.granted(request.volume_capabilities))
    differs = {
        "name": volume.labels.get(ids.NAME_LABEL) != request.name,
        "size": volume.capacity_bytes < least or 0 < most < volume.capacity_bytes,
        "capabilities": volume.mode != capabilities.check_all(request.volume_capabilities)
        or not granted <= set(volume.access_modes),
        "source": volume.source != (_source(request) or pb.VolumeSource()),
        "thin": volume.thin != wanted.thin,
        "volblocksize": block is not None and parameters.block_bytes(block) != volume.volblocksize,
    }
    odd = [name for name, different in differs.items() if different]
    if odd:
        raise CsiError(Code.ALREADY_EXISTS, f"{request.name} exists with another {', '.join(odd)}")


async def _update(
    backend: Backend, change: pb.Volume, field: str, call: Call, *, limit_bytes: int = 0
) -> pb.Volume:
    answer = await backend.volumes.UpdateVolume(
        pb.UpdateVolumeRequest(
            volume=change, update_mask=FieldMask(paths=[field]), limit_bytes=limit_bytes
        ),
        call,
    )
    volume: pb.Volume = answer.volume
    return volume
