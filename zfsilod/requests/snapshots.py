"""The requests of snapshots and of groups of them, on a storage host.

A snapshot's own name in ZFS comes from a uid: those of a group share it, since they are one cut.
The volume that it is of may lie in the trash by now: see origins.py.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.records import Dependent, Snapshot, SnapshotGroup, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_etag, check_fit, check_id, check_labels
from zfsilod.requests.clones import claim_of, home_of, need_snapshot
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.volumes import need_volume

if TYPE_CHECKING:
    from zfsilod.engine.steps.snapshot import SnapshotSet
    from zfsilod.model.record import Pairs
    from zfsilod.model.records import Action, Change
    from zfsilod.storage.store import Transaction

MAX_VOLUMES = 64  # in a group


class CreateSnapshot(Request[None]):
    """Take a snapshot of a volume."""

    kind = "snapshot"
    resource = ("snapshots", "id")
    id: str
    volume: str
    labels: Pairs = ()

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "snapshot id")
        volume = need_volume(view.txn, self.volume)
        found = view.txn.get(Snapshot, self.id)
        if found is not None:
            raise _taken(found, same=found.volume_uid == volume.uid)
        new = snapshot_of(volume, self.id, uuid.uuid4().hex, view).but(
            labels=check_labels(self.labels)
        )
        refs = (SnapshotRef(dataset=volume.dataset, uid=volume.uid),)
        marks = check_fit(plans.snapshot_marks([new], view.operation_id), self.id)
        return Plan(
            title=f"snapshot {self.volume} as {self.id}",
            claims=(f"snapshot/{self.id}", f"volume/{self.volume}"),
            actions=plans.up([plans.snapshot_set(new.uid, refs, marks)]),
            commit=(put(new), put(dependent(new))),
        )

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        txn = view.txn
        found, volume = txn.get(Snapshot, self.id), txn.get(Volume, self.volume)
        if found is None or volume is None or found.volume_uid != volume.uid:
            return None
        return plans.up(cuts(txn, found))


class DeleteSnapshot(Request[None]):
    """Give a snapshot up; what was made from it stays."""

    kind = "delete-snapshot"
    resource = ("snapshots", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        found = need_snapshot(view.txn, self.id)
        check_etag(self.etag, found.revision)
        if found.group:
            raise FailedPrecondition(
                f"{self.id} is a part of the group {found.group}: delete the group",
                reason="IN_GROUP",
                snapshot=self.id,
                group=found.group,
            )
        return Plan(
            title=f"delete the snapshot {self.id} of {found.volume}",
            claims=(f"snapshot/{self.id}", *homes(view.txn, found)),
            actions=plans.down(cuts(view.txn, found)),
            commit=gone(found),
        )


class CreateSnapshotGroup(Request[None]):
    """Take snapshots of several volumes at one moment."""

    kind = "snapshot-group"
    resource = ("snapshotGroups", "id")
    id: str
    volumes: tuple[str, ...]
    labels: Pairs = ()

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "group id")
        if not 1 <= len(self.volumes) <= MAX_VOLUMES or len(set(self.volumes)) < len(self.volumes):
            raise InvalidArgument(
                f"a group is of 1 to {MAX_VOLUMES} volumes, each named once", reason="BAD_GROUP"
            )
        volumes = [need_volume(view.txn, each) for each in self.volumes]
        if view.txn.get(SnapshotGroup, self.id):
            raise AlreadyExists(f"the group {self.id} exists already", group=self.id)
        uid, labels = uuid.uuid4().hex, check_labels(self.labels)
        members = [snapshot_of(v, new_ulid(), uid, view).but(labels=labels) for v in volumes]
        group = SnapshotGroup(
            id=self.id,
            uid=uid,
            snapshots=tuple(each.id for each in members),
            labels=labels,
            volumes=self.volumes,
            created_at=view.now,
        )
        refs = tuple(SnapshotRef(dataset=each.dataset, uid=each.uid) for each in volumes)
        marks = check_fit(plans.snapshot_marks(members, view.operation_id, self.id), self.id)
        return Plan(
            title=f"snapshot {', '.join(self.volumes)} as group {self.id}",
            claims=(f"snapshotgroup/{self.id}", *(f"volume/{each}" for each in self.volumes)),
            actions=plans.up([plans.snapshot_set(uid, refs, marks)]),
            commit=(
                put(group),
                *(put(each.but(group=self.id)) for each in members),
                *(put(dependent(each)) for each in members),
            ),
        )

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        txn = view.txn
        found = txn.get(SnapshotGroup, self.id)
        if found is None or found.volumes != self.volumes:
            return None
        members = members_of(txn, found)
        living = [txn.get(Volume, each) for each in self.volumes]
        if [each.volume_uid for each in members] != [each.uid if each else "" for each in living]:
            return None
        return plans.up(cuts(txn, *members))


class DeleteSnapshotGroup(Request[None]):
    """Give all snapshots of a group up."""

    kind = "delete-snapshot-group"
    resource = ("snapshotGroups", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        found = need_group(view.txn, self.id)
        check_etag(self.etag, found.revision)
        members = members_of(view.txn, found)
        return Plan(
            title=f"delete the snapshot group {self.id}",
            claims=(
                f"snapshotgroup/{self.id}",
                *(f"snapshot/{each.id}" for each in members),
                *dict.fromkeys(homes(view.txn, *members)),
            ),
            actions=plans.down(cuts(view.txn, *members)),
            commit=(drop(found), *(change for each in members for change in gone(each))),
        )


def snapshot_of(volume: Volume, snapshot_id: str, uid: str, view: View) -> Snapshot:
    """Return the record of a snapshot that is taken now."""
    return Snapshot(
        id=snapshot_id,
        uid=uid,
        volume=volume.id,
        volume_uid=volume.uid,
        size_bytes=volume.capacity_bytes,
        volblocksize=volume.volblocksize,
        mode=volume.mode,
        filesystem=volume.filesystem,
        created_at=view.now,
    )


def dependent(snapshot: Snapshot) -> Dependent:
    """Return the record that keeps a snapshot's volume from being destroyed."""
    name = f"snapshots/{snapshot.id}"
    return Dependent(id=f"{snapshot.volume_uid}/{name}", name=name)


