"""Decides which snapshots of policies the grids drop. Pure.

The snapshots that one policy took of one volume are a line, and the grid is applied to each line
alone. A group is dropped as a whole: when the line of each of its volumes drops it.

A line counts only what the pool has: a snapshot that is lost (the pool was rewound to a checkpoint,
`zfs rollback -r`, `zfs destroy`) would otherwise be the newest of its period, and the grid would
drop one that still exists.

The order of a line is that in which the pool made the snapshots: one that was taken while the clock
was behind is not older than those before it. The pool knows the order of adopted snapshots, and of
those of older stores, too; whether the clock was right when they were taken is not recorded.

A line of a living volume always keeps something. That of a deleted volume ends: when the volume
would be purged, each rule keeps what it has for the length of all its periods from the deletion.
Else neither the snapshots nor the zvol would ever go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.policies import SnapshotPolicy
from zfsilod.model.records import Snapshot, Trashed
from zfsilod.model.retention_grid import kept_times, ordered_times, parse_grid
from zfsilod.requests.snapshots import DeleteSnapshot, DeleteSnapshotGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.model.retention_grid import GridRule
    from zfsilod.requests.lost_snapshots import PoolSnapshots
    from zfsilod.storage.transaction import Transaction


class Moment(NamedTuple):
    """A snapshot of a policy, or a group of one: what a grid keeps or drops as a whole."""

    policy: str
    id: str
    grouped: bool

    @property
    def request(self) -> DeleteSnapshot | DeleteSnapshotGroup:
        """The request that deletes it."""
        kind = DeleteSnapshotGroup if self.grouped else DeleteSnapshot
        return kind(id=self.id, pruned_by=self.policy)


class GridLine(NamedTuple):
    """What one policy took of one volume."""

    policy: SnapshotPolicy
    snapshots: list[Snapshot]
    deleted: Trashed | None  # the deletion of the volume

    def rules(self, now: int) -> list[GridRule]:
        """Return the rules that still keep something: of a deleted volume not all."""
        rules, deleted = parse_grid(self.policy.grid), self.deleted
        if deleted is None or not deleted.clock_trusted or now < deleted.purge_at:
            return list(rules)
        since = deleted.began_at or deleted.deleted_at
        return [rule for rule in rules if now < since + rule.span_s]

    def split(self, now: int, pool: PoolSnapshots | None) -> tuple[set[Moment], dict[Moment, int]]:
        """Return what the grid keeps of this line, and what it drops with the times.

        `pool`: what the line may count; None: every record.
        """
        counted = self.snapshots
        times = [one.created_at for one in counted]
        if pool is not None:
            counted = sorted(filter(pool.has, self.snapshots), key=pool.txg)
            times = ordered_times([one.created_at for one in counted], now)
        at = dict(zip(map(moment_of, counted), times, strict=True))
        kept = kept_times(at.values(), self.rules(now), now)
        return (
            {moment for moment, time in at.items() if time in kept},
            {moment: time for moment, time in at.items() if time not in kept},
        )


def moment_of(snapshot: Snapshot) -> Moment:
    """Return the moment that a snapshot of a policy is, or is a part of."""
    return Moment(snapshot.policy, snapshot.group or snapshot.id, grouped=bool(snapshot.group))


def lines_of(txn: Transaction) -> list[GridLine]:
    """Return the lines of all policies."""
    policies = {policy.id: policy for policy in txn.scan(SnapshotPolicy)}
    deleted = {trashed.volume.uid: trashed for trashed in txn.scan(Trashed)} if policies else {}
    lines: dict[tuple[str, str], GridLine] = {}
    for snapshot in txn.scan(Snapshot) if policies else ():
        policy = policies.get(snapshot.policy)
        if policy is not None and policy.uid == snapshot.policy_uid:
            key = (policy.id, snapshot.volume_uid)
            new = GridLine(policy, [], deleted.get(snapshot.volume_uid))
            lines.setdefault(key, new).snapshots.append(snapshot)
    return list(lines.values())


def candidates(lines: Iterable[GridLine], now: int) -> set[Moment]:
    """Return what any line would drop if the pool had all that is recorded.

    Nothing else is dropped: a line that counts less keeps no less of what it counts.
    """
    return {moment for line in lines for moment in line.split(now, None)[1]}


def dropped_moments(lines: Iterable[GridLine], now: int, pool: PoolSnapshots) -> list[Moment]:
    """Return what every line of its volumes drops, oldest first."""
    kept: set[Moment] = set()
    dropped: dict[Moment, int] = {}
    for line in lines:
        own_kept, own_dropped = line.split(now, pool)
        kept |= own_kept
        dropped |= own_dropped
    return sorted(dropped.keys() - kept, key=lambda moment: (dropped[moment], moment))
