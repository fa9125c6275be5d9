"""csi.v1.Node: the health of a volume and of the storage, as this node knows it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import ids
from zfsilo_csi.errors import Code, CsiError, not_found
from zfsilo_csi.health import (
    MAX_MESSAGE_BYTES,
    STAGE_FAILED,
    STATUSES,
    Problem,
    cut,
    problems_of,
    volume_health,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zfsilo_csi.calls import CsiCall
    from zfsilo_csi.config import BackendConfig
    from zfsilo_csi.introductions import Introductions
    from zfsilo_csi.stubs import Zfsilod

MAX_KNOWN = 1000
SAMPLED = 8  # volumes of a server, whose sessions are looked at
LOST = frozenset(("SESSION_LOST", "FILESYSTEM_HANGS"))  # reasons of zfsilod
NO_REPLY = (Code.UNAVAILABLE, Code.ABORTED)
# Outcomes of NodeStageVolume that say nothing about the volume.
NO_FAILURES = (Code.ABORTED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS)

StorageProblem = tuple[csi.StorageHealthErrorType, str, str]  # status, reason, message


class KnownVolumes:
    """The volumes that kubelet named since the start, and why some could not be staged.

    The zfsilod of the node lists no volumes to the plugin. Kubelet asks for the usage of each
    mounted volume once a minute, so a plugin that was restarted knows them soon.
    """

    def __init__(self) -> None:
        self._volumes: dict[ids.Handle, Problem | None] = {}

    def seen(self, handle: ids.Handle, failure: Problem | None = None) -> None:
        """Remember a volume; the one that was not named for the longest time goes first."""
        self._volumes.pop(handle, None)
        if len(self._volumes) >= MAX_KNOWN:
            self.gone(next(iter(self._volumes)))
        self._volumes[handle] = failure

    @contextmanager
    def staging(self, handle: ids.Handle) -> Iterator[None]:
        """Remember a volume, and why it could not be staged."""
        try:
            yield
        except CsiError as error:
            self.failed(handle, error)
            raise
        self.seen(handle)

    def failed(self, handle: ids.Handle, error: CsiError) -> None:
        """Remember why a volume could not be staged."""
        if error.code not in NO_FAILURES:
            reason = error.reason if error.reason in STATUSES else STAGE_FAILED
            self.seen(handle, Problem(reason, error.message))

    def gone(self, handle: ids.Handle) -> None:
        """Forget a volume."""
        self._volumes.pop(handle, None)

    def failure(self, handle: ids.Handle) -> list[Problem]:
        """Return why a volume could not be staged; empty if it was."""
        problem = self._volumes.get(handle)
        return [problem] if problem else []

    def latest(self, backends: set[str], limit: int) -> list[ids.Handle]:
        """Return the volumes of backends that were named last."""
        known = (handle for handle in reversed(self._volumes) if handle.backend in backends)
        return list(islice(known, limit))


class NodeHealthService:
    """The methods of csi.v1.Node for health."""

    def __init__(
        self,
        daemon: Zfsilod,
        backends: Mapping[str, BackendConfig],
        introductions: Introductions,
        volumes: KnownVolumes,
    ) -> None:
        self._daemon = daemon
        self._backends = backends
        self._introductions = introductions
        self._volumes = volumes

    async def NodeGetVolumeHealth(
        self, request: csi.NodeGetVolumeHealthRequest, call: CsiCall
    ) -> csi.NodeGetVolumeHealthResponse:
        """Return the health of a volume that is attached here, or could not be staged."""
        handle = ids.need_handle(request.volume_id, "volume")
        call.note(volume=str(handle))
        volume = await self._attached(handle, call)
        problems = self._volumes.failure(handle)
        if volume is not None:
            problems += await self._problems(volume, call)
        elif not problems:
            raise not_found(f"volume {handle} is not attached to this node")
        return csi.NodeGetVolumeHealthResponse(
            volume_health=volume_health(request.volume_id, problems, of_node=True)
        )

    async def NodeGetStorageHealth(
        self, _request: csi.NodeGetStorageHealthRequest, call: CsiCall
    ) -> csi.NodeGetStorageHealthResponse:
        """Return the health of the servers of this node's zone: their replies, and the sessions."""
        info = await self._daemon.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
        backends: dict[str, set[str]] = {}  # by server
        for name, backend in self._backends.items():
            if info.zone in backend.zones:
                backends.setdefault(backend.server or name, set()).add(name)
        errors = await self._introductions.errors(backends)
        sessions = await asyncio.gather(
            *(self._lost_sessions(names, call) for names in backends.values())
        )
        problems = [
            problem
            for server, (lost, sampled) in zip(backends, sessions, strict=True)
            for problem in _server_problems(server, errors.get(server), lost, sampled)
        ]
        return csi.NodeGetStorageHealthResponse(backend_health=_merged(problems))

    async def _attached(self, handle: ids.Handle, call: CsiCall) -> pb.Volume | None:
        """Return a volume that is attached here, otherwise None."""
        daemon_request = pb.GetVolumeRequest(name=f"volumes/{ids.local_name(handle)}")
        try:
            volume: pb.Volume = await self._daemon.volumes.GetVolume(daemon_request, call)
        except CsiError as error:
            if error.code != Code.NOT_FOUND:
                raise
            return None
        return volume if volume.state != pb.STATE_ABSENT else None

    async def _problems(self, volume: pb.Volume, call: CsiCall) -> list[Problem]:
        """Return the recorded problems, and the probed ones unless an operation is changing it."""
        recorded = problems_of(volume)
        if volume.operation:
            return recorded
        daemon_request = pb.StatsVolumeRequest(name=volume.name)
        return [
            *recorded,
            *problems_of(await self._daemon.volumes.StatsVolume(daemon_request, call)),
        ]

    async def _lost_sessions(self, backends: set[str], call: CsiCall) -> tuple[int, int]:
        """Return how many sessions with a server are lost, and how many were looked at."""
        known = self._volumes.latest(backends, SAMPLED)
        lost = await asyncio.gather(*(self._is_lost(handle, call) for handle in known))
        return lost.count(True), len(known) - lost.count(None)

    async def _is_lost(self, handle: ids.Handle, call: CsiCall) -> bool | None:
        """Tell whether the session of a volume is lost; None: it is not attached, or changes."""
        volume = await self._attached(handle, call)
        if volume is None or volume.operation:
            return None
        try:
            problems = await self._problems(volume, call)
        except CsiError as error:
            if error.code != Code.NOT_FOUND:
                raise
            return None  # detached meanwhile
        return any(problem.reason in LOST for problem in problems)


