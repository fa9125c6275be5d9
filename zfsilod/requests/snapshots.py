"""Requests on snapshots and snapshot groups of this server: create and delete.

The name of a snapshot in ZFS is made of a uid. The members of a group share one uid, as they are
taken at the same moment. Snapshots of a volume in the trash stay usable: see clones.py.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.policies import SnapshotPolicy
from zfsilod.model.records import Dependent, Snapshot, SnapshotGroup, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_etag, check_fit, check_id, check_labels
from zfsilod.requests.clones import need_snapshot, volume_of, zvol_claim
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.volumes import need_primary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.engine.steps.snapshot import SnapshotSet
    from zfsilod.model.record import Pairs
    from zfsilod.model.records import Action, Change
    from zfsilod.storage.transaction import Transaction

MAX_VOLUMES = 64  # in a group
MAX_MEMBER_ID = 64  # a mark of a zvol has the ids of all members; a CSI handle has 128 bytes


class CreateSnapshot(Request[None]):
    """Take a snapshot of a volume."""

    kind = "snapshot"
    resource = ("snapshots", "id")
    id: str
    volume: str
    labels: Pairs = ()
    policy: str = ""  # that takes it
    peer: str = ""  # that it is taken for

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        txn = view.txn
        snapshot, volume = txn.get(Snapshot, self.id), txn.get(Volume, self.volume)
        if snapshot is None or volume is None or snapshot.volume_uid != volume.uid:
            return None
        return plans.up(snapshot_steps(txn, snapshot))

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "snapshot id")
        volume = need_primary(view.txn, self.volume)
        self._check_new(view.txn, volume)
        snapshot = snapshot_of(volume, self.id, uuid.uuid4().hex, view).but(
            labels=check_labels(self.labels),
            peer=self.peer,
            grid_version=_grid_version(view.txn, self.policy),
            **taken_by(view.txn, self.policy),
        )
        refs = (SnapshotRef(dataset=volume.dataset, uid=volume.uid),)
        marks = check_fit(plans.snapshot_marks([snapshot], view.operation_id), self.id)
        return Plan(
            title=f"snapshot {self.volume} as {self.id}",
            claims=(f"snapshot/{self.id}", f"volume/{self.volume}"),
            actions=plans.up([plans.snapshot_set(snapshot.uid, refs, marks)]),
            commit=(put(snapshot), put(dependent(snapshot))),
        )

    def _check_new(self, txn: Transaction, volume: Volume) -> None:
        existing = txn.get(Snapshot, self.id)
        if existing is None:
            return
        if existing.volume_uid == volume.uid:
            raise FailedPrecondition(
                f"snapshot {self.id} is missing from the pool; it is not taken again because the "
                "new one would have other content",
                reason="LOST",
                snapshot=self.id,
            )
        raise AlreadyExists(
            f"snapshot {self.id} exists, of volume {existing.volume}; use another snapshot id",
            snapshot=self.id,
            volume=existing.volume,
        )


class DeleteSnapshot(Request[None]):
    """Delete a snapshot. Clones of it stay: ZFS destroys it after the last of them.

    `pruned_by`: the policy whose grid does not keep it: refused when that has not taken it, or
    while it has a clone or a hold.
    """

    descends = True
    kind = "delete-snapshot"
    resource = ("snapshots", "id")
    id: str
    etag: str = ""
    pruned_by: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        snapshot = need_snapshot(view.txn, self.id)
        check_etag(self.etag, snapshot.revision)
        if snapshot.group:
            raise FailedPrecondition(
                f"{self.id} is a part of the group {snapshot.group}: delete the group",
                reason="IN_GROUP",
                snapshot=self.id,
                group=snapshot.group,
            )
        check_policy(view.txn, self.pruned_by, snapshot)
        return Plan(
            title=f"delete snapshot {self.id} of {snapshot.volume}",
            claims=(f"snapshot/{self.id}", zvol_claim(view.txn, snapshot)),
            actions=removal_actions(view.txn, [snapshot], unused=bool(self.pruned_by)),
            commit=record_removal(snapshot),
        )


class CreateSnapshotGroup(Request[None]):
    """Take snapshots of several volumes at one moment."""

    kind = "snapshot-group"
    resource = ("snapshotGroups", "id")
    id: str
    volumes: tuple[str, ...]
    labels: Pairs = ()
    policy: str = ""  # that takes it

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        txn = view.txn
        group = txn.get(SnapshotGroup, self.id)
        if group is None or group.volumes != self.volumes:
            return None
        members = members_of(txn, group)
        volumes = [txn.get(Volume, volume_id) for volume_id in self.volumes]
        uids = [volume.uid if volume else "" for volume in volumes]
        if [member.volume_uid for member in members] != uids:
            return None
        return plans.up(snapshot_steps(txn, *members))

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "group id")
        if not 1 <= len(self.volumes) <= MAX_VOLUMES or len(set(self.volumes)) < len(self.volumes):
            raise InvalidArgument(
                f"invalid volumes of group {self.id}: name 1 to {MAX_VOLUMES} volumes, each once",
                reason="BAD_GROUP",
            )
        volumes = [need_primary(view.txn, volume_id) for volume_id in self.volumes]
        if view.txn.get(SnapshotGroup, self.id):
            raise AlreadyExists(
                f"snapshot group {self.id} exists, with other volumes or snapshots; use another "
                "group id",
                group=self.id,
            )
        uid, labels = uuid.uuid4().hex, check_labels(self.labels)
        taker, version = taken_by(view.txn, self.policy), _grid_version(view.txn, self.policy)
        members = [
            snapshot_of(volume, member_id, uid, view).but(
                labels=labels, grid_version=version, **taker
            )
            for volume, member_id in zip(volumes, self._member_ids(view.txn), strict=True)
        ]
        group = SnapshotGroup(
            id=self.id,
            uid=uid,
            snapshots=tuple(member.id for member in members),
            labels=labels,
            volumes=self.volumes,
            created_at=view.now,
        ).but(**taker)
        refs = tuple(SnapshotRef(dataset=volume.dataset, uid=volume.uid) for volume in volumes)
        marks = check_fit(plans.snapshot_marks(members, view.operation_id, self.id), self.id)
        return Plan(
            title=f"snapshot {', '.join(self.volumes)} as group {self.id}",
            claims=(
                f"snapshotgroup/{self.id}",
                *(f"snapshot/{member.id}" for member in members),
                *(f"volume/{volume_id}" for volume_id in self.volumes),
            ),
            actions=plans.up([plans.snapshot_set(uid, refs, marks)]),
            commit=(
                put(group),
                *(put(member.but(group=self.id)) for member in members),
                *(put(dependent(member)) for member in members),
            ),
        )

    def _member_ids(self, txn: Transaction) -> list[str]:
        """Return an id for each volume: GROUP-VOLUME, or ULIDs when one is taken or too long."""
        ids = [f"{self.id}-{volume_id}" for volume_id in self.volumes]
        usable = all(len(one) <= MAX_MEMBER_ID and not txn.get(Snapshot, one) for one in ids)
        return ids if usable else [new_ulid() for _volume in self.volumes]


class DeleteSnapshotGroup(Request[None]):
    """Delete all snapshots of a group. `pruned_by`: see DeleteSnapshot."""

    descends = True
    kind = "delete-snapshot-group"
    resource = ("snapshotGroups", "id")
    id: str
    etag: str = ""
    pruned_by: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        group = need_group(view.txn, self.id)
        check_etag(self.etag, group.revision)
        check_policy(view.txn, self.pruned_by, group)
        members = members_of(view.txn, group)
        return Plan(
            title=f"delete snapshot group {self.id}",
            claims=(
                f"snapshotgroup/{self.id}",
                *(f"snapshot/{member.id}" for member in members),
                *dict.fromkeys(zvol_claim(view.txn, member) for member in members),
            ),
            actions=removal_actions(view.txn, members, unused=bool(self.pruned_by)),
            commit=(
                drop(group),
                *(change for member in members for change in record_removal(member)),
            ),
        )


def snapshot_of(volume: Volume, snapshot_id: str, uid: str, view: View) -> Snapshot:
    """Return the record of a new snapshot, of a volume as it is recorded now."""
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


def record_removal(snapshot: Snapshot) -> tuple[Change, ...]:
    """Return the changes that remove the records of a snapshot."""
    return (drop(snapshot), drop(dependent(snapshot)))


def snapshot_steps(txn: Transaction, *snapshots: Snapshot) -> list[SnapshotSet]:
    """Return the step of each snapshot; none for a snapshot whose volume has no record."""
    steps = []
    for snapshot in snapshots:
        volume = volume_of(txn, snapshot)
        if volume is not None:
            ref = SnapshotRef(dataset=volume.dataset, uid=volume.uid, guid=snapshot.guid)
            steps.append(plans.snapshot_set(snapshot.uid, (ref,)))
    return steps


def removal_actions(
    txn: Transaction, snapshots: Sequence[Snapshot], *, unused: bool
) -> tuple[Action, ...]:
    """Return the actions that delete snapshots; `unused`: only when nothing uses one of them."""
    steps = snapshot_steps(txn, *snapshots)
    guards = [plans.snapshots_unused(step.uid, step.refs) for step in steps] if unused else []
    return (*plans.up(guards), *plans.down(steps))


def taken_by(txn: Transaction, policy_id: str) -> dict[str, str]:
    """Return the fields of a snapshot, or of a group, that name the policy that takes it."""
    policy = txn.get(SnapshotPolicy, policy_id) if policy_id else None
    return {"policy": policy_id, "policy_uid": policy.uid if policy is not None else ""}


def _grid_version(txn: Transaction, policy_id: str) -> int:
    policy = txn.get(SnapshotPolicy, policy_id) if policy_id else None
    return policy.grid_version if policy is not None else 0


def check_policy(txn: Transaction, pruned_by: str, taken: Snapshot | SnapshotGroup) -> None:
    """Raise FailedPrecondition when a policy would delete what it has not taken; "": a caller.

    A former policy of the same name is another one.
    """
    taker = {"policy": taken.policy, "policy_uid": taken.policy_uid}
    if pruned_by and taken_by(txn, pruned_by) != taker:
        raise FailedPrecondition(
            f"{taken.id} was not taken by the policy {pruned_by}", reason="NOT_OF_POLICY"
        )


def members_of(txn: Transaction, group: SnapshotGroup) -> list[Snapshot]:
    """Return the snapshots of a group, in its order."""
    members = (txn.get(Snapshot, snapshot_id) for snapshot_id in group.snapshots)
    return [member for member in members if member is not None]


def need_group(txn: Transaction, group_id: str) -> SnapshotGroup:
    """Return a snapshot group. Raises NotFound."""
    group = txn.get(SnapshotGroup, check_id(group_id, "group id"))
    if group is None:
        raise NotFound(f"there is no snapshot group {group_id}", group=group_id)
    return group
