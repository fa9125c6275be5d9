"""Steps on snapshots of zvols, and on zvols that are clones of a snapshot."""

from __future__ import annotations

from zfsilod.engine.step import KEPT, Guard, HostStep
from zfsilod.engine.steps.zfs import discard_half_made
from zfsilod.model.errors import Busy, show
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import OPERATION
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import SnapshotRef
    from zfsilod.model.record import Pairs


ENDED = "a clone or hold that has ended since"


class SnapshotSet(HostStep, tag="Cut", part="POOL"):
    """Snapshots of these zvols, taken at one moment, exist and are not released."""

    final = (False,)
    refs: tuple[SnapshotRef, ...]
    uid: str  # the source of their name in ZFS
    marks: Pairs

    def probe(self, host: HostAdapters) -> bool:
        return host.snapshots.has_set(self.refs, self.uid)

    def do(self, host: HostAdapters) -> None:
        host.snapshots.take(self.refs, self.uid, self.marks)

    def undo(self, host: HostAdapters) -> None:
        host.snapshots.release(self.refs, self.uid)

    def revert(self, host: HostAdapters) -> dict[str, str]:
        operation = dict(self.marks).get(OPERATION, "")
        if not host.snapshots.is_made_by(self.refs, self.uid, operation):
            return {KEPT: f"{self._name()} was kept: this operation did not take it"}
        self.undo(host)
        return {}

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        guids = host.snapshots.find_guids(self.refs, self.uid)
        return {f"snapshot guid {uid}": guid for uid, guid in guids.items()}

    def fact(self) -> str:
        return f"{self._name()} exists"

    def describe_do(self) -> str:
        return f"take {self._name()}"

    def describe_undo(self) -> str:
        return f"release {self._name()}"

    def resources(self) -> Resources:
        return Resources(
            datasets=tuple(ref.dataset for ref in self.refs),
            volumes=tuple(ref.uid for ref in self.refs),
        )

    def _name(self) -> str:
        datasets = ", ".join(ref.dataset for ref in self.refs)
        return f"snapshot {self.uid} of {datasets}"


class SnapshotsUnused(Guard, tag="SnapshotsUnused", part="POOL"):
    """No snapshot of the set has a clone or a hold: a policy deletes only such ones.

    `zfs destroy -d` would accept them, and destroy them with the last clone or hold.
    """

    volatile = True
    refs: tuple[SnapshotRef, ...]
    uid: str

    def probe(self, host: HostAdapters) -> bool:
        return not host.snapshots.users(self.refs, self.uid)

    def refusal(self, host: HostAdapters) -> Busy:
        users = host.snapshots.users(self.refs, self.uid)
        return Busy(
            f"snapshot {self.uid} is in use by {', '.join(map(show, users)) or ENDED}",
            reason="DATASET_BUSY",
            users=" ".join(map(show, users)),
        )

    def fact(self) -> str:
        return f"snapshot {self.uid} has no clone and no hold"

    def describe_do(self) -> str:
        return f"check that snapshot {self.uid} has no clone and no hold"

    def resources(self) -> Resources:
        return Resources(
            datasets=tuple(ref.dataset for ref in self.refs),
            volumes=tuple(ref.uid for ref in self.refs),
        )


class Clone(HostStep, tag="Clone", part="POOL"):
    """The zvol exists, is the volume's, and is a clone of a snapshot.

    `own`: the snapshot is taken for this clone only, and released at once: ZFS destroys it together
    with the clone.
    """

    dataset: str
    uid: str
    snapshot_ref: SnapshotRef
    snapshot_uid: str
    own: bool
    properties: Pairs
    marks: Pairs

    def probe(self, host: HostAdapters) -> bool:
        return host.snapshots.has_clone(
            self.dataset,
            uid=self.uid,
            snapshot_ref=self.snapshot_ref,
            snapshot_uid=self.snapshot_uid,
            own=self.own,
        )

    def do(self, host: HostAdapters) -> None:
        host.snapshots.clone(
            self.dataset,
            uid=self.uid,
            snapshot_ref=self.snapshot_ref,
            snapshot_uid=self.snapshot_uid,
            own=self.own,
            properties=self.properties,
            marks=self.marks,
        )

    def undo(self, host: HostAdapters) -> None:
        host.snapshots.destroy_clone(
            self.dataset,
            uid=self.uid,
            snapshot_ref=self.snapshot_ref,
            snapshot_uid=self.snapshot_uid,
            own=self.own,
        )

    def revert(self, host: HostAdapters) -> dict[str, str]:
        origin = f"{self.snapshot_ref.dataset}@zfsilo-{self.snapshot_uid}"
        operation = dict(self.marks).get(OPERATION, "")
        discard_half_made(host, self.dataset, self.uid, operation, (("origin", origin),))
        if host.zfs.has_zvol(self.dataset, uid=self.uid, guid=""):
            kept = host.zfs.why_keep(self.dataset, self.marks)
            if kept:
                return {KEPT: kept}
        self.undo(host)
        return {}

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid)}

    def fact(self) -> str:
        return f"zvol {self.dataset} is a clone of {self.snapshot_ref.dataset}"

    def describe_do(self) -> str:
        source = self.snapshot_ref.dataset
        if self.own:
            return f"clone zvol {source} to {self.dataset}"
        return f"clone snapshot {self.snapshot_uid} of {source} to {self.dataset}"

    def describe_undo(self) -> str:
        return f"destroy clone {self.dataset}"

    def resources(self) -> Resources:
        return Resources(
            datasets=(self.dataset, self.snapshot_ref.dataset),
            volumes=(self.uid, self.snapshot_ref.uid),
        )
