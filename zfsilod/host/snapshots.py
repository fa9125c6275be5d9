"""Snapshot sets and clones of zvols, through zfs(8).

A snapshot set is one atomic `zfs snapshot` of one or more zvols: zfs-snapshot(8). A snapshot
belongs to zfsilo when its own user property `zfsilo:cut` has the uid of the set; the properties
that it inherits from its zvol prove nothing.

A snapshot is released with `zfs destroy -d`, zfs-destroy(8): while it has clones it remains, with
defer_destroy=on, and ZFS destroys it with the last clone. A released snapshot counts as absent. A
clone is never promoted, and no destroy is recursive.
"""

from __future__ import annotations

from zfsilod.host.zfs import (
    ANY,
    CHANGE_TIMEOUT_S,
    READ_TIMEOUT_S,
    UID,
    RealZfs,
)
from zfsilod.host.zfs_output import (
    PREFIX,
    Properties,
    asked,
    first_line,
    foreign,
    lost,
    missing,
    no_pool,
    not_older,
    own_marks,
    pool_of,
    property_options,
    reason_of,
    refused,
    table,
)
from zfsilod.model.errors import Conflict
from zfsilod.model.host_facts import ListedSnapshot
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import OPERATION
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import BlockRange, SnapshotRef
    from zfsilod.model.record import Pairs

SET_UID = "zfsilo:cut"
NAME_PREFIX = "zfsilo-"
PROPERTIES = ("guid", SET_UID, "defer_destroy", UID, OPERATION)
LISTED = ("guid", "volsize", "creation", "createtxg", "defer_destroy")
MARKS = (
    "cut",
    "snapshot",
    "members",
    "filesystems",
    "labels",
    "policy",
    "policy_uid",
    "grid_version",
    "peer",
)
NONE = ("", "-", "0")  # values of `clones` and `userrefs` that name nothing: zfsprops(7)


