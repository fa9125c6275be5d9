"""What must be out of the way before a request can begin, each in an operation of its own.

A forced publication fences who holds the volume; a connection first ends what an earlier one has
left; a way down cancels a climb, and does not wait for a rollback that fails.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import Busy
from zfsilod.model.records import Attachment
from zfsilod.requests.attach import Connect, Fetched
from zfsilod.requests.detach import Clear, Descent, Disconnect
from zfsilod.requests.publications import Publish, Unpublish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import Host
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.records import Action, Operation
    from zfsilod.requests.request import Request, View
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

CLIMBS = ("connect", "stage", "mount", "grow")
STOPPABLE = ("RUNNING", "WAITING")


async def clear(
    service: Service, request: Request, seen: object, caller: str, until: float
) -> None:
    """Do what has to be done first; what is wrong in the request itself is refused before that."""
    if not isinstance(request, (Publish, Connect)):
        return
    with service.store.read() as txn:
        first = obstacles(request, txn, seen)
        if first or isinstance(request, Connect):
            request.plan(service.view(txn, "", caller, before=first), seen)
    if not first and isinstance(request, Connect) and isinstance(seen, Fetched):
        first = await _leftovers(service, request, seen)
    for each in first:
        operation = await service.submit(each, caller=caller)
        await service.wait(operation.id, until - time.monotonic())


def obstacles(request: Request, txn: Transaction, seen: object) -> Sequence[Request]:
    """Return what has to be done before a request, as far as records tell."""
    if isinstance(request, Publish):
        return request.fences(txn)
    if isinstance(request, Connect) and isinstance(seen, Fetched):
        found = txn.get(Attachment, request.id)
        if found is not None and request.is_for(found) and found.epoch < seen.connection.epoch:
            # Its secrets are worth nothing any more.
            return [Disconnect(id=request.id, force=True, epoch=found.epoch)]
    return []


def actions(first: Sequence[Request], view: View) -> list[Action]:
    """Return the moves of what has to be done first."""
    return [action for request in first for action in request.plan(view, None).actions]


async def _leftovers(service: Service, request: Connect, seen: Fetched) -> Sequence[Request]:
    """Return what ends a session that no record knows."""
    with service.store.read() as txn:
        if txn.get(Attachment, request.id) is not None:
            return []
    question = partial(_find_leftovers, service.machine, request.id, seen.connection.disk)
    return await service.look(question)


def _find_leftovers(machine: Host, name: str, disk: Disk) -> Sequence[Request]:
    if not machine.iscsi.has_any_session(disk):
        return []
    users = machine.iscsi.users(disk)
    if users and not machine.iscsi.is_lost(disk):
        raise Busy(
            f"{name} is in use here by {', '.join(users)}, though no record knows of it: end that "
            "first",
            reason="IN_USE",
            volume=name,
            users=" ".join(users),
        )
    return [Clear(id=name, disk=disk, paths=tuple(each for each in users if each[0] == "/"))]


async def press(service: Service, request: Request, owner: Operation) -> None:
    """Do what a way down may do about the operation that has claimed its volume.

    Raises Busy when that cannot be taken back, and nobody said that it shall be left as it is.
    """
    if isinstance(request, Descent) and owner.kind in CLIMBS and owner.state in STOPPABLE:
        await service.cancel(owner.id)
    if owner.state != "NEEDS_REPAIR":
        return
    if isinstance(request, (Descent, Unpublish)) and (await service.retried(owner)).ended:
        return
    if isinstance(request, Descent) and request.force:
        await service.abandon(owner.id)
        return
    raise Busy(
        f"operation {owner.id} ({owner.title}) needs repair: zfsiloctl operation repair {owner.id}",
        reason="NEEDS_REPAIR",
        operation=owner.id,
    )
