"""Deletion: at once, into the trash and back, and what is purged from there later.

A zvol with snapshots or clones cannot be destroyed, and nobody's snapshot is destroyed with it. So
such a volume is refused (REFUSE), or (KEEP) renamed to `<root>/.trash/<uid>`: its name is free, it
is found no more, and it goes when the last of what depends on it has gone. With a retention time
every deletion takes that way. A rename can be taken back, by a rollback or by `undelete`.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Literal

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, NotFound, ZfsiloError
from zfsilod.model.record import Record
from zfsilod.model.records import Dependent, Publication, Trashed, Volume
from zfsilod.model.validation import check_etag, check_id
from zfsilod.requests.clones import clone_dependent
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.volumes import need_volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host import Host as Machine
    from zfsilod.model.records import Change
    from zfsilod.model.settings import Settings
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

Dependents = Literal["REFUSE", "KEEP"]
FOLDER = ".trash"
PURGE_AGAIN_S = 3600  # after one that could not be made: somebody's own snapshot is in the way
PURGES_AT_ONCE = 20
MAX_NAMED = 20
OUR_CUT = re.compile(r"@zfsilo-[0-9a-f]{32}$")  # host/snapshots.py

log = logging.getLogger(__name__)


class Found(Record):
    """What the host says of a zvol that is to go."""

    dependents: tuple[str, ...] = ()
    lost: bool = False  # it is gone already, by somebody else's hand


class DeleteVolume(Request):
    """Destroy an unpublished volume and its data, or put it into the trash."""

    kind = "delete"
    id: str
    etag: str = ""
    dependents: Dependents = "REFUSE"
    dataset: str = ""  # where to look: recalled, not asked for

    def recall(self, txn: Transaction) -> DeleteVolume:
        return self.but(dataset=need_volume(txn, self.id).dataset)

    def look(self, host: Machine, settings: Settings) -> Found:
        return look_at(host, self.dataset)

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, Found)
        volume = need_volume(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        check_unpublished(view.txn, volume)
        names = all_dependents(view.txn, volume, seen)
        if names and self.dependents == "REFUSE":
            raise has_dependents(volume, names)
        title, claims = f"delete {self.id}", (f"volume/{self.id}",)
        retention_s = view.settings.trash_retention_s
        if seen.lost or not (names or retention_s):
            return Plan(
                title=title,
                claims=claims,
                actions=plans.down([plans.zvol(volume)]),
                commit=(drop(volume), *released(volume)),
            )
        trash = f"{volume.dataset.rpartition('/')[0]}/{FOLDER}/{volume.uid}"
        trashed = Trashed(
            id=f"{volume.id}/{volume.uid}",
            volume=volume.but(dataset=trash),
            home=volume.dataset,
            deleted_at=view.now,
            purge_at=view.now + retention_s,
        )
        return Plan(
            title=f"{title}, into the trash",
            claims=(*claims, f"trash/{volume.uid}"),
            actions=plans.up([plans.in_trash(volume, volume.dataset, trash)]),
            commit=(drop(volume), put(trashed)),
        )


class UndeleteVolume(Request):
    """Take a volume out of the trash again, under its name."""

    kind = "undelete"
    id: str
    uid: str = ""  # "": the one of that name that was deleted last

    def plan(self, view: View, seen: object) -> Plan:
        check_id(self.id, "volume id")
        found = self._found(view.txn)
        if view.txn.get(Volume, self.id):
            raise AlreadyExists(
                f"there is another volume {self.id} by now: delete it first", volume=self.id
            )
        volume = found.volume.but(dataset=found.home, updated_at=view.now)
        return Plan(
            title=f"undelete {self.id}",
            claims=(f"volume/{self.id}", f"trash/{volume.uid}"),
            actions=plans.down([plans.in_trash(volume, found.home, found.volume.dataset)]),
            commit=(put(volume), drop(found)),
        )

    def _found(self, txn: Transaction) -> Trashed:
        of_name = txn.scan_below(Trashed, self.id)
        found = [each for each in of_name if self.uid in ("", each.volume.uid)]
        if not found:
            raise NotFound(f"no deleted volume {self.id} is in the trash", volume=self.id)
        return max(found, key=lambda each: each.deleted_at)


class PurgeVolume(Request):
    """Destroy what lies in the trash."""

    kind = "purge"
    id: str  # of the record: <volume>/<uid>
    dataset: str = ""  # where to look: recalled, not asked for

    def recall(self, txn: Transaction) -> PurgeVolume:
        return self.but(dataset=self._found(txn).volume.dataset)

    def look(self, host: Machine, settings: Settings) -> Found:
        return look_at(host, self.dataset)

    def plan(self, view: View, seen: object) -> Plan:
        assert isinstance(seen, Found)
        found = self._found(view.txn)
        volume = found.volume
        names = all_dependents(view.txn, volume, seen)
        if names:
            raise has_dependents(volume, names)
        return Plan(
            title=f"purge {volume.id}, deleted before",
            claims=(f"trash/{volume.uid}",),
            actions=plans.down([plans.zvol(volume)]),
            commit=(drop(found), *released(volume)),
        )

    def _found(self, txn: Transaction) -> Trashed:
        found = txn.get(Trashed, self.id)
        if found is None:
            raise NotFound(f"{self.id[:200]} is not in the trash")
        return found


class Purger:
    """Purges what is due, each round a few; what cannot be purged is tried again much later."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._again: dict[str, float] = {}  # when to try those again that could not be purged

    async def purge(self) -> None:
        """Begin to purge what is due."""
        with self._service.store.read() as txn:
            due = list(self._due(txn))
        for each in due[:PURGES_AT_ONCE]:
            self._again[each.id] = time.monotonic() + PURGE_AGAIN_S
            try:
                await self._service.submit(PurgeVolume(id=each.id), caller="zfsilod", deadline_s=0)
            except ZfsiloError as error:
                log.warning("%s stays in the trash: %s", each.volume.id, error.message)

    def _due(self, txn: Transaction) -> Iterator[Trashed]:
        now = time.time()
        for each in txn.scan(Trashed):
            waits = time.monotonic() < self._again.get(each.id, 0.0)
            claimed = txn.claimant(f"trash/{each.volume.uid}")
            if each.purge_at <= now and not waits and not claimed:
                if not dependents_of(txn, each.volume):
                    yield each


