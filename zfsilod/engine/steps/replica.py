"""Steps of replication: snapshots that a server keeps for a peer, sends, and receives."""

from __future__ import annotations

from zfsilod.engine.step import KEPT, HostStep
from zfsilod.engine.steps.zfs import discard_half_made
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import RemoteStep, Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import SnapshotRef
    from zfsilod.model.record import Pairs


class KeptForPeer(HostStep, tag="KeptForPeer", part="POOL"):
    """A snapshot has a hold and a bookmark for a peer: zfs-hold(8), zfs-bookmark(8).

    While the peer has this snapshot, the next one can be sent as a difference. A rollback leaves
    both: the peer may have a part of the snapshot, and goes on with that one only.
    """

    snapshot_ref: SnapshotRef
    snapshot_uid: str
    peer: str

    def probe(self, host: HostAdapters) -> bool:
        return host.replicas.is_kept(self.snapshot_ref, self.snapshot_uid, self.peer)

    def do(self, host: HostAdapters) -> None:
        host.replicas.keep(self.snapshot_ref, self.snapshot_uid, self.peer)

    def undo(self, host: HostAdapters) -> None:
        host.replicas.release(self.snapshot_ref, self.snapshot_uid, self.peer)

    def revert(self, host: HostAdapters) -> dict[str, str]:
        if not self.probe(host):
            self.undo(host)
            return {}
        return {KEPT: f"the snapshot stays for {self.peer}: the next replication goes on with it"}

    def fact(self) -> str:
        return f"snapshot {self.snapshot_uid} is kept for {self.peer}"

    def describe_do(self) -> str:
        return f"hold and bookmark snapshot {self.snapshot_uid} for {self.peer}"

    def describe_undo(self) -> str:
        return f"release hold and bookmark of snapshot {self.snapshot_uid} for {self.peer}"

    def resources(self) -> Resources:
        ref = self.snapshot_ref
        return Resources(datasets=(ref.dataset,), volumes=(ref.uid,))


class Sent(RemoteStep, tag="Sent"):
    """The peer has this snapshot of the volume. It stays there, whatever becomes of the operation.

    `base_uid`: of the snapshot that both have, "" when the whole snapshot is sent.
    """

    lasts = True
    snapshot: str  # its id
    base_uid: str
    base_guid: str
    raw: bool
    rate: int  # bytes a second; 0: no limit. It may change while the stream runs: stream_rates.py
    policy: str = ""  # whose rate counts

    def fact(self) -> str:
        return f"{self.server} has snapshot {self.snapshot} of {self.volume}"

    def describe_do(self) -> str:
        what = "what changed until" if self.base_uid else "the whole"
        return f"send {what} snapshot {self.snapshot} of {self.volume} to {self.server}"

    def describe_undo(self) -> str:
        return f"keep: {self.fact()}"

    def resources(self) -> Resources:
        return Resources()


class ReceivedSnapshot(HostStep, tag="ReceivedSnapshot", part="POOL"):
    """The replica has this whole snapshot, as a peer has sent it: zfs-receive(8).

    A rollback leaves what was received: it is not used before it is whole, and the next receive of
    the same snapshot goes on where this one ended. Of a whole one the record is written, and the
    former ones go.
    """

    final = (False,)
    stays = True
    dataset: str
    uid: str  # of the volume, also of its origin
    snapshot_uid: str
    snapshot_guid: str  # "": any, to destroy it
    base_guid: str  # of the snapshot before it, which the replica has; "": it is the first
    raw: bool
    marks: Pairs  # of the zvol; the stream has none
    operation: str  # whose worker gets the stream

    @property
    def waits(self) -> bool:
        return True

    def probe(self, host: HostAdapters) -> bool:
        return host.replicas.has_received(
            self.dataset, uid=self.uid, snapshot_uid=self.snapshot_uid, guid=self.snapshot_guid
        )

    def do(self, host: HostAdapters) -> None:
        host.replicas.receive(
            self.dataset,
            uid=self.uid,
            snapshot_uid=self.snapshot_uid,
            guid=self.snapshot_guid,
            base_guid=self.base_guid,
            raw=self.raw,
            marks=self.marks,
            operation=self.operation,
        )

    def undo(self, host: HostAdapters) -> None:
        host.replicas.destroy_received(
            self.dataset, uid=self.uid, snapshot_uid=self.snapshot_uid, guid=self.snapshot_guid
        )

    def revert(self, host: HostAdapters) -> dict[str, str]:
        discard_half_made(host, self.dataset, self.uid, self.operation, ())
        if not host.replicas.find(self.dataset, uid=self.uid).exists:
            return {}
        return {KEPT: f"what {self.dataset} has is kept: the next replication goes on there"}

    def observed(self, host: HostAdapters, *, made: bool) -> dict[str, str]:
        size = host.zfs.usage(self.dataset)["volsize"]
        return {"guid": host.zfs.find_guid(self.dataset, uid=self.uid), "volsize": str(size)}

    def fact(self) -> str:
        return f"replica {self.dataset} has snapshot {self.snapshot_uid}"

    def describe_do(self) -> str:
        return f"receive snapshot {self.snapshot_uid} into replica {self.dataset}"

    def describe_undo(self) -> str:
        return f"destroy snapshot {self.snapshot_uid} of replica {self.dataset}"

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,), volumes=(self.uid,))