def gone(snapshot: Snapshot) -> tuple[Change, ...]:
    """Return the changes that come with the end of a snapshot."""
    return (drop(snapshot), drop(dependent(snapshot)))


def cuts(txn: Transaction, *snapshots: Snapshot) -> list[SnapshotSet]:
    """Return the step of each snapshot; one whose volume nobody knows any more has none."""
    found = [(each, home_of(txn, each)) for each in snapshots]
    return [
        plans.snapshot_set(each.uid, (SnapshotRef(dataset=at.dataset, uid=at.uid, guid=each.guid),))
        for each, at in found
        if at is not None
    ]


def homes(txn: Transaction, *snapshots: Snapshot) -> tuple[str, ...]:
    """Return the claims on the zvols of snapshots."""
    return tuple(claim_of(txn, each) for each in snapshots)


def members_of(txn: Transaction, group: SnapshotGroup) -> list[Snapshot]:
    """Return the snapshots of a group, in its order."""
    found = (txn.get(Snapshot, each) for each in group.snapshots)
    return [each for each in found if each is not None]


def need_group(txn: Transaction, group_id: str) -> SnapshotGroup:
    """Return a group of snapshots, else raise NotFound."""
    found = txn.get(SnapshotGroup, check_id(group_id, "group id"))
    if found is None:
        raise NotFound(f"there is no snapshot group {group_id}", group=group_id)
    return found


def _taken(found: Snapshot, *, same: bool) -> AlreadyExists | FailedPrecondition:
    if same:
        return FailedPrecondition(
            f"the snapshot {found.id} is recorded, and not to be seen in the pool: it is not taken "
            "again, since it would not be the same",
            reason="LOST",
            snapshot=found.id,
        )
    return AlreadyExists(
        f"the snapshot {found.id} exists, of {found.volume}",
        snapshot=found.id,
        volume=found.volume,
    )