def look_at(host: Machine, dataset: str) -> Found:
    """Look at a zvol that is to go; one that is gone already needs no trash."""
    try:
        return Found(dependents=host.zfs.dependents(dataset))
    except FailedPrecondition as error:
        if error.reason != "NO_DATASET":
            raise
        return Found(lost=True)


def dependents_of(txn: Transaction, volume: Volume) -> list[str]:
    """Return the names of what is recorded to need a volume's zvol."""
    return [each.name for each in txn.scan_below(Dependent, volume.uid)]


def all_dependents(txn: Transaction, volume: Volume, seen: Found) -> list[str]:
    """Return what needs a volume's zvol, each once: as it is recorded, else as ZFS calls it."""
    recorded = dependents_of(txn, volume)
    if not recorded:
        return list(seen.dependents)
    # A snapshot of ours is recorded, or stays only for a clone that is.
    clones = _datasets(txn, recorded)
    strange = [name for name in seen.dependents if not (OUR_CUT.search(name) or name in clones)]
    return [*recorded, *strange]


def _datasets(txn: Transaction, names: list[str]) -> set[str]:
    """Return the zvols of the volumes among some resource names, those in the trash too."""
    ids = [each.removeprefix("volumes/") for each in names if each.startswith("volumes/")]
    living = [txn.get(Volume, each) for each in ids]
    deleted = [trashed.volume for each in ids for trashed in txn.scan_below(Trashed, each)]
    return {each.dataset for each in (*living, *deleted) if each is not None}


def released(volume: Volume) -> tuple[Change, ...]:
    """Return the changes of records that come with the end of a volume's zvol."""
    return (drop(clone_dependent(volume)),) if volume.origin else ()


def check_unpublished(txn: Transaction, volume: Volume) -> None:
    """Raise FailedPrecondition while a volume is published."""
    holders = [each.host for each in txn.scan_below(Publication, volume.id)]
    if holders:
        raise FailedPrecondition(
            f"{volume.id} is published to {', '.join(holders)}: unpublish it first",
            reason="PUBLISHED",
            volume=volume.id,
            hosts=",".join(holders),
        )


def has_dependents(volume: Volume, names: list[str]) -> FailedPrecondition:
    """Return the error for a volume that something depends on."""
    shown = list(dict.fromkeys(names))
    some = ", ".join(shown[:MAX_NAMED]) + (", ..." if len(shown) > MAX_NAMED else "")
    return FailedPrecondition(
        f"{volume.id} has snapshots or clones: {some}; delete them first, or keep them "
        "(--keep-dependents)",
        reason="DEPENDENTS",
        volume=volume.id,
        dependents=some,
    )
