"""What a plan is given besides the records: a look at this host, or what a server says."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, PendingRelease
from zfsilod.requests import attach, rotate_secrets
from zfsilod.requests.detach import Descent

if TYPE_CHECKING:
    from zfsilod.requests.request import Request
    from zfsilod.service.service import Service

RECOVERY_LOOK_S = 0.25

log = logging.getLogger(__name__)


async def see(service: Service, request: Request, operation_id: str) -> object:
    """Return what a request's plan is given: the look at this host, or what a server says."""
    if isinstance(request, attach.Connect):
        return await _fetch(service, request, operation_id)
    if isinstance(request, rotate_secrets.RotateSecrets):
        return await rotate_secrets.logged_in(service, request)
    if isinstance(request, rotate_secrets.RefreshSecrets):
        return await rotate_secrets.known_secrets(service, request)
    if isinstance(request, attach.Grow):
        return (await _connection(service, request.id)).size_bytes
    if isinstance(request, attach.Stage):
        return await _connection_if_known(service, request)
    if isinstance(request, Descent):
        return await _is_lost(service, request)
    with service.store.read() as txn:
        request = request.recall(txn)
    return await service.look(partial(request.look, service.machine, service.settings))


async def _fetch(service: Service, request: attach.Connect, operation_id: str) -> attach.Fetched:
    """Ask the server for the connection, and if asked to, for its publication first.

    The release of what we published is owed from before the call; the commit lifts the debt.
    """
    try:
        connection, chap = await service.servers.fetch(request.server, request.volume)
    except FailedPrecondition as error:
        if error.reason != "NOT_PUBLISHED" or not request.publish_if_needed:
            raise
    else:
        return attach.Fetched(connection, chap, published="")
    _check_not_fenced(service, request)
    owed = PendingRelease(id=operation_id, server=request.server, volume=request.volume)
    await service.write(lambda txn: txn.put(owed))
    await service.servers.publish(request.server, request.volume, client_operation=operation_id)
    connection, chap = await service.servers.fetch(request.server, request.volume)
    return attach.Fetched(connection, chap, published=operation_id)


def _check_not_fenced(service: Service, request: attach.Connect) -> None:
    """Refuse to publish anew, by itself, what was taken from this host meanwhile."""
    with service.store.read() as txn:
        found = txn.get(Attachment, request.id)
    if found is not None and request.is_for(found):
        raise FailedPrecondition(
            f"{request.volume} was taken from this host (its publication {found.epoch} is gone): "
            f"zfsiloctl volume disconnect --force {request.id}, then connect again",
            reason="FENCED",
            volume=request.id,
        )


async def _is_lost(service: Service, request: Descent) -> bool:
    """Tell whether the session of a way down is lost: not one that is back soon."""
    with service.store.read() as txn:
        found = request.attachment(txn)
    if found is None or found.state == "ABSENT":
        return False
    until = time.monotonic() + service.recovery_s
    while await service.look(partial(service.machine.iscsi.is_lost, found.disk)):
        gone = not await service.look(partial(service.machine.iscsi.has_any_session, found.disk))
        if gone or time.monotonic() > until:
            return True
        await asyncio.sleep(RECOVERY_LOOK_S)  # the state of a session changes without an event
    return False


async def _connection(service: Service, attachment_id: str) -> attach.Connection:
    with service.store.read() as txn:
        found = attach.need_attachment(txn, attachment_id)
    connection, _chap = await service.servers.fetch(found.server, found.volume)
    return connection


async def _connection_if_known(service: Service, request: attach.Stage) -> attach.Connection | None:
    """Ask the server anew: the volume may have grown, or an earlier attempt have formatted it.

    A server that does not say must not keep a volume from being used: None.
    """
    if request.readonly:
        return None
    try:
        return await _connection(service, request.id)
    except ZfsiloError as error:
        log.info("%s is staged as it is known here: %s", request.id, error.message)
        return None
