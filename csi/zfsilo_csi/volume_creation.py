"""CreateVolume: the requested volume, the search for an existing one, the choice of a backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import ids, parameters, volume_capabilities
from zfsilo_csi.backends import OPTIONAL_S, deciding
from zfsilo_csi.errors import Code, CsiError, invalid, nonsense

if TYPE_CHECKING:
    from csi.v1 import csi_pb2 as csi

    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import CsiCall
    from zfsilo_csi.ids import Handle
    from zfsilo_csi.parameters import Parameters

DEFAULT_BYTES = 1 << 30
MIN_BYTES = 1 << 20
MAX_BEGUN = 10_000
# Codes that leave open whether the volume exists, or will exist.
OPEN = (Code.UNAVAILABLE, Code.ABORTED, Code.INTERNAL, Code.UNKNOWN)


class Begun:
    """The backends where creations of this process began, and were not refused.

    Such a creation continues where it began, although the preferred zone may be another one by
    now, or a backend that was full may have space: the volume may exist there. Kubernetes repeats
    a successful creation whose reply was lost.

    A process that was restarted does not know them. It still asks the same backend first, unless
    the preferred zone has changed or the first backend was full. If in addition the backend with
    the volume does not reply, a second volume is created, and `zfsiloctl csi orphans` lists the
    first one, which no pod has used. To wait for every silent backend instead would let one server
    stop the claims of all others.
    """

    def __init__(self) -> None:
        self._backends: dict[str, Backend] = {}

    def first(self, volume_id: str, candidates: list[Backend]) -> list[Backend]:
        """Return the candidates behind the backend where the creation of the volume began."""
        began = self._backends.get(volume_id)
        if began is None:
            return candidates
        return [began, *(backend for backend in candidates if backend is not began)]

    def begin(self, volume_id: str, backend: Backend) -> None:
        """Note that a creation begins; the oldest note is dropped when there are too many."""
        self._backends.pop(volume_id, None)
        self._backends[volume_id] = backend
        if len(self._backends) > MAX_BEGUN:
            del self._backends[next(iter(self._backends))]

    def forget(self, volume_id: str, backend: Backend) -> None:
        """Note that a backend has refused the creation, or has deleted the volume."""
        if self._backends.get(volume_id) is backend:
            del self._backends[volume_id]


class RequestedVolume(NamedTuple):
    """The checked content of a CreateVolumeRequest."""

    name: str
    size_bytes: int  # 0: the size of the source
    required_bytes: int
    limit_bytes: int
    mode: pb.Mode
    access_modes: list[pb.AccessMode]
    parameters: Parameters
    source: Handle | None
    source_kind: str  # snapshot, volume or ""
    topology: csi.TopologyRequirement | None

    @property
    def id(self) -> str:
        """The id of the volume on its backend."""
        return ids.id_of(self.name)

    @property
    def pinned(self) -> bool:
        """Whether the class or the source names the only backend that may get the volume."""
        return bool(self.parameters.backend) or self.source is not None

    @property
    def source_message(self) -> pb.VolumeSource:
        """The source as zfsilod names it."""
        if self.source is None:
            return pb.VolumeSource()
        if self.source_kind == "snapshot":
            return pb.VolumeSource(snapshot=f"snapshots/{self.source.id}")
        return pb.VolumeSource(volume=f"volumes/{self.source.id}")


def read(request: csi.CreateVolumeRequest) -> RequestedVolume:
    """Check a request. Raises INVALID_ARGUMENT, OUT_OF_RANGE, or NOT_FOUND for the source."""
    name = ids.check_name(request.name)
    wanted = parameters.read(request.parameters, request.mutable_parameters)
    mode = volume_capabilities.check_all(request.volume_capabilities, wanted.transport)
    required = request.capacity_range.required_bytes
    size = size_of(request.capacity_range)
    kind, source = _source_of(request)
    if source is None and volume_capabilities.is_read_only(request.volume_capabilities):
        raise invalid(
            "a filesystem that is only read would stay empty and could not be mounted, because a "
            "volume without a source has none yet; create it from a snapshot or a volume, or with "
            "an access mode that writes"
        )
    return RequestedVolume(
        name=name,
        size_bytes=0 if source is not None and not required else size,
        required_bytes=required,
        limit_bytes=request.capacity_range.limit_bytes,
        mode=mode,
        access_modes=volume_capabilities.allowed_modes(request.volume_capabilities),
        parameters=wanted,
        source=source,
        source_kind=kind,
        topology=(
            request.accessibility_requirements
            if request.HasField("accessibility_requirements")
            else None
        ),
    )


def size_of(capacity: csi.CapacityRange) -> int:
    """Return the size for a capacity range, else raise OUT_OF_RANGE."""
    required, limit = capacity.required_bytes, capacity.limit_bytes
    if required < 0 or limit < 0 or (limit and required > limit) or 0 < limit < MIN_BYTES:
        raise CsiError(
            Code.OUT_OF_RANGE,
            f"capacity_range of {required} to {limit} bytes is invalid; use required_bytes of 0 or "
            f"more, and limit_bytes of 0 (no limit) or at least required_bytes and {MIN_BYTES}",
        )
    size = required or min(DEFAULT_BYTES, limit or DEFAULT_BYTES)
    return max(size, MIN_BYTES)


def _source_of(request: csi.CreateVolumeRequest) -> tuple[str, Handle | None]:
    content = request.volume_content_source
    match content.WhichOneof("type"):
        case "snapshot":
            return "snapshot", ids.need_handle(content.snapshot.snapshot_id, "snapshot")
        case "volume":
            return "volume", ids.need_handle(content.volume.volume_id, "volume")
    return "", None


def candidates(backends: Backends, wanted: RequestedVolume) -> list[Backend]:
    """Return the backends that may get the volume, best first, else raise RESOURCE_EXHAUSTED."""
    allowed = list(backends)
    if wanted.parameters.backend:
        allowed = [backends.chosen(wanted.parameters.backend)]
    if wanted.source is not None:
        origin = backends.get(wanted.source.backend)
        allowed = [backend for backend in allowed if backend is origin]
    ordered = deciding(allowed, wanted.topology, wanted.name)
    if not ordered:
        source = " and stores the source" if wanted.source is not None else ""
        raise CsiError(
            Code.RESOURCE_EXHAUSTED,
            f"no backend serves the requested zones{source}; check accessibility_requirements, "
            "the parameter backend, and the zones in the plugin's configuration",
        )
    return ordered


async def find(
    wanted: RequestedVolume, candidates: list[Backend], others: list[Backend], call: CsiCall
) -> tuple[Backend, pb.Volume] | None:
    """Return the volume if it exists. The first candidate must reply; another backend need not.

    A later candidate gets a volume only when those before it have refused it: see Begun.
    """
    optional = call.at_most(OPTIONAL_S)
    daemon_request = pb.GetVolumeRequest(name=f"volumes/{wanted.id}")
    first, *later = candidates
    backends = [first, *later, *others]
    replies = await asyncio.gather(
        first.volumes.GetVolume(daemon_request, call),
        *(backend.volumes.GetVolume(daemon_request, optional) for backend in backends[1:]),
        return_exceptions=True,
    )
    match, missing = None, None
    for backend, reply in zip(backends, replies, strict=True):
        if not isinstance(reply, BaseException):
            # A volume without uid is only attached to this server: another server stores it.
            match = match or ((backend, reply) if reply.uid else None)
            continue
        if not isinstance(reply, CsiError):
            raise reply
        if reply.code != Code.NOT_FOUND and backend is first:
            missing = reply
    if match is None and missing is not None:
        raise _waiting(missing, wanted.name) if later else missing
    return match


def _waiting(error: CsiError, name: str) -> CsiError:
    """Return the error for a backend that does not reply, in a zone that has others."""
    return CsiError(
        error.code,
        f"{error.message}; {name} may exist there, so it waits for this backend: for a volume on "
        "another one create the claim again, or use the parameter backend, or a zone for each "
        "server",
        reason=error.reason,
    )


async def create(
    wanted: RequestedVolume, backends: list[Backend], begun: Begun, call: CsiCall
) -> tuple[Backend, pb.Volume]:
    """Create the volume on the first backend with enough space."""
    daemon_request = _daemon_request(wanted)
    for backend in backends:
        if wanted.parameters.tls:
            await backend.check_tls(call)
        begun.begin(wanted.id, backend)
        try:
            response = await backend.volumes.CreateVolume(daemon_request, call)
        except CsiError as error:
            if error.code not in OPEN:
                begun.forget(wanted.id, backend)
            if error.code != Code.RESOURCE_EXHAUSTED or backend is backends[-1]:
                raise
        else:
            if response.volume.id != wanted.id:
                raise nonsense(backend.name, f"it created another volume than {wanted.id}")
            return backend, response.volume
    raise AssertionError("candidates() returns at least one backend")


def _daemon_request(wanted: RequestedVolume) -> pb.CreateVolumeRequest:
    return pb.CreateVolumeRequest(
        volume_id=wanted.id,
        limit_bytes=wanted.limit_bytes,
        volume=pb.Volume(
            capacity_bytes=wanted.size_bytes,
            thin=wanted.parameters.thin,
            transport=wanted.parameters.transport,
            tls=wanted.parameters.tls,
            encrypted=wanted.parameters.encrypt,
            properties=wanted.parameters.properties,
            **wanted.parameters.limits,
            mode=wanted.mode,
            access_modes=wanted.access_modes,
            labels=wanted.parameters.labels | {ids.NAME_LABEL: wanted.name},
            source=wanted.source_message if wanted.source else None,
        ),
    )


def check_same(volume: pb.Volume, wanted: RequestedVolume) -> None:
    """Raise ALREADY_EXISTS if a volume differs from the requested one."""
    block = wanted.parameters.properties.get(parameters.FIXED)
    differs = {
        "name": volume.labels.get(ids.NAME_LABEL) != wanted.name,
        "size": volume.capacity_bytes < wanted.required_bytes
        or 0 < wanted.limit_bytes < volume.capacity_bytes,
        "capabilities": volume.mode != wanted.mode
        or not set(wanted.access_modes) <= set(volume.access_modes),
        "source": volume.source != wanted.source_message,
        "thin": volume.thin != wanted.parameters.thin,
        "transport": (volume.transport or pb.TRANSPORT_ISCSI) != wanted.parameters.transport,
        "tls": volume.tls != wanted.parameters.tls,
        # A clone is encrypted as its source is.
        "encryption": volume.encrypted != wanted.parameters.encrypt
        and (wanted.parameters.encrypt or wanted.source is None),
        "volblocksize": block is not None and parameters.block_bytes(block) != volume.volblocksize,
    }
    fields = [field for field, different in differs.items() if different]
    if fields:
        raise CsiError(
            Code.ALREADY_EXISTS,
            f"volume {wanted.name} already exists with a different {', '.join(fields)}; "
            "delete it or choose another name",
        )