def _server_problems(
    name: str, error: CsiError | None, lost: int, sampled: int
) -> Iterator[StorageProblem]:
    """Yield the problems of a server.

    It is unreachable only when no session of it works: mounted volumes outlive its zfsilod.
    """
    status = csi.STORAGE_UNREACHABLE if lost == sampled else csi.STORAGE_DEGRADED
    if error is not None and error.code in NO_REPLY:
        yield status, "ServerNotAnswering", f"server {name} does not reply: {error.message}"
    elif error is not None:
        message = f"server {name} refuses this node: {error.message}"
        yield csi.STORAGE_DEGRADED, "ServerRefusesNode", message
    if lost:
        yield status, "SessionsLost", f"{lost} of {sampled} sessions with server {name} are lost"


def _merged(
    problems: list[StorageProblem],
) -> list[csi.NodeGetStorageHealthResponse.StorageBackendHealth]:
    """Return one entry for each status and reason: CSI has no field for the server."""
    messages: dict[tuple[csi.StorageHealthErrorType, str], list[str]] = {}
    for status, reason, message in problems:
        messages.setdefault((status, reason), []).append(message)
    return [
        csi.NodeGetStorageHealthResponse.StorageBackendHealth(
            status=status, reason=reason, message=cut("; ".join(some), MAX_MESSAGE_BYTES)
        )
        for (status, reason), some in messages.items()
    ]
