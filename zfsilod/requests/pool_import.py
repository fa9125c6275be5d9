"""Requests that restore records from a pool: volumes in the trash, snapshots and their groups.

The zvols and snapshots carry what identifies them (plans.marks, plans.snapshot_marks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import AlreadyExists, NotFound
from zfsilod.model.record import pairs
from zfsilod.model.records import Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_id
from zfsilod.requests.adoption import (
    AdoptVolume,
    all_volumes,
    parse_filesystem_mark,
    parse_labels,
)
from zfsilod.requests.deletion import FOLDER
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.snapshots import dependent

if TYPE_CHECKING:
    from zfsilod.model.host_facts import ListedSnapshot
    from zfsilod.storage.transaction import Transaction

TRASH_S = 30 * 86400


class AdoptTrashed(AdoptVolume):
    """Create the record of a volume in the trash."""

    kind = "adopt-trashed"
    on_pool = False

    def check_new(self, txn: Transaction) -> None:
        """Raise AlreadyExists when the volume is recorded as deleted."""
        if txn.get(Trashed, f"{self.id}/{self.zvol.uid}"):
            raise AlreadyExists(
                f"{self.zvol.dataset} is recorded already, as the deleted volume {self.id}",
                volume=self.id,
            )

    def record(self, volume: Volume, view: View) -> Trashed:
        """Return the record of the deleted volume, which is purged after 30 days at the least."""
        return Trashed(
            id=f"{volume.id}/{volume.uid}",
            volume=volume,
            home=f"{volume.dataset.partition(f'/{FOLDER}/')[0]}/{volume.id}",
            deleted_at=view.now,
            purge_at=view.now + max(TRASH_S, view.settings.trash_retention_s),
            clock_trusted=view.clock_trusted,
        )


class AdoptSnapshots(Request[None]):
    """Create the records of a snapshot, or of a snapshot group, that exists in the pool."""

    kind = "adopt-snapshot"
    on_pool = False
    id: str
    refs: tuple[ListedSnapshot, ...]

    @property
    def is_group(self) -> bool:
        """Whether the snapshots were taken as a group."""
        return len(self.refs) > 1 or "members" in self._marks

    @property
    def subject(self) -> str:
        """The resource name of the snapshot or the group."""
        return f"{'snapshotGroups' if self.is_group else 'snapshots'}/{self.id}"

    @property
    def _marks(self) -> dict[str, str]:
        return dict(self.refs[0].marks)

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "snapshot id")
        members = self._members(view)
        commit = [change for one in members for change in (put(one), put(dependent(one)))]
        claims = [f"snapshot/{member.id}" for member in members]
        if self.is_group:
            group = SnapshotGroup(
                id=self.id,
                uid=members[0].uid,
                volumes=tuple(member.volume for member in members),
                snapshots=tuple(member.id for member in members),
                labels=members[0].labels,
                policy=members[0].policy,
                policy_uid=members[0].policy_uid,
                created_at=members[0].created_at,
            )
            commit.append(put(group))
            claims.append(f"snapshotgroup/{self.id}")
            if view.txn.get(SnapshotGroup, self.id):
                raise AlreadyExists(f"another snapshot group is named {self.id}", group=self.id)
        for member in members:
            if view.txn.get(Snapshot, member.id):
                raise AlreadyExists(f"another snapshot is named {member.id}", snapshot=member.id)
        return Plan(title=f"adopt {self.subject}", claims=tuple(claims), commit=tuple(commit))

    def _members(self, view: View) -> list[Snapshot]:
        """Return the records of the snapshots, in the order in which the group was created.

        An id that the marks do not have is new: an older zfsilo did not mark the members.
        """
        ids, filesystems = _by_uid(self._marks, "members"), _by_uid(self._marks, "filesystems")
        labels = pairs(parse_labels(self._marks.get("labels", "")))
        volumes = volumes_by_dataset(view.txn)
        members: dict[str, Snapshot] = {}
        for ref in self.refs:
            volume = volumes.get(ref.dataset)
            if volume is None:
                raise NotFound(
                    f"snapshot {self.id} cannot be adopted: its volume {ref.dataset} has no "
                    "record; adopt the volume first",
                )
            members[volume.uid] = Snapshot(
                id=ids.get(volume.uid) or (new_ulid() if self.is_group else self.id),
                uid=ref.cut,
                volume=volume.id,
                volume_uid=volume.uid,
                size_bytes=ref.size_bytes,
                volblocksize=volume.volblocksize,
                mode=volume.mode,
                filesystem=parse_filesystem_mark(filesystems.get(volume.uid, "")),
                labels=labels,
                group=self.id if self.is_group else "",
                guid=ref.guid,
                policy=self._marks.get("policy", ""),
                policy_uid=self._marks.get("policy_uid", ""),
                grid_version=self.refs[0].grid_version,
                peer=self._marks.get("peer", ""),
                created_at=ref.created_at,
            )
        order = [*ids, *members]
        return sorted(members.values(), key=lambda member: order.index(member.volume_uid))


def volumes_by_dataset(txn: Transaction) -> dict[str, Volume]:
    """Return every volume by its dataset, those in the trash included."""
    return {volume.dataset: volume for volume in all_volumes(txn)}


def _by_uid(marks: dict[str, str], name: str) -> dict[str, str]:
    """Return the values of a mark by volume uid, as plans.snapshot_marks wrote them."""
    parts = (part.partition(":") for part in marks.get(name, "").split(","))
    return {uid: value for uid, _colon, value in parts}
