"""Restores the records of a whole pool, after a lost store or a move of the pool to another host.

Facts that only the lost store had are not restored; the result names them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.model.errors import FailedPrecondition, ZfsiloError, some_of
from zfsilod.model.records import Publication, Snapshot, Volume
from zfsilod.requests.adoption import AdoptVolume
from zfsilod.requests.clones import volume_of
from zfsilod.requests.context import INVENTORY_DEADLINE_S
from zfsilod.requests.dependents import MAX_NAMED, is_lost, own_dependents
from zfsilod.requests.lost_snapshots import claims_on, forgotten, pool_snapshots
from zfsilod.requests.ownership import ClaimPool
from zfsilod.requests.pool_import import AdoptSnapshots, AdoptTrashed
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.volumes import need_root
from zfsilod.service.ownership import compare
from zfsilod.service.pool_scan import unknown_snapshots, unknown_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.identity import Caller
    from zfsilod.model.ownership import Hold
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Request
    from zfsilod.service.ports import Submitter
    from zfsilod.storage.transaction import Transaction

ADOPT_DEADLINE_S = 60.0
PUBLICATIONS_UNKNOWN = (
    "publications and hosts are not stored in the pool: let every client join again, or add it, "
    "and publish its volumes again; `zfsiloctl orphan list` shows what is still exported"
)
DELETIONS_UNKNOWN = (
    "the times of deletions are not stored in the pool: volumes in the trash stay for 30 days"
)
REVOCATIONS_UNKNOWN = (
    "hosts, tokens and revocations are not stored in the pool: repeat the revocations that were "
    "made after the backup"
)
KEYS_UNKNOWN = (
    "zvols carry their keys sealed by the key of the former store, which this host does not have: "
    "load each encrypted volume with its recovery key (zfs load-key), then run `zfsiloctl volume "
    "rotate-key` for it"
)
WITHDRAWN = (
    "the pool changed without this store, so the publications of these volumes were withdrawn; "
    "publish them again: {}"
)
SNAPSHOTS_LOST = "the pool does not have these snapshots any more, so their records end: {}"
MEMBERS_UNKNOWN = (
    "an older zfsilo did not mark the members of snapshot groups {}: they have new ids"
)


class PoolImport(NamedTuple):
    """The result: adopted requests, by resource name why the others failed, and unknown facts."""

    adopted: list[Request[Any]]
    complaints: dict[str, str]
    unknown: list[str]


async def adopt_all(
    context: Context,
    submitter: Submitter,
    caller: Caller,
    *,
    take_over: bool = False,
    validate_only: bool = False,
) -> PoolImport:
    """Adopt everything below the root that has marks of zfsilo and no record.

    Then claim a pool that is held; `take_over`: also from another store.
    """
    root = need_root(context.settings)
    await compare(context)
    context.ownership.check_machine()
    hold, claim = context.ownership.pool, ClaimPool(root=root, adopted=True, take_over=take_over)
    if hold is not None and not claim.allows(hold):
        raise hold.error()
    if hold is not None and not validate_only:
        await submitter.abandon_held()
    result = PoolImport([], {}, [])
    volumes = await unknown_volumes(context)
    if validate_only:
        await _plan(submitter, caller, volumes, result)
    else:
        await _adopt(submitter, caller, volumes, result)
    snapshots, nameless = await unknown_snapshots(context)
    result.complaints.update(nameless)
    if validate_only:
        result.adopted.extend(snapshots)  # their plans need the records of the volumes
    else:
        await _adopt(submitter, caller, snapshots, result)
    lost = await _forget_lost(context, validate_only=validate_only)
    if lost:
        result.unknown.append(SNAPSHOTS_LOST.format(some_of(lost, MAX_NAMED)))
    result.unknown.extend(_unknown(result.adopted))
    if hold is not None and not validate_only:
        await _claim(context, submitter, caller, claim, hold, result)
    try:
        keyless = await context.look(
            partial(_lost_keys, context.machine, result.adopted), INVENTORY_DEADLINE_S
        )
    except ZfsiloError:  # a key that cannot be looked at is a condition of its volume soon
        keyless = False
    if keyless:
        result.unknown.append(KEYS_UNKNOWN)
    return result


async def _forget_lost(context: Context, *, validate_only: bool) -> list[str]:
    """Remove the records of snapshots that the pool has lost; return their ids.

    They are read before the pool is listed: a snapshot is recorded after it was taken.
    """
    with context.read() as txn:
        recorded = list(txn.scan(Snapshot))
    pool = await pool_snapshots(context) if recorded else None
    missing = [snapshot for snapshot in recorded if pool is not None and not pool.has(snapshot)]
    with context.read() as txn:
        volumes = {one.volume_uid: volume_of(txn, one) for one in missing}
    lost = await context.look(
        partial(_find_lost, context.machine, missing, volumes), INVENTORY_DEADLINE_S
    )
    if validate_only or not lost:
        return [snapshot.id for snapshot in lost]
    return await context.write(partial(_forget, lost))


def _find_lost(
    machine: HostAdapters, missing: list[Snapshot], volumes: dict[str, Volume | None]
) -> list[Snapshot]:
    """Return those of the missing snapshots that a listing of their zvol proves to be lost."""
    listed = {uid: own_dependents(machine, volume) for uid, volume in volumes.items() if volume}
    return [
        snapshot
        for snapshot in missing
        if (volume := volumes[snapshot.volume_uid]) is not None
        and is_lost(snapshot, volume, listed[volume.uid])
    ]


def _forget(lost: list[Snapshot], txn: Transaction) -> list[str]:
    """Remove records that no operation works on, and that are as they were."""
    still = [
        snapshot
        for snapshot in lost
        if txn.get(Snapshot, snapshot.id) == snapshot
        and not any(txn.claimant(claim) for claim in claims_on([snapshot]))
    ]
    for change in forgotten(txn, still):
        if change.record is None:
            txn.drop(change.bucket, change.key)
        else:
            txn.put(change.record)
    return [snapshot.id for snapshot in still]


async def _claim(
    context: Context,
    submitter: Submitter,
    caller: Caller,
    claim: ClaimPool,
    hold: Hold,
    result: PoolImport,
) -> None:
    """Claim a pool: what another store, or an older pool, knew is recorded now."""
    if hold.reason == "POOL_NEWER":
        result.unknown.append(REVOCATIONS_UNKNOWN)
    else:
        await _withdraw(context, submitter, caller, result)
    try:
        operation = await submitter.submit(claim, caller=caller)
    except FailedPrecondition as error:
        if error.reason != "PUBLISHED":
            raise
        result.complaints[claim.subject] = error.message  # the hold stays
        return
    await submitter.wait(operation.id, ADOPT_DEADLINE_S)
    context.ownership.claimed.add(claim.root)
    await compare(context)


async def _plan(
    submitter: Submitter, caller: Caller, requests: Sequence[Request[Any]], result: PoolImport
) -> None:
    """Fill the result with what would be adopted."""
    for request in requests:
        try:
            await submitter.plan(request, caller=caller)
        except ZfsiloError as error:
            result.complaints[request.subject] = error.message
        else:
            result.adopted.append(request)


async def _withdraw(
    context: Context, submitter: Submitter, caller: Caller, result: PoolImport
) -> None:
    """Withdraw all publications of a pool that was rolled back, or was used by another store.

    Their clients remember blocks that the pool may not have any more.
    """
    with context.read() as txn:
        names = sorted({publication.volume for publication in txn.scan(Publication)})
    requests = [Unpublish(volume=name, fence=True, grace_s=0, held=True) for name in names]
    ended = PoolImport([], result.complaints, [])
    await _adopt(submitter, caller, requests, ended)
    if ended.adopted:
        volumes = ", ".join(request.subject for request in ended.adopted)
        result.unknown.append(WITHDRAWN.format(volumes))


async def _adopt(
    submitter: Submitter, caller: Caller, requests: Sequence[Request[Any]], result: PoolImport
) -> None:
    for request in requests:
        try:
            operation = await submitter.submit(request, caller=caller)
            await submitter.wait(operation.id, ADOPT_DEADLINE_S)
        except ZfsiloError as error:
            result.complaints[request.subject] = error.message
        else:
            result.adopted.append(request)


def _lost_keys(machine: HostAdapters, adopted: Sequence[Request[Any]]) -> bool:
    """Tell whether neither the store nor its zvol has the key of an adopted volume."""
    zvols = [request.zvol for request in adopted if isinstance(request, AdoptVolume)]
    keys = {zvol.dataset: dict(zvol.marks).get("key", "") for zvol in zvols}
    encrypted = {dataset: uid for dataset, uid in keys.items() if uid}
    if not encrypted:
        return False
    surveyed = machine.surveyed(tuple(encrypted))
    for dataset, uid in encrypted.items():
        try:
            machine.key_store.disk_keys(uid, surveyed.keys.find_sealed(dataset))
        except FailedPrecondition as error:
            if error.reason == "KEY_LOST":
                return True
    return False


def _unknown(adopted: Sequence[Request[Any]]) -> Iterator[str]:
    """Yield a sentence for each kind of fact that the pool does not store."""
    if any(isinstance(request, AdoptVolume) for request in adopted):
        yield PUBLICATIONS_UNKNOWN
    if any(isinstance(request, AdoptTrashed) for request in adopted):
        yield DELETIONS_UNKNOWN
    groups = [one for one in adopted if isinstance(one, AdoptSnapshots) and one.is_group]
    unmarked = [group.id for group in groups if "members" not in dict(group.refs[0].marks)]
    if unmarked:
        yield MEMBERS_UNKNOWN.format(", ".join(unmarked))
