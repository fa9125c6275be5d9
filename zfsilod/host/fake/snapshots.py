"""Snapshots and clones of the simulated host: facts, like all of it.

A snapshot keeps what its disk held; a clone's disk begins with that.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.host_facts import ListedSnapshot, SnapshotRef
from zfsilod.model.record import Pairs, pairs

if TYPE_CHECKING:
    from zfsilod.host.fake.zfs import FakeZfs


class FakeSnapshots:
    """Snapshots as facts of their cut; one that is given up goes with its last clone."""

    def __init__(self, zfs: FakeZfs) -> None:
        self.zfs = zfs
        self.facts = zfs.facts

    def has_cut(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        return all(self._stands(each, uid) for each in refs)

    def cut(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        for each in refs:
            if not self.zfs.has_zvol(each.dataset, uid=each.uid, guid=""):
                raise FailedPrecondition(f"the dataset {each.dataset} does not exist")
        if self.has_cut(refs, uid):
            return
        volumes = sorted(each.uid for each in refs)
        contents = {each: self.facts.get(f"content:{each}") for each in volumes}
        sizes = {each.uid: self.facts.get(f"zvol:{each.dataset}")["size"] for each in refs}
        cut = {"of": contents, "given_up": [], "marks": dict(marks), "sizes": sizes}
        self.facts.effect(f"cut:{uid}", cut)

    def give_up(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        for each in refs:
            if self._stands(each, uid):
                found = self.facts.get(f"cut:{uid}")
                given_up = sorted({*found["given_up"], each.uid})
                self.facts.effect(f"cut:{uid}", self._left(uid, found | {"given_up": given_up}))

    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        homes = {each.uid: each.dataset for each in self.zfs.list_zvols(root)}
        return [
            ListedSnapshot(
                dataset=homes[uid], guid=self._guid(SnapshotRef(dataset=homes[uid], uid=uid), name),
                size_bytes=cut["sizes"][uid], created_at=0,
                marks=pairs({n.removeprefix("zfsilo:"): v for n, v in cut["marks"].items()}),
            )
            for name, cut in sorted(self.facts.each("cut").items())
            for uid in cut["of"]
            if uid in homes and uid not in cut["given_up"]
        ]  # fmt: skip

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]:
        return {each.uid: self._guid(each, uid) for each in refs}

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> bool:
        made = self.zfs.has_zvol(dataset, uid=uid, guid="")
        return made and not (own and self._stands(snapshot_ref, cut))

    def clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool, properties: Pairs,
        marks: Pairs,
    ) -> None:  # fmt: skip
        if not self.zfs.has_zvol(dataset, uid=uid, guid=""):
            if own:
                self.cut((snapshot_ref,), cut, (("zfsilo:cut", cut),))
            self._clone(dataset, uid, snapshot_ref, cut, dict(properties) | dict(marks))
        if own:
            self.give_up((snapshot_ref,), cut)

    def _clone(
        self, dataset: str, uid: str, snapshot_ref: SnapshotRef, cut: str, values: dict[str, str]
    ) -> None:
        if not self._stands(snapshot_ref, cut):
            raise FailedPrecondition(f"the snapshot {cut} does not exist", reason="LOST")
        content = self.facts.get(f"cut:{cut}")["of"][snapshot_ref.uid]
        if content is not None:
            self.facts.effect(f"content:{uid}", content)
        origin = self.facts.get(f"zvol:{snapshot_ref.dataset}")
        guid = str(int(hashlib.sha256(uid.encode()).hexdigest()[:15], 16))
        zvol = {
            "uid": uid, "guid": guid, "size": origin["size"], "thin": True,
            "properties": values | {"volblocksize": origin["properties"]["volblocksize"]},
            "origin": [cut, snapshot_ref.uid],
        }  # fmt: skip
        self.facts.effect(f"zvol:{dataset}", zvol)

    def unclone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> None:
        self.zfs.destroy_zvol(dataset, uid=uid, guid="")
        if own:
            self.give_up((snapshot_ref,), cut)

    def is_thick(self, dataset: str) -> bool:
        return not self.facts.get(f"zvol:{dataset}")["thin"]

    def set_thick(self, dataset: str, *, thick: bool) -> None:
        zvol = self.facts.get(f"zvol:{dataset}")
        self.facts.effect(f"zvol:{dataset}", zvol | {"thin": not thick})

    def _stands(self, snapshot_ref: SnapshotRef, uid: str) -> bool:
        found = self.facts.get(f"cut:{uid}")
        if found is None or snapshot_ref.uid not in found["of"]:
            return False
        if snapshot_ref.guid not in ("", self._guid(snapshot_ref, uid)):
            raise Conflict(f"the snapshot {uid} of {snapshot_ref.dataset} is not ours")
        return snapshot_ref.uid not in found["given_up"]

    def _guid(self, snapshot_ref: SnapshotRef, uid: str) -> str:
        return str(int(hashlib.sha256(f"{snapshot_ref.uid}@{uid}".encode()).hexdigest()[:15], 16))

    def _left(self, uid: str, cut: Any) -> Any:
        """Return what is left of a cut: nothing once all is given up and no clone needs it."""
        return left_of(self.facts, uid, cut)


def left_of(facts: Any, uid: str, cut: Any, *, but: str = "") -> Any:
    """Return what is left of a cut when what was given up goes; `but`: a zvol that is gone."""
    needed = [
        origin[1]
        for name, zvol in facts.each("zvol").items()
        if name != but and (origin := zvol.get("origin")) and origin[0] == uid
    ]
    kept = {v: c for v, c in cut["of"].items() if v not in cut["given_up"] or v in needed}
    given_up = [each for each in cut["given_up"] if each in kept]
    return cut | {"of": kept, "given_up": given_up} if kept else None
