"""Requests that restore records from a pool: volumes in the trash, snapshots and their groups.

The zvols and snapshots carry what identifies them (plans.marks, plans.snapshot_marks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import AlreadyExists, NotFound
from zfsilod.model.host_facts import Filesystem, ListedSnapshot
from zfsilod.model.record import pairs
from zfsilod.model.records import Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_id
from zfsilod.requests.adoption import AdoptVolume, filesystem, mapping
from zfsilod.requests.deletion import FOLDER
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.snapshots import dependent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.records import Change
    from zfsilod.storage.store import Transaction

TRASH_S = 30 * 86400


class AdoptTrashed(AdoptVolume):
    """Make a record of a volume of ours that is in the trash."""

    kind = "adopt-trashed"

    def _check_new(self, view: View) -> None:
        if view.txn.get(Trashed, f"{self.id}/{self.zvol.uid}"):
            raise AlreadyExists(f"{self.zvol.dataset} is known, as {self.id} in the trash")

    def _records(self, volume: Volume, view: View) -> tuple[Change, ...]:
        stays_s = max(TRASH_S, view.settings.trash_retention_s)
        home = f"{volume.dataset.partition(f'/{FOLDER}/')[0]}/{volume.id}"
        trashed = Trashed(
            id=f"{volume.id}/{volume.uid}",
            volume=volume,
            home=home,
            deleted_at=view.now,
            purge_at=view.now + stays_s,
        )
        return (put(trashed),)


class AdoptSnapshots(Request[None]):
    """Make the records of a snapshot, or of a group of them, that no record knows."""

    kind = "adopt-snapshot"
    id: str
    refs: tuple[ListedSnapshot, ...]

    @property
    def is_group(self) -> bool:
        """Whether it was taken as a group; one of several volumes was."""
        return len(self.refs) > 1 or "members" in self._marks

    @property
    def subject(self) -> str:
        """The resource name of what it is about."""
        return f"{'snapshotGroups' if self.is_group else 'snapshots'}/{self.id}"

    @property
    def _marks(self) -> dict[str, str]:
        return dict(self.refs[0].marks)

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "snapshot id")
        members = self._members(view)
        commit = [change for each in members for change in (put(each), put(dependent(each)))]
        claims = [f"snapshot/{each.id}" for each in members]
        if self.is_group:
            commit.append(put(_group(self.id, members)))
            claims.append(f"snapshotgroup/{self.id}")
            if view.txn.get(SnapshotGroup, self.id):
                raise AlreadyExists(f"there is another group {self.id}", group=self.id)
        for each in members:
            if view.txn.get(Snapshot, each.id):
                raise AlreadyExists(f"there is another snapshot {each.id}", snapshot=each.id)
        return Plan(title=f"adopt {self.subject}", claims=tuple(claims), commit=tuple(commit))

    def _members(self, view: View) -> list[Snapshot]:
        ids, filesystems = _by_uid(self._marks, "members"), _by_uid(self._marks, "filesystems")
        homes, found = volumes_by_dataset(view.txn), {}
        for snapshot_ref in self.refs:
            home = homes.get(snapshot_ref.dataset)
            if home is None:
                raise NotFound(f"its volume {snapshot_ref.dataset} is not known here")
            own_id = ids.get(home.uid) or (new_ulid() if self.is_group else self.id)
            kept = filesystem(filesystems.get(home.uid, ""))
            found[home.uid] = self._snapshot(snapshot_ref, home).but(id=own_id, filesystem=kept)
        order = [*ids, *found]
        return sorted(found.values(), key=lambda each: order.index(each.volume_uid))

    def _snapshot(self, snapshot_ref: ListedSnapshot, home: Volume) -> Snapshot:
        return Snapshot(
            id=self.id,
            uid=snapshot_ref.cut,
            volume=home.id,
            volume_uid=home.uid,
            size_bytes=snapshot_ref.size_bytes,
            volblocksize=home.volblocksize,
            mode=home.mode,
            filesystem=Filesystem(),
            labels=pairs(mapping(self._marks.get("labels", ""))),
            group=self.id if self.is_group else "",
            guid=snapshot_ref.guid,
            created_at=snapshot_ref.created_at,
        )


def _group(group_id: str, members: Sequence[Snapshot]) -> SnapshotGroup:
    first = members[0]
    return SnapshotGroup(
        id=group_id,
        uid=first.uid,
        volumes=tuple(each.volume for each in members),
        snapshots=tuple(each.id for each in members),
        labels=first.labels,
        created_at=first.created_at,
    )


def volumes_by_dataset(txn: Transaction) -> dict[str, Volume]:
    """Return every volume by its dataset, those in the trash too."""
    known = (*txn.scan(Volume), *(each.volume for each in txn.scan(Trashed)))
    return {each.dataset: each for each in known}


def _by_uid(marks: dict[str, str], name: str) -> dict[str, str]:
    """Undo plan.cut_marks: what is said there of each volume."""
    parts = (each.partition(":") for each in marks.get(name, "").split(","))
    return {uid: value for uid, _colon, value in parts}
