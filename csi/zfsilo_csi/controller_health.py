"""csi.v1.Controller: the health of one volume, and the list of the volumes with problems."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from csi.v1 import csi_pb2 as csi
from zfsilo.v1 import service_pb2
from zfsilo.v1 import volume_pb2 as pb

from zfsilo_csi import ids, pagination
from zfsilo_csi.errors import Code, CsiError
from zfsilo_csi.health import OF_POOL, STATUSES, Problem, problems_of, volume_health

if TYPE_CHECKING:
    from zfsilo_csi.backends import Backend, Backends
    from zfsilo_csi.calls import CsiCall

MAX_DIGITS = 4  # of the number of volumes to skip


class HealthController:
    """The methods of csi.v1.Controller for the health of volumes.

    A backend that does not reply is an error: its volumes are neither healthy nor lost.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def ControllerGetVolumeHealth(
        self, request: csi.ControllerGetVolumeHealthRequest, call: CsiCall
    ) -> csi.ControllerGetVolumeHealthResponse:
        handle = ids.need_handle(request.volume_id, "volume")
        backend = self._backends.get(handle.backend)
        volume = await backend.get_volume(handle, call)
        held, current = await asyncio.gather(
            _holds(backend, call), _current_problems(backend, volume, call)
        )
        problems = [*held, *problems_of(volume), *current]
        return csi.ControllerGetVolumeHealthResponse(
            volume_health=volume_health(request.volume_id, problems)
        )

    async def ControllerListVolumeHealth(
        self, request: csi.ControllerListVolumeHealthRequest, call: CsiCall
    ) -> csi.ControllerListVolumeHealthResponse:
        common: dict[str, list[Problem]] = {}  # problems of all volumes of a backend

        async def page(
            backend: Backend, token: str, size: int
        ) -> tuple[list[csi.VolumeHealth], str]:
            if backend.key not in common:
                common[backend.key] = await _backend_problems(backend, call)
            return await _page(backend, token, size, common[backend.key], call)

        start = pagination.read_token(request.starting_token, self._backends.names)
        volumes, after = await pagination.collect(self._backends, start, request.max_entries, page)
        return csi.ControllerListVolumeHealthResponse(
            entries=volumes,
            next_token=pagination.write_token(after),
        )


async def _page(
    backend: Backend, token: str, size: int, common: list[Problem], call: CsiCall
) -> tuple[list[csi.VolumeHealth], str]:
    """Return up to `size` volumes with problems, and the token of the next ones.

    Most volumes have none, so a page of the backend is as large as it may be. A token is
    SKIP:TOKEN, the token of a page of the backend and the number of its volumes to leave out.
    """
    skip, page_token = _parse(token)
    daemon_request = pb.ListVolumesRequest(page_size=pagination.MAX_PAGE, page_token=page_token)
    response = await backend.volumes.ListVolumes(daemon_request, call)
    abnormal: list[csi.VolumeHealth] = []
    for position, volume in enumerate(response.volumes):
        if position < skip or not volume.uid:  # without uid: another server stores it
            continue
        if len(abnormal) == size:
            return abnormal, f"{position}:{page_token}"
        if problems := [*common, *problems_of(volume)]:
            abnormal.append(volume_health(f"{backend.key}/{volume.id}", problems))
    return abnormal, f"0:{response.next_page_token}" if response.next_page_token else ""


def _parse(token: str) -> tuple[int, str]:
    """Return the parts of a token, else raise ABORTED. The backend checks its own part."""
    if not token:
        return 0, ""
    digits, colon, page_token = token.partition(":")
    if not colon or len(digits) > MAX_DIGITS or not (digits.isascii() and digits.isdecimal()):
        raise pagination.invalid_token()
    return int(digits), page_token


async def _holds(backend: Backend, call: CsiCall) -> list[Problem]:
    """Return why a server changes nothing until its administrator has decided."""
    info = await backend.service.GetServerInfo(service_pb2.GetServerInfoRequest(), call)
    return [Problem(hold.reason, hold.sentence) for hold in info.holds]


async def _backend_problems(backend: Backend, call: CsiCall) -> list[Problem]:
    """Return the problems that all volumes of a backend have."""
    try:
        capacity = await backend.service.GetCapacity(service_pb2.GetCapacityRequest(), call)
        problems = problems_of(capacity)
    except CsiError as error:
        problems = [_problem(error)]
    of_pool = [problem for problem in problems if problem.reason in OF_POOL]
    return [*await _holds(backend, call), *of_pool]


async def _current_problems(backend: Backend, volume: pb.Volume, call: CsiCall) -> list[Problem]:
    """Probe pool and zvol."""
    try:
        stats = await backend.volumes.StatsVolume(pb.StatsVolumeRequest(name=volume.name), call)
    except CsiError as error:
        return [_problem(error)]
    return problems_of(stats)


def _problem(error: CsiError) -> Problem:
    """Return the problem that an error tells of, else raise it: then the health is unknown."""
    if error.reason not in STATUSES or error.code == Code.NOT_FOUND:
        raise error
    return Problem(error.reason, error.message)