class RealSnapshots:
    """The snapshots and clones in the pools of this host; see SnapshotAdapter."""

    def __init__(self, run: Runner, zfs: RealZfs) -> None:
        self._run = run
        self._zfs = zfs

    # Snapshot sets

    def has_set(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        datasets = self._get(refs, uid)
        return all(_is_present(datasets, ref, uid) for ref in refs)

    def take(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        datasets = self._get(refs, uid)
        for ref in refs:
            if ref.dataset not in datasets:
                raise missing(ref.dataset)
            if datasets[ref.dataset][UID] != (ref.uid, "local"):
                raise foreign(ref.dataset, f"it is not volume {ref.uid}")
        if all(_is_present(datasets, ref, uid) for ref in refs):
            return
        self.release(refs, uid)  # snapshots of different moments are not one set
        names = [_name(ref, uid) for ref in refs]
        argv = ["zfs", "snapshot", *property_options(marks), *names]
        done = self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            reason = first_line(done).rpartition("': ")[2]
            raise refused(done, reason, refs[0].dataset)

    def is_made_by(self, refs: tuple[SnapshotRef, ...], uid: str, operation: str) -> bool:
        datasets = self._get(refs, uid)
        present = [ref for ref in refs if _is_present(datasets, ref, uid)]
        marks = [datasets[_name(ref, uid)][OPERATION] for ref in present]
        return all((value if source == "local" else "") == operation for value, source in marks)

    def release(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        datasets = self._get(refs, uid)
        for ref in refs:
            if not _is_present(datasets, ref, uid):
                continue
            name = _name(ref, uid)
            argv = ["zfs", "destroy", "-d", name]
            done = self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
            if done.rc != 0:
                reason = first_line(done).removeprefix(f"cannot destroy snapshot {name}: ")
                raise refused(done, reason, name)

    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        names = asked((*LISTED, *(f"{PREFIX}{mark}" for mark in MARKS)))
        snapshots = self._zfs.listing(root, names, kind="snapshot")
        return [
            ListedSnapshot(
                dataset=name.partition("@")[0],
                guid=properties["guid"][0],
                marks=own_marks(properties),
                size_bytes=int(properties["volsize"][0]),
                created_at=int(properties["creation"][0]),
                txg=int(properties["createtxg"][0]),
            )
            for name, properties in snapshots.items()
            if properties[SET_UID][1] == "local" and properties["defer_destroy"][0] != "on"
        ]

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]:
        datasets = self._get(refs, uid)
        return {ref.uid: datasets[_name(ref, uid)]["guid"][0] for ref in refs}

    def users(self, refs: tuple[SnapshotRef, ...], uid: str) -> tuple[str, ...]:
        datasets = self._get(refs, uid, (*PROPERTIES, "clones", "userrefs"))
        users: list[str] = []
        for ref in refs:
            if _is_present(datasets, ref, uid):
                properties = datasets[_name(ref, uid)]
                clones, holds = properties["clones"][0], properties["userrefs"][0]
                users += clones.split(",") if clones not in NONE else ()
                users += (f"{holds} holds (zfs holds)",) if holds not in NONE else ()
        return tuple(users)

    def read_blocks(
        self, ref: SnapshotRef, uid: str, *, base: SnapshotRef | None, base_uid: str, start: int
    ) -> Iterator[BlockRange]:
        from zfsilod.host.snapshot_blocks import SendStreams  # no operation needs it

        created, size_bytes = self._created(ref, uid)
        streams = SendStreams(self._run)
        if base is None:
            return streams.allocated(_name(ref, uid), start=start, size_bytes=size_bytes)
        if self._created(base, base_uid)[0] >= created:
            raise not_older(base_uid, uid)
        names = _name(ref, uid), _name(base, base_uid)
        return streams.changed(*names, start=start, size_bytes=size_bytes)

    def _created(self, ref: SnapshotRef, uid: str) -> tuple[int, int]:
        """Return the transaction group that made a snapshot, and the size of its zvol then."""
        datasets = self._get((ref,), uid, (*PROPERTIES, "createtxg", "volsize"))
        name = _name(ref, uid)
        if not _is_present(datasets, ref, uid):
            raise lost(name)
        properties = datasets[name]
        return int(properties["createtxg"][0]), int(properties["volsize"][0])

    def _get(
        self, refs: tuple[SnapshotRef, ...], uid: str, properties: tuple[str, ...] = PROPERTIES
    ) -> dict[str, Properties]:
        """Return properties of the zvols and their snapshots; those that do not exist are left out.

        Any other error of zfs is raised. The pool is in the same call, as in RealZfs: a dataset is
        missing only when its pool is listed.
        """
        pool = pool_of(check_dataset(refs[0].dataset))
        names = [name for ref in refs for name in (check_dataset(ref.dataset), _name(ref, uid))]
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source", asked(properties)]
        done = self._run([*argv, *dict.fromkeys((*names, pool))], timeout_s=READ_TIMEOUT_S, ok=ANY)
        datasets = table(done.stdout)
        errors = done.stderr.splitlines()
        for name in names:
            absent = f"cannot open '{name}': dataset does not exist"
            if name not in datasets and absent not in errors:
                raise refused(done, reason_of(done, "open", name), name)
        if pool not in datasets:
            raise no_pool(pool)
        return datasets

    # Clones

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> bool:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return False
        return not own or not self.has_set((snapshot_ref,), snapshot_uid)

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
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            if own:
                self.take((snapshot_ref,), snapshot_uid, ((SET_UID, snapshot_uid),))
            self._clone(dataset, _name(snapshot_ref, snapshot_uid), (*properties, *marks))
        if own:
            self.release((snapshot_ref,), snapshot_uid)

    def _clone(self, dataset: str, snapshot: str, settings: Pairs) -> None:
        argv = ["zfs", "clone", *property_options(settings), snapshot, check_dataset(dataset)]
        done = self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            if first_line(done) == f"cannot open '{snapshot}': dataset does not exist":
                raise lost(snapshot)
            raise refused(done, reason_of(done, "create", dataset), dataset)

    def destroy_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, snapshot_uid: str, own: bool
    ) -> None:
        self._zfs.destroy_zvol(dataset, uid=uid, guid="")
        if own:
            self.release((snapshot_ref,), snapshot_uid)

    # Reservation

    def is_reserved(self, dataset: str) -> bool:
        properties = self._zfs.properties(dataset, ("refreservation", "volsize"))
        return int(properties["refreservation"][0]) >= int(properties["volsize"][0])

    def set_reserved(self, dataset: str, *, reserved: bool) -> None:
        self._zfs.set_property(dataset, "refreservation", "auto" if reserved else "none")


def _name(snapshot_ref: SnapshotRef, uid: str) -> str:
    return f"{check_dataset(snapshot_ref.dataset)}@{NAME_PREFIX}{checked_uid(uid)}"


def checked_uid(uid: str) -> str:
    """Return a uid for the name of a snapshot. Raises Conflict for other text."""
    if not uid.isalnum():
        raise Conflict(f"{uid[:64]!r} is not a valid uid of a snapshot")
    return uid


def _is_present(datasets: dict[str, Properties], ref: SnapshotRef, uid: str) -> bool:
    """Tell whether a snapshot exists and is not released.

    Raises Conflict (NOT_OURS) when it has another `zfsilo:cut` or another guid.
    """
    name = _name(ref, uid)
    if name not in datasets:
        return False
    properties = datasets[name]
    if properties[SET_UID] != (uid, "local"):
        raise foreign(name, f"it has no local property {SET_UID} with the value {uid}")
    if ref.guid and properties["guid"][0] != ref.guid:
        raise foreign(name, f"its guid is {properties['guid'][0]}, not {ref.guid}")
    return properties["defer_destroy"][0] != "on"
