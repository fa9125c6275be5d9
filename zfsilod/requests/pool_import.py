"""Rebuild: the records of a whole pool, after the store was lost or the pool came to another host.

The zvols and snapshots say themselves what they are (plan.marks, plan.cut_marks). What is kept in
the store alone is not made up: the answer tells what is not known any more.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.engine.steps.snapshot import Clone, SnapshotSet
from zfsilod.model.errors import AlreadyExists, NotFound, ZfsiloError
from zfsilod.model.host_facts import Filesystem, ListedSnapshot
from zfsilod.model.record import pairs
from zfsilod.model.records import Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.model.ulid import new_ulid
from zfsilod.model.validation import check_id
from zfsilod.requests.adoption import LOOK_DEADLINE_S, AdoptVolume, filesystem, find_all, mapping
from zfsilod.requests.deletion import FOLDER
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.snapshots import dependent
from zfsilod.requests.volumes import need_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.model.records import Change, Operation
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

ADOPT_DEADLINE_S = 60
TRASH_S = 30 * 86400
HOLDERS = (
    "who held the volumes is not kept in the pool, nor are the hosts: let every consumer join or "
    "be added again, and publish anew; what is still exported is listed by zfsiloctl orphan list"
)
DELETED = "when volumes were deleted is not kept in the pool: those in the trash stay for 30 days"
UNFINISHED = "left by a clone that was not finished: zfs destroy it"
NEW_IDS = "an older zfsilo did not mark who is who in the snapshot groups {}: members have new ids"


class Rebuilt(NamedTuple):
    """What was adopted, by resource name why the rest was not, and what is not known any more."""

    adopted: list[Request]
    complaints: dict[str, str]
    unknown: list[str]


class AdoptTrashed(AdoptVolume):
    """Make a record of a volume of ours that lies in the trash."""

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


class AdoptCut(Request):
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

    def plan(self, view: View, seen: object) -> Plan:
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
        homes, found = _homes(view.txn), {}
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


def _homes(txn: Transaction) -> dict[str, Volume]:
    """Return every volume by its dataset, those in the trash too."""
    known = (*txn.scan(Volume), *(each.volume for each in txn.scan(Trashed)))
    return {each.dataset: each for each in known}


def _by_uid(marks: dict[str, str], name: str) -> dict[str, str]:
    """Undo plan.cut_marks: what is said there of each volume."""
    parts = (each.partition(":") for each in marks.get(name, "").split(","))
    return {uid: value for uid, _colon, value in parts}


async def adopt_all(service: Service, caller: str) -> Rebuilt:
    """Adopt everything below the root that has our marks and no record."""
    need_root(service.settings)
    found = Rebuilt([], {}, [])
    await _adopt(service, caller, await new_volumes(service), found)
    await _adopt(service, caller, await new_cuts(service, found), found)
    found.unknown.extend(_unknown(found.adopted))
    return found


def _unknown(adopted: Sequence[Request]) -> Iterator[str]:
    """Yield what the pool does not tell of what was adopted, a sentence each."""
    if any(isinstance(each, AdoptVolume) for each in adopted):
        yield HOLDERS
    if any(isinstance(each, AdoptTrashed) for each in adopted):
        yield DELETED
    groups = [each for each in adopted if isinstance(each, AdoptCut) and each.is_group]
    unmarked = [each.id for each in groups if "members" not in dict(each.refs[0].marks)]
    if unmarked:
        yield NEW_IDS.format(", ".join(unmarked))


async def _adopt(service: Service, caller: str, requests: Sequence[Request], into: Rebuilt) -> None:
    for request in requests:
        try:
            operation = await service.submit(request, caller=caller)
            await service.wait(operation.id, ADOPT_DEADLINE_S)
        except ZfsiloError as error:
            into.complaints[request.subject] = error.message
        else:
            into.adopted.append(request)


async def new_volumes(service: Service) -> list[AdoptVolume]:
    """Return the requests for what is ours and unknown: living volumes, then those in the trash."""
    with service.store.read() as txn:
        known = {each.uid for each in _homes(txn).values()}
    found = [
        each
        for each in await find_all(service, service.settings.root, "")
        if each.zvol.uid and each.zvol.uid not in known
    ]
    return [each for each in found if not _is_in_trash(each)] + [
        AdoptTrashed(id=each.id, zvol=each.zvol, properties=each.properties, origin=each.origin)
        for each in found
        if _is_in_trash(each)
    ]


def _is_in_trash(request: AdoptVolume) -> bool:
    return f"/{FOLDER}/" in request.zvol.dataset


async def new_cuts(service: Service, into: Rebuilt) -> list[AdoptCut]:
    """Return the requests for snapshots that no record knows, oldest first; nameless ones are told."""
    look = partial(service.machine.snapshots.list_snapshots, service.settings.root)
    refs = await service.look(look, timeout_s=LOOK_DEADLINE_S)
    with service.store.read() as txn:
        known = {each.uid for each in txn.scan(Snapshot)}
        known |= {uid for each in txn.live() for uid in _cuts_of(each)}
    by_cut = groupby(sorted(refs, key=lambda each: each.cut), lambda each: each.cut)
    requests = []
    for uid, same in by_cut:
        found = tuple(same)
        name = dict(found[0].marks).get("snapshot", "")
        if uid not in known and name:
            requests.append(AdoptCut(id=name, refs=found))
        elif uid not in known:
            into.complaints.update({f"{each.dataset}@zfsilo-{uid}": UNFINISHED for each in found})
    return sorted(requests, key=lambda each: each.refs[0].created_at)


def _cuts_of(operation: Operation) -> Iterator[str]:
    """Yield the uids of the snapshots that an operation is about."""
    for action in operation.actions:
        if isinstance(action.step, Clone):
            yield action.step.snapshot_uid
        elif isinstance(action.step, SnapshotSet):
            yield action.step.uid
