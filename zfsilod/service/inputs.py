"""What a plan is given besides the records: a look at this host, or what a server says."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import FailedPrecondition, ZfsiloError
from zfsilod.model.records import Attachment, Debt
from zfsilod.requests import attach, rotate_secrets
from zfsilod.requests.detach import Descent

if TYPE_CHECKING:
    from zfsilod.requests.request import Verb
    from zfsilod.service.service import Service

RECOVERY_LOOK_S = 0.25

log = logging.getLogger(__name__)


async def see(service: Service, verb: Verb, operation_id: str) -> object:
    """Return what a verb's plan is given: the look at this host, or what a server says."""
    if isinstance(verb, attach.Connect):
        return await _fetch(service, verb, operation_id)
    if isinstance(verb, rotate_secrets.RotateSecrets):
        return await rotate_secrets.logged_in(service, verb)
    if isinstance(verb, rotate_secrets.RefreshSecrets):
        return await rotate_secrets.known_secrets(service, verb)
    if isinstance(verb, attach.Grow):
        return (await _connection(service, verb.id)).size_bytes
    if isinstance(verb, attach.Stage):
        return await _connection_if_known(service, verb)
    if isinstance(verb, Descent):
        return await _is_lost(service, verb)
    with service.store.read() as txn:
        verb = verb.recall(txn)
    return await service.look(partial(verb.look, service.machine, service.settings))


async def _fetch(service: Service, verb: attach.Connect, operation_id: str) -> attach.Fetched:
    """Ask the server for the connection, and if asked to, for its publication first.

    The release of what we published is owed from before the call; the commit lifts the debt.
    """
    try:
        connection, chap = await service.servers.fetch(verb.server, verb.volume)
    except FailedPrecondition as error:
        if error.reason != "NOT_PUBLISHED" or not verb.publish_if_needed:
            raise
    else:
        return attach.Fetched(connection, chap, published="")
    _check_not_fenced(service, verb)
    owed = Debt(id=operation_id, server=verb.server, volume=verb.volume)
    await service.write(lambda txn: txn.put(owed))
    await service.servers.publish(verb.server, verb.volume, request=operation_id)
    connection, chap = await service.servers.fetch(verb.server, verb.volume)
    return attach.Fetched(connection, chap, published=operation_id)


def _check_not_fenced(service: Service, verb: attach.Connect) -> None:
    """Refuse to publish anew, by itself, what was taken from this host meanwhile."""
    with service.store.read() as txn:
        found = txn.get(Attachment, verb.id)
    if found is not None and verb.is_about(found):
        raise FailedPrecondition(
            f"{verb.volume} was taken from this host (its publication {found.epoch} is gone): "
            f"zfsiloctl volume disconnect --force {verb.id}, then connect again",
            reason="FENCED",
            volume=verb.id,
        )


async def _is_lost(service: Service, verb: Descent) -> bool:
    """Tell whether the session of a way down is lost: not one that is back soon."""
    with service.store.read() as txn:
        found = verb.attachment(txn)
    if found is None or found.height == "ABSENT":
        return False
    until = time.monotonic() + service.recovery_s
    while await service.look(partial(service.machine.iscsi.is_lost, found.disk)):
        gone = not await service.look(partial(service.machine.iscsi.is_known, found.disk))
        if gone or time.monotonic() > until:
            return True
        await asyncio.sleep(RECOVERY_LOOK_S)  # the state of a session changes without an event
    return False


async def _connection(service: Service, attachment_id: str) -> attach.Connection:
    with service.store.read() as txn:
        found = attach.need_attachment(txn, attachment_id)
    connection, _chap = await service.servers.fetch(found.server, found.volume)
    return connection


async def _connection_if_known(service: Service, verb: attach.Stage) -> attach.Connection | None:
    """Ask the server anew: the volume may have grown, or an earlier attempt have formatted it.

    A server that does not say must not keep a volume from being used: None.
    """
    if verb.readonly:
        return None
    try:
        return await _connection(service, verb.id)
    except ZfsiloError as error:
        log.info("%s is staged as it is known here: %s", verb.id, error.message)
        return None
