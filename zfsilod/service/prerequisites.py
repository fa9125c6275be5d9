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
    from zfsilod.model.records import Disk, Move, Operation
    from zfsilod.requests.request import Verb, World
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

CLIMBS = ("connect", "stage", "mount", "grow")
STOPPABLE = ("RUNNING", "WAITING")


async def clear(service: Service, verb: Verb, seen: object, caller: str, until: float) -> None:
    """Do what has to be done first; what is wrong in the request itself is refused before that."""
    if not isinstance(verb, (Publish, Connect)):
        return
    with service.store.read() as txn:
        first = obstacles(verb, txn, seen)
        if first or isinstance(verb, Connect):
            verb.plan(service.world(txn, "", caller, before=first), seen)
    if not first and isinstance(verb, Connect) and isinstance(seen, Fetched):
        first = await _leftovers(service, verb, seen)
    for each in first:
        operation = await service.begin(each, caller=caller)
        await service.wait(operation.id, until - time.monotonic())


def obstacles(verb: Verb, txn: Transaction, seen: object) -> Sequence[Verb]:
    """Return what has to be done before a request, as far as records tell."""
    if isinstance(verb, Publish):
        return verb.fences(txn)
    if isinstance(verb, Connect) and isinstance(seen, Fetched):
        found = txn.get(Attachment, verb.id)
        if found is not None and verb.is_about(found) and found.epoch < seen.connection.epoch:
            # Its secrets are worth nothing any more.
            return [Disconnect(id=verb.id, force=True, epoch=found.epoch)]
    return []


def moves(first: Sequence[Verb], world: World) -> list[Move]:
    """Return the moves of what has to be done first."""
    return [move for verb in first for move in verb.plan(world, None).moves]


async def _leftovers(service: Service, verb: Connect, seen: Fetched) -> Sequence[Verb]:
    """Return what ends a session that no record knows."""
    with service.store.read() as txn:
        if txn.get(Attachment, verb.id) is not None:
            return []
    question = partial(_find_leftovers, service.machine, verb.id, seen.connection.disk)
    return await service.look(question)


def _find_leftovers(machine: Host, name: str, disk: Disk) -> Sequence[Verb]:
    if not machine.iscsi.is_known(disk):
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


async def press(service: Service, verb: Verb, owner: Operation) -> None:
    """Do what a way down may do about the operation that has claimed its volume.

    Raises Busy when that cannot be taken back, and nobody said that it shall be left as it is.
    """
    if isinstance(verb, Descent) and owner.kind in CLIMBS and owner.state in STOPPABLE:
        await service.cancel(owner.id)
    if owner.state != "NEEDS_REPAIR":
        return
    if isinstance(verb, (Descent, Unpublish)) and (await service.retried(owner)).ended:
        return
    if isinstance(verb, Descent) and verb.force:
        await service.abandon(owner.id)
        return
    raise Busy(
        f"operation {owner.id} ({owner.title}) needs repair: zfsiloctl operation repair {owner.id}",
        reason="NEEDS_REPAIR",
        operation=owner.id,
    )
