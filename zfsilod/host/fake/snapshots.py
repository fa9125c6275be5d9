"""The snapshot sets and clones of the simulated host.

A snapshot keeps the filesystem of its volume, and the disk of a clone has the same one. It keeps
its blocks too: the fact `blocks:UID` of a zvol has a text for each block that is in use, by its
number.
"""

from __future__ import annotations

from zfsilod.host.fake.snapshot_sets import guid_of, holders, remaining, snapshot_guid
from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.host_facts import ListedSnapshot, SnapshotRef
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Pairs, pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.fake.zfs import FakeZfs
    from zfsilod.model.host_facts import BlockRange


class FakeSnapshots:
    """Snapshot sets as facts; a released snapshot is removed with its last clone or hold."""

    def __init__(self, zfs: FakeZfs) -> None:
        self.zfs = zfs
        self.facts = zfs.facts

    def has_set(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        return all(self._is_present(ref, uid) for ref in refs)

    def take(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        for ref in refs:
            if not self.zfs.has_zvol(ref.dataset, uid=ref.uid, guid=""):
                raise FailedPrecondition(f"the dataset {ref.dataset} does not exist")
        if self.has_set(refs, uid):
            return
        volumes = sorted(ref.uid for ref in refs)
        contents = {volume: self.facts.get(f"content:{volume}") for volume in volumes}
        sizes = {ref.uid: self.facts.get(f"zvol:{ref.dataset}")["size"] for ref in refs}
        blocks = {volume: self.facts.get(f"blocks:{volume}") or {} for volume in volumes}
        snapshot_set = {"of": contents, "given_up": [], "marks": dict(marks), "sizes": sizes}
        sets = self.facts.of_kind("cut").values()
        order = {"txg": 1 + max((other.get("txg", 0) for other in sets), default=0)}
        self.facts.effect(f"cut:{uid}", snapshot_set | order | {"blocks": blocks})

    def read_blocks(
        self, ref: SnapshotRef, uid: str, *, base: SnapshotRef | None, base_uid: str, start: int
    ) -> Iterator[BlockRange]:
        from zfsilod.host.send_stream import ordered
        from zfsilod.host.zfs_output import not_older

        created, blocks = self._blocks(ref, uid)
        older: dict[str, str] = {}
        if base is not None:
            base_created, older = self._blocks(base, base_uid)
            if base_created >= created:
                raise not_older(base_uid, uid)
        length = int(self.facts.get(f"zvol:{ref.dataset}")["properties"]["volblocksize"])
        changed = {int(number) for number, _text in blocks.items() ^ older.items()}
        ranges = (
            (number * length, length, str(number) not in blocks) for number in sorted(changed)
        )
        size_bytes = self.facts.get(f"cut:{uid}")["sizes"][ref.uid]
        return ordered(ranges, start=start, size_bytes=size_bytes, zero_until=size_bytes)

    def _blocks(self, ref: SnapshotRef, uid: str) -> tuple[int, dict[str, str]]:
        """Return when a snapshot was taken, as the number of its set, and its blocks.

        The first block has the filesystem.
        """
        if not self._is_present(ref, uid):
            from zfsilod.host.zfs_output import lost

            raise lost(f"{ref.dataset}@{uid}")
        snapshot_set = self.facts.get(f"cut:{uid}")
        content = snapshot_set["of"][ref.uid]
        superblock = {"0": str(content)} if content else {}
        return snapshot_set.get("txg", 0), superblock | snapshot_set.get("blocks", {}).get(
            ref.uid, {}
        )

    def is_made_by(self, refs: tuple[SnapshotRef, ...], uid: str, operation: str) -> bool:
        present = any(self._is_present(ref, uid) for ref in refs)
        marks = self.facts.get(f"cut:{uid}")["marks"] if present else {}
        return not present or marks.get("zfsilo:operation", "") == operation

    def release(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        for ref in refs:
            if self._is_present(ref, uid):
                snapshot_set = self.facts.get(f"cut:{uid}")
                released = sorted({*snapshot_set["given_up"], ref.uid})
                left = remaining(self.facts, uid, snapshot_set | {"given_up": released})
                self.facts.effect(f"cut:{uid}", left)

    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        datasets = {zvol.uid: zvol.dataset for zvol in self.zfs.list_zvols(root)}
        return [
            ListedSnapshot(
                dataset=datasets[volume],
                guid=snapshot_guid(self.facts, volume, uid),
                size_bytes=snapshot_set["sizes"][volume],
                created_at=0,
                txg=snapshot_set.get("txg", 0),
                marks=pairs(
                    {n.removeprefix("zfsilo:"): v for n, v in snapshot_set["marks"].items()}
                ),
            )
            for uid, snapshot_set in sorted(self.facts.of_kind("cut").items())
            for volume in snapshot_set["of"]
            if volume in datasets and volume not in snapshot_set["given_up"]
        ]

    def users(self, refs: tuple[SnapshotRef, ...], uid: str) -> tuple[str, ...]:
        present = {ref.uid for ref in refs if self._is_present(ref, uid)}
        clones = tuple(
            dataset
            for dataset, zvol in self.facts.of_kind("zvol").items()
            if (origin := zvol.get("origin")) and origin[0] == uid and origin[1] in present
        )
        holds = self.facts.get(f"holds:{uid}") or 0
        holds += sum(len(holders(self.facts, volume, uid)) for volume in present)
        return (*clones, f"{holds} holds (zfs holds)") if holds and present else clones

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]:
        return {ref.uid: snapshot_guid(self.facts, ref.uid, uid) for ref in refs}

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> bool:
        exists = self.zfs.has_zvol(dataset, uid=uid, guid="")
        return exists and not (own and self._is_present(snapshot_ref, snapshot_uid))

    def clone(
        self,
        dataset: str,
        *,
        uid: str,
        snapshot_ref: SnapshotRef,
        snapshot_uid: str,
        own: bool,
        properties: Pairs,
        marks: Pairs,
    ) -> None:
        if not self.zfs.has_zvol(dataset, uid=uid, guid=""):
            if own:
                self.take((snapshot_ref,), snapshot_uid, (("zfsilo:cut", snapshot_uid),))
            self._clone(dataset, uid, snapshot_ref, snapshot_uid, dict(properties) | dict(marks))
        if own:
            self.release((snapshot_ref,), snapshot_uid)

    def _clone(
        self,
        dataset: str,
        uid: str,
        snapshot_ref: SnapshotRef,
        snapshot_uid: str,
        values: dict[str, str],
    ) -> None:
        self._blocks(snapshot_ref, snapshot_uid)  # raises without it
        snapshot_set = self.facts.get(f"cut:{snapshot_uid}")
        content = snapshot_set["of"][snapshot_ref.uid]
        blocks = snapshot_set.get("blocks", {}).get(snapshot_ref.uid)
        if content is not None:
            self.facts.effect(f"content:{uid}", content)
        origin = self.facts.get(f"zvol:{snapshot_ref.dataset}")
        root = {"root": origin["root"]} if "root" in origin else {}
        if root and self.facts.get(f"key:{origin['root']}") is None:
            from zfsilod.host.zfs_output import no_key

            raise no_key(snapshot_ref.dataset, dataset)
        zvol = root | {
            "uid": uid,
            "guid": guid_of(uid),
            "size": origin["size"],
            "thin": True,
            "properties": values | {"volblocksize": origin["properties"]["volblocksize"]},
            "origin": [snapshot_uid, snapshot_ref.uid],
        }
        self.facts.effect(f"zvol:{dataset}", zvol, also={f"blocks:{uid}": blocks or None})

    def destroy_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> None:
        self.zfs.destroy_zvol(dataset, uid=uid, guid="")
        if own:
            self.release((snapshot_ref,), snapshot_uid)

    def is_reserved(self, dataset: str) -> bool:
        return not self.facts.get(f"zvol:{dataset}")["thin"]

    def set_reserved(self, dataset: str, *, reserved: bool) -> None:
        zvol = self.facts.get(f"zvol:{dataset}")
        self.facts.effect(f"zvol:{dataset}", zvol | {"thin": not reserved})

    def _is_present(self, ref: SnapshotRef, uid: str) -> bool:
        snapshot_set = self.facts.get(f"cut:{uid}")
        if snapshot_set is None or ref.uid not in snapshot_set["of"]:
            return False
        if ref.guid not in ("", snapshot_guid(self.facts, ref.uid, uid)):
            raise Conflict(f"the snapshot {uid} of {ref.dataset} has another guid")
        return ref.uid not in snapshot_set["given_up"]
