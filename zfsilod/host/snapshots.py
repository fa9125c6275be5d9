"""Snapshots and clones of zvols, through zfs(8).

A snapshot is ours by a mark of its own, `zfsilo:cut`: what it inherits of its zvol proves nothing.
One that clones still need is given up with `zfs destroy -d`: it is there, but for nobody, and ZFS
destroys it with the last clone. Nothing is ever promoted, and nothing destroyed along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.zfs import (
    ANY,
    CHANGE_TIMEOUT_S,
    PREFIX,
    READ_TIMEOUT_S,
    UID,
    RealZfs,
    own_marks,
)
from zfsilod.host.zfs_output import first_line, foreign, missing, pool_of, reason_of, refused, table
from zfsilod.model.errors import Conflict, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import ListedSnapshot
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import SnapshotRef
    from zfsilod.model.record import Pairs

CUT = "zfsilo:cut"
NAME_PREFIX = "zfsilo-"
PROPERTIES = ("guid", CUT, "defer_destroy", UID)
LISTED = ("guid", "volsize", "creation", "defer_destroy")
MARKS = ("cut", "snapshot", "members", "filesystems", "labels")

Found = dict[str, dict[str, tuple[str, str]]]


class RealSnapshots:
    """The snapshots and clones in the pools of this host."""

    def __init__(self, run: Runner, zfs: RealZfs) -> None:
        self._run = run
        self._zfs = zfs

    # Snapshots

    def has_cut(self, refs: tuple[SnapshotRef, ...], uid: str) -> bool:
        found = self._look(refs, uid)
        return all(_stands(found, each, uid) for each in refs)

    def cut(self, refs: tuple[SnapshotRef, ...], uid: str, marks: Pairs) -> None:
        found = self._look(refs, uid)
        for each in refs:
            self._check_owner(found, each)
        if all(_stands(found, each, uid) for each in refs):
            return
        self.give_up(refs, uid)  # a part of them would be no snapshot of one moment
        names = [_name(each, uid) for each in refs]
        options = [word for name, value in marks for word in ("-o", f"{name}={value}")]
        done = self._run(["zfs", "snapshot", *options, *names], timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            reason = first_line(done).rpartition("': ")[2]
            raise refused(done, reason, refs[0].dataset)

    def give_up(self, refs: tuple[SnapshotRef, ...], uid: str) -> None:
        found = self._look(refs, uid)
        for each in refs:
            if not _stands(found, each, uid):
                continue
            name = _name(each, uid)
            argv = ["zfs", "destroy", "-d", name]
            done = self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
            if done.rc != 0:
                reason = first_line(done).removeprefix(f"cannot destroy snapshot {name}: ")
                raise refused(done, reason, name)

    def list_snapshots(self, root: str) -> list[ListedSnapshot]:
        """Return every snapshot of ours below a dataset that is there for somebody."""
        names = ",".join((*LISTED, *(f"{PREFIX}{mark}" for mark in MARKS)))
        return [
            ListedSnapshot(
                dataset=name.partition("@")[0], guid=found["guid"][0], marks=own_marks(found),
                size_bytes=int(found["volsize"][0]), created_at=int(found["creation"][0]),
            )
            for name, found in self._zfs.listing(root, names, kind="snapshot").items()
            if found[CUT][1] == "local" and found["defer_destroy"][0] != "on"
        ]  # fmt: skip

    def find_guids(self, refs: tuple[SnapshotRef, ...], uid: str) -> dict[str, str]:
        found = self._look(refs, uid)
        return {each.uid: found[_name(each, uid)]["guid"][0] for each in refs}

    def _check_owner(self, found: Found, snapshot_ref: SnapshotRef) -> None:
        if snapshot_ref.dataset not in found:
            raise missing(snapshot_ref.dataset)
        its_uid, source = found[snapshot_ref.dataset][UID]
        if source != "local" or its_uid != snapshot_ref.uid:
            raise foreign(snapshot_ref.dataset, f"it is not volume {snapshot_ref.uid}")

    def _look(self, refs: tuple[SnapshotRef, ...], uid: str) -> Found:
        """Return properties of snapshots and zvols; what is missing was said to be missing.

        The pool is asked for in the same call: only with its answer does "does not exist" mean
        that, see zfs.py.
        """
        pool = pool_of(check_dataset(refs[0].dataset))
        names = [name for each in refs for name in (check_dataset(each.dataset), _name(each, uid))]
        asked = list(dict.fromkeys((*names, pool)))
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source", ",".join(PROPERTIES)]
        done = self._run([*argv, *asked], timeout_s=READ_TIMEOUT_S, ok=ANY)
        found = table(done.stdout)
        said = done.stderr.splitlines()
        for name in names:
            if name not in found and f"cannot open '{name}': dataset does not exist" not in said:
                raise refused(done, reason_of(done, "open", name), name)
        if pool not in found:
            raise Unavailable(
                f"the pool {pool} is not imported on this host", reason="NO_POOL", pool=pool
            )
        return found

    # Clones

    def has_clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> bool:
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            return False
        return not own or not self.has_cut((snapshot_ref,), cut)

    def clone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool, properties: Pairs,
        marks: Pairs,
    ) -> None:  # fmt: skip
        if not self._zfs.has_zvol(dataset, uid=uid, guid=""):
            if own:
                self.cut((snapshot_ref,), cut, ((CUT, cut),))
            self._clone(dataset, _name(snapshot_ref, cut), (*properties, *marks))
        if own:
            self.give_up((snapshot_ref,), cut)

    def _clone(self, dataset: str, snapshot: str, settings: Pairs) -> None:
        options = [word for name, value in settings for word in ("-o", f"{name}={value}")]
        argv = ["zfs", "clone", *options, snapshot, check_dataset(dataset)]
        done = self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            if first_line(done) == f"cannot open '{snapshot}': dataset does not exist":
                raise FailedPrecondition(
                    f"the snapshot {snapshot} does not exist", reason="LOST", dataset=snapshot
                )
            raise refused(done, reason_of(done, "create", dataset), dataset)

    def unclone(
        self, dataset: str, *, uid: str, snapshot_ref: SnapshotRef, cut: str, own: bool
    ) -> None:
        self._zfs.destroy_zvol(dataset, uid=uid, guid="")
        if own:
            self.give_up((snapshot_ref,), cut)

    # Room

    def is_thick(self, dataset: str) -> bool:
        found = self._zfs.properties(dataset, ("refreservation", "volsize"))
        return int(found["refreservation"][0]) >= int(found["volsize"][0])

    def set_thick(self, dataset: str, *, thick: bool) -> None:
        self._zfs.set_property(dataset, "refreservation", "auto" if thick else "none")


def _name(snapshot_ref: SnapshotRef, uid: str) -> str:
    return f"{check_dataset(snapshot_ref.dataset)}@{NAME_PREFIX}{checked_uid(uid)}"


def checked_uid(uid: str) -> str:
    """Return a uid, for a snapshot's name. Raises Conflict for what is none."""
    if not uid.isalnum():
        raise Conflict(f"{uid[:64]!r} is no uid of a snapshot")
    return uid


def _stands(found: Found, snapshot_ref: SnapshotRef, uid: str) -> bool:
    """Tell whether a snapshot is there for somebody. Raises Conflict when it is not ours."""
    name = _name(snapshot_ref, uid)
    if name not in found:
        return False
    properties = found[name]
    if properties[CUT] != (uid, "local"):
        raise foreign(name, "it has no mark of zfsilo")
    if snapshot_ref.guid and properties["guid"][0] != snapshot_ref.guid:
        raise foreign(name, f"its guid is {properties['guid'][0]}, not {snapshot_ref.guid}")
    return properties["defer_destroy"][0] != "on"
