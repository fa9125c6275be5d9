"""The adapter of replication: streams of zfs send, on the server that sends and on its peer."""

from __future__ import annotations

from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zfsilod.model.host_facts import SnapshotRef
    from zfsilod.model.record import Pairs
    from zfsilod.model.replica import KeptSnapshot, ReplicaFacts, SendJob


class ReplicaAdapter(Protocol):
    """Streams of zvols: zfs-send(8), zfs-receive(8), zfs-hold(8), zfs-bookmark(8).

    A stream is a descriptor, which only zfs reads or writes; a receive looks at its first header.
    """

    def list_kept(self, dataset: str, *, uid: str) -> tuple[KeptSnapshot, ...]:
        """List the snapshots and bookmarks of zfsilo of a zvol; none without the zvol.

        Raises Conflict (NOT_OURS) for another dataset of this name.
        """

    def is_kept(self, ref: SnapshotRef, uid: str, peer: str) -> bool:
        """Tell whether a snapshot has a hold and a bookmark for a peer."""

    def keep(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        """Give a snapshot a hold and a bookmark. Raises FailedPrecondition (LOST) without it."""

    def release(self, ref: SnapshotRef, uid: str, peer: str) -> None:
        """Remove hold and bookmark; a snapshot that was released before vanishes with the hold."""

    def matches(self, job: SendJob) -> bool:
        """Tell whether the token of a job continues a stream of exactly this job."""

    def find_size(self, job: SendJob) -> int:
        """Return about how many bytes the stream of a job has."""

    def send(self, job: SendJob, output: int) -> None:
        """Write the stream of a job to a descriptor.

        Raises FailedPrecondition (LOST) without the snapshot or its base, and Unavailable
        (STREAM_CUT) when the other end closes it.
        """

    def has_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> bool:
        """Tell whether a replica has a whole snapshot; it must have this guid, "": any."""

    def receive(
        self,
        dataset: str,
        *,
        uid: str,
        snapshot_uid: str,
        guid: str,
        base_guid: str,
        raw: bool,
        marks: Pairs,
        operation: str,
    ) -> None:
        """Receive a snapshot from the stream of an operation; keep what came when it is cut off.

        Raises FailedPrecondition (OTHER_STREAM) for a stream of another snapshot or base, and
        (REPLICA_CHANGED) for a replica that was written to, ResourceExhausted (NO_SPACE), and
        Unavailable (STREAM_CUT).
        """

    def destroy_received(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> None:
        """Destroy a snapshot of a replica, and what is left of an unfinished receive of it.

        With its last snapshot the zvol is destroyed.
        """

    def has_ended(self, dataset: str, *, uid: str) -> bool:
        """Tell whether nothing is half received into a zvol, and its snapshots have their mark."""

    def end_receive(self, dataset: str, *, uid: str) -> None:
        """Drop what is half received into a zvol, and mark its whole snapshots, which stay."""

    def is_unchanged(self, dataset: str, *, uid: str, snapshot_uid: str, guid: str) -> bool:
        """Tell whether this is the newest snapshot of a zvol, and nothing was written since it."""

    def find(self, dataset: str, *, uid: str) -> ReplicaFacts:
        """Return what the pool has of a volume."""


def no_stream(operation: str) -> int:
    """Raise the error for an operation that has no stream: its peer is gone, or the daemon is."""
    raise Unavailable(
        f"no stream comes for operation {operation}: the connection of the peer has ended; "
        "replicate again",
        reason="STREAM_CUT",
    )


def stream_cut(dataset: str, why: str) -> Unavailable:
    """Return the error for a stream that ended before its end."""
    return Unavailable(
        f"the stream of {dataset} was cut off: {why}; what was received is kept, replicate again "
        "to go on",
        reason="STREAM_CUT",
    )
