"""Snapshots whose records outlived them: the pool was rewound, `zfs rollback -r`, `zfs destroy`.

Only a listing of its zvol proves that a snapshot is lost (dependents.py). Its record does not keep
the volume then; a caller can delete it, and `zfsiloctl adopt --all` does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.records import Snapshot, SnapshotGroup
from zfsilod.requests.context import INVENTORY_DEADLINE_S
from zfsilod.requests.request import drop, put
from zfsilod.requests.snapshots import record_removal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.policies import SnapshotPolicy
    from zfsilod.model.records import Change
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction


class PoolSnapshots(NamedTuple):
    """The snapshots in one listing of the pool that have the local marks of zfsilo."""

    txgs: dict[tuple[str, str], int]  # by uid of the set and guid of the snapshot
    versions: dict[str, int]  # the latest of the grids of each policy, by its uid

    def has(self, snapshot: Snapshot) -> bool:
        """Tell whether the pool has a snapshot. One without a recorded guid cannot be confirmed."""
        return (snapshot.uid, snapshot.guid) in self.txgs

    def is_newer_than(self, policy: SnapshotPolicy) -> bool:
        """Tell whether a policy took a snapshot under a later grid than the recorded one."""
        return bool(policy.uid) and self.versions.get(policy.uid, 0) > policy.grid_version

    def txg(self, snapshot: Snapshot) -> int:
        """Return the transaction group that made a snapshot: the order of those of one volume."""
        return self.txgs[snapshot.uid, snapshot.guid]


async def pool_snapshots(context: Context) -> PoolSnapshots:
    """List the pool. Raises when it cannot be listed completely."""
    question = partial(context.machine.snapshots.list_snapshots, context.settings.root)
    listed = await context.look(question, timeout_s=INVENTORY_DEADLINE_S)
    versions: dict[str, int] = {}
    for one in listed:
        uid = dict(one.marks).get("policy_uid", "")
        versions[uid] = max(versions.get(uid, 0), one.grid_version)
    return PoolSnapshots({(one.cut, one.guid): one.txg for one in listed}, versions)


def forgotten(txn: Transaction, lost: Iterable[Snapshot]) -> tuple[Change, ...]:
    """Return the changes that remove the records of lost snapshots, and those from their groups."""
    lost = list(lost)
    ids = {snapshot.id for snapshot in lost}
    changes = [change for snapshot in lost for change in record_removal(snapshot)]
    for group_id in dict.fromkeys(snapshot.group for snapshot in lost if snapshot.group):
        group = txn.get(SnapshotGroup, group_id)
        if group is None:
            continue
        left = [
            (volume, one)
            for volume, one in zip(group.volumes, group.snapshots, strict=True)
            if one not in ids
        ]
        smaller = group.but(
            volumes=tuple(volume for volume, _one in left),
            snapshots=tuple(one for _volume, one in left),
        )
        changes.append(put(smaller) if left else drop(group))
    return tuple(changes)


def claims_on(lost: Iterable[Snapshot]) -> tuple[str, ...]:
    """Return the claims of an operation that removes the records of lost snapshots."""
    lost = list(lost)
    groups = dict.fromkeys(snapshot.group for snapshot in lost if snapshot.group)
    return (
        *(f"snapshot/{snapshot.id}" for snapshot in lost),
        *(f"snapshotgroup/{group}" for group in groups),
    )
