"""Binds the store to its machine, and compares it with machine and pool."""

from __future__ import annotations

import logging
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine.steps.ownership import compare_pool
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.ownership import (
    IDENTITY,
    PoolClaim,
    StoreIdentity,
    judge_machine,
    unknown_pool,
)
from zfsilod.model.records import Attachment, Issued, PendingRelease, Publication, Token, Volume
from zfsilod.requests.ownership import PROBE_S

if TYPE_CHECKING:
    from zfsilod.model.ownership import Hold
    from zfsilod.requests.context import Context
    from zfsilod.service.context import ServiceContext
    from zfsilod.storage.transaction import Transaction

log = logging.getLogger(__name__)


async def compare(context: Context) -> None:
    """Compare the store with the machine and the pool."""
    ownership = context.ownership
    before = ownership.holds
    machine = context.machine
    present = await context.look(machine.machine_id, PROBE_S)
    root = context.settings.root
    with context.read() as txn:
        identity = txn.get(StoreIdentity, IDENTITY)
    if identity is None or identity.root != root:
        identity = await context.write(partial(_bind, present, root))
    other = judge_machine(identity, present)
    ownership.hold(other, ownership.pool if other else await _compare_pool(context))
    ownership.compared_at = time.monotonic()
    for hold in ownership.holds:
        if hold.reason not in (old.reason for old in before):
            log.error("%s: %s", hold.sentence, hold.command)
    if before and not ownership.holds:
        log.info("store, machine and pool belong together again")
        ownership.lifted()


async def compare_unknown(context: ServiceContext) -> None:
    """Compare again while the owner of the pool is unknown, once for all callers that wait."""
    ownership, since = context.ownership, time.monotonic()
    if not ownership.is_pool_unknown:
        return
    async with context.comparing:
        if ownership.is_pool_unknown and ownership.compared_at < since:
            await compare(context)


async def _compare_pool(context: Context) -> Hold | None:
    settings = context.settings
    if not settings.root:
        return None
    compare = partial(
        compare_pool,
        context.read,
        context.machine.zfs,
        settings.root,
        host=settings.host_id,
    )
    try:
        return await context.look(compare, PROBE_S)
    except ZfsiloError as error:  # it did not answer in time
        return unknown_pool(settings.root, error)


def _bind(machine: str, root: str, txn: Transaction) -> StoreIdentity:
    """Return the identity of the store, made at its first start, with the present root."""
    identity = txn.get(StoreIdentity, IDENTITY)
    if identity is None:
        identity = StoreIdentity(id=IDENTITY, store_id=uuid.uuid4().hex, machine=machine)
    return txn.put(identity.but(root=root))


async def bind_machine(context: Context, *, cloned: bool, validate_only: bool = False) -> None:
    """Bind the store to this machine. A clone forgets what belongs to the other machine.

    A clone gets a store id of its own, so a pool that was cloned with it is that of another store.
    """
    machine = await context.look(context.machine.machine_id)
    if validate_only:
        return

    def change(txn: Transaction) -> None:
        identity = txn.get(StoreIdentity, IDENTITY)
        assert identity is not None, "the daemon makes the identity at its start"
        if identity.machine == machine:
            return  # it was done already
        if cloned:
            _forget(txn)
            identity = identity.but(store_id=uuid.uuid4().hex)
        txn.put(identity.but(machine=machine))

    await context.write(change)
    await compare(context)


def _forget(txn: Transaction) -> None:
    """Drop what the other machine does: its operations, attachments, publications, identities."""
    for operation in list(txn.live()):
        txn.finish(operation.but(revert=()), "ABANDONED")
    secrets: list[Attachment | Publication] = [*txn.scan(Attachment), *txn.scan(Publication)]
    for owner in secrets:
        txn.drop(owner.bucket(), owner.key)
        txn.drop("secret", owner.secret)
    for kind in (PendingRelease, PoolClaim, Issued, Token):
        for record in list(txn.scan(kind)):
            txn.drop(record.bucket(), record.key)
    for volume in list(txn.scan(Volume)):
        if volume.state == "PUBLISHED":
            txn.put(volume.but(state="CREATED"))
