"""Snapshots and clones of the simulated host: facts, like all of it.

A snapshot keeps what its disk held; a clone's disk begins with that.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import ListedShot, Shot

if TYPE_CHECKING:
    from zfsilod.host.fake.zfs import FakeZfs


class FakeSnapshots:
    """Snapshots as facts of their cut; one that is given up goes with its last clone."""

    def __init__(self, zfs: FakeZfs) -> None:
        self.zfs = zfs
        self.facts = zfs.facts

    def has_cut(self, shots: tuple[Shot, ...], uid: str) -> bool:
        return all(self._stands(each, uid) for each in shots)

    def cut(self, shots: tuple[Shot, ...], uid: str, marks: Pairs) -> None:
        for each in shots:
            if not self.zfs.has_zvol(each.dataset, uid=each.uid, guid=""):
                raise FailedPrecondition(f"the dataset {each.dataset} does not exist")
        if self.has_cut(shots, uid):
            return
        volumes = sorted(each.uid for each in shots)
        contents = {each: self.facts.get(f"content:{each}") for each in volumes}
        sizes = {each.uid: self.facts.get(f"zvol:{each.dataset}")["size"] for each in shots}
        cut = {"of": contents, "given_up": [], "marks": dict(marks), "sizes": sizes}
        self.facts.effect(f"cut:{uid}", cut)

    def give_up(self, shots: tuple[Shot, ...], uid: str) -> None:
        for each in shots:
            if self._stands(each, uid):
                found = self.facts.get(f"cut:{uid}")
                given_up = sorted({*found["given_up"], each.uid})
                self.facts.effect(f"cut:{uid}", self._left(uid, found | {"given_up": given_up}))

    def list_shots(self, root: str) -> list[ListedShot]:
        homes = {each.uid: each.dataset for each in self.zfs.list_zvols(root)}
        return [
            ListedShot(
                dataset=homes[uid], guid=self._guid(Shot(dataset=homes[uid], uid=uid), name),
                size_bytes=cut["sizes"][uid], created_at=0,
                marks=pairs({n.removeprefix("zfsilo:"): v for n, v in cut["marks"].items()}),
            )
            for name, cut in sorted(self.facts.each("cut").items())
            for uid in cut["of"]
            if uid in homes and uid not in cut["given_up"]
        ]  # fmt: skip

    def find_guids(self, shots: tuple[Shot, ...], uid: str) -> dict[str, str]:
        return {each.uid: self._guid(each, uid) for each in shots}

    def has_clone(self, dataset: str, *, uid: str, shot: Shot, cut: str, own: bool) -> bool:
        made = self.zfs.has_zvol(dataset, uid=uid, guid="")
        return made and not (own and self._stands(shot, cut))

    def clone(
        self, dataset: str, *, uid: str, shot: Shot, cut: str, own: bool, properties: Pairs,
        marks: Pairs,
    ) -> None:  # fmt: skip
        if not self.zfs.has_zvol(dataset, uid=uid, guid=""):
            if own:
                self.cut((shot,), cut, (("zfsilo:cut", cut),))
            self._clone(dataset, uid, shot, cut, dict(properties) | dict(marks))
        if own:
            self.give_up((shot,), cut)

    def _clone(self, dataset: str, uid: str, shot: Shot, cut: str, values: dict[str, str]) -> None:
        if not self._stands(shot, cut):
            raise FailedPrecondition(f"the snapshot {cut} does not exist", reason="LOST")
        content = self.facts.get(f"cut:{cut}")["of"][shot.uid]
        if content is not None:
            self.facts.effect(f"content:{uid}", content)
        origin = self.facts.get(f"zvol:{shot.dataset}")
        guid = str(int(hashlib.sha256(uid.encode()).hexdigest()[:15], 16))
        zvol = {
            "uid": uid, "guid": guid, "size": origin["size"], "thin": True,
            "properties": values | {"volblocksize": origin["properties"]["volblocksize"]},
            "origin": [cut, shot.uid],
        }  # fmt: skip
        self.facts.effect(f"zvol:{dataset}", zvol)

    def unclone(self, dataset: str, *, uid: str, shot: Shot, cut: str, own: bool) -> None:
        self.zfs.destroy_zvol(dataset, uid=uid, guid="")
        if own:
            self.give_up((shot,), cut)

    def is_thick(self, dataset: str) -> bool:
        return not self.facts.get(f"zvol:{dataset}")["thin"]

    def set_thick(self, dataset: str, *, thick: bool) -> None:
        zvol = self.facts.get(f"zvol:{dataset}")
        self.facts.effect(f"zvol:{dataset}", zvol | {"thin": not thick})

    def _stands(self, shot: Shot, uid: str) -> bool:
        found = self.facts.get(f"cut:{uid}")
        if found is None or shot.uid not in found["of"]:
            return False
        if shot.guid not in ("", self._guid(shot, uid)):
            raise Conflict(f"the snapshot {uid} of {shot.dataset} is not ours")
        return shot.uid not in found["given_up"]

    def _guid(self, shot: Shot, uid: str) -> str:
        return str(int(hashlib.sha256(f"{shot.uid}@{uid}".encode()).hexdigest()[:15], 16))

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
