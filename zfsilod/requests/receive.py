"""The request of a peer that sends a volume: receive a snapshot into its replica.

The replica has the id and the uid of its origin, and belongs to the peer that has sent it first.
What a peer says of a volume is shown and checked; nothing on this host is named by it but the zvol
below the dataset root.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.names import is_guid, is_uid
from zfsilod.model.pool_space import PoolSpace, check_reserve, check_space
from zfsilod.model.record import Record
from zfsilod.model.records import ReplicaOf, Trashed, Volume
from zfsilod.model.replica import MAX_TERM
from zfsilod.model.validation import check_block_size, check_id, check_size
from zfsilod.requests.dependents import recorded_uids
from zfsilod.requests.request import Growth, Plan, Request, View, put
from zfsilod.requests.volumes import need_root, space

if TYPE_CHECKING:
    from zfsilod.model.host_facts import Filesystem
    from zfsilod.model.replica import ReplicaFacts
    from zfsilod.model.words import Mode
    from zfsilod.requests.context import Context


class ReplicaState(Record):
    """What the pool has of a volume, and its space."""

    facts: ReplicaFacts
    space: PoolSpace
    snapshots: tuple[str, ...] = ()  # uids of those that the replica has


class ReceiveReplica(Request[ReplicaState]):
    """Receive a snapshot of a volume from a peer, whose stream the worker gets."""

    kind = "receive"
    id: str
    peer: str  # subject of the caller
    uid: str
    capacity_bytes: int
    volblocksize: int
    mode: Mode
    filesystem: Filesystem
    snapshot_uid: str
    snapshot_guid: str
    base_guid: str = ""
    raw: bool = False
    taken_at: int = 0
    term: int = 0  # of the primary that sends it
    term_store: str = ""
    stream: str = ""  # id of the attempt: two attempts are not one request

    async def gather(self, context: Context, operation_id: str) -> ReplicaState:
        root = need_root(context.settings)
        self._check()
        recorded: tuple[str, ...] = ()
        with context.read() as txn:
            existing = txn.get(Volume, self.id)
            if existing is not None:
                recorded = recorded_uids(txn, existing)
        if existing is not None:  # before its zvol is looked at
            self._check_own(existing)
        replicas, dataset = context.machine.replicas, f"{root}/{self.id}"
        listed = await context.look(partial(replicas.list_kept, dataset, uid=self.uid))
        return ReplicaState(
            facts=await context.look(partial(replicas.find, dataset, uid=self.uid)),
            space=await space(context),
            # Snapshots with a record are of the time when this server was the primary.
            snapshots=tuple(one.uid for one in listed if one.exists and one.uid not in recorded),
        )

    def plan(self, view: View, inputs: ReplicaState) -> Plan:
        existing = view.txn.get(Volume, self.id)
        if existing is not None:
            self._check_own(existing)
            self._check_term(existing)
        else:
            self._check_new(view, inputs.facts)
        facts, replica = inputs.facts, self._replica(view)
        volume = self._volume(view, existing)
        before = existing.capacity_bytes if existing is not None else 0
        left = inputs.space
        check_space(volume, left, view.settings, view.txn.promised(), before=before)
        check_reserve(left, view.settings, f"replica {self.id}")  # also what does not grow it
        if facts.guid != self.snapshot_guid and facts.guid != self.base_guid:
            raise FailedPrecondition(
                f"replica {self.id} has the snapshot with the guid {facts.guid or '(none)'}, and "
                f"the stream begins at {self.base_guid or '(none)'}: replicate again",
                reason="NO_COMMON_SNAPSHOT",
                volume=self.id,
            )
        received = volume.but(state="CREATED", replica=replica, updated_at=view.now)
        former = [uid for uid in inputs.snapshots if uid != self.snapshot_uid]
        known = existing if existing is not None and facts.exists else received
        return Plan(
            title=f"receive {self.id} from {self.peer}",
            claims=(f"volume/{self.id}", f"uid/{self.uid}"),
            actions=(
                *plans.up([plans.received(received, self.base_guid, view.operation_id)]),
                *plans.mark_changes(known, received),  # of another term
                *plans.received_gone(received, former),
            ),
            commit=(put(received),),
            revert=(put(volume),) if existing is None else (),
            growth=Growth(promises=max(0, self.capacity_bytes - before)),
        )

    def _check(self) -> None:
        check_id(self.id, "volume id")
        check_size(
            self.capacity_bytes, 0, check_block_size({"volblocksize": str(self.volblocksize)}, 0)
        )
        uids, guids = (self.uid, self.snapshot_uid), (self.snapshot_guid, self.base_guid or "1")
        if not (all(map(is_uid, uids)) and all(map(is_guid, guids))):
            raise InvalidArgument(
                "a uid has 32 hexadecimal digits, a guid decimal digits", reason="BAD_REPLICA"
            )
        if not (0 <= self.term <= MAX_TERM and (not self.term_store or is_uid(self.term_store))):
            raise InvalidArgument("the term of the primary is not valid", reason="BAD_REPLICA")

    def _check_own(self, existing: Volume) -> None:
        """Raise AlreadyExists unless this is the replica of this volume, sent by this peer.

        Another peer of the volume may send it too, after it was promoted.
        """
        promoted = existing.is_replica and self.peer in existing.peers and self._is_later(existing)
        if existing.uid != self.uid or not (promoted or existing.replica.peer == self.peer):
            of = f"a replica from {existing.replica.peer}" if existing.is_replica else "its own"
            raise AlreadyExists(
                f"volume {self.id} exists on this server, and is {of}: delete it, or send another",
                reason="OTHER_VOLUME",
                volume=self.id,
            )

    def _is_later(self, existing: Volume) -> bool:
        return (self.term, self.term_store) > (existing.term, existing.term_store)

    def _check_term(self, existing: Volume) -> None:
        """Raise FailedPrecondition when a former primary sends what a later one has replaced."""
        if (self.term, self.term_store) < (existing.term, existing.term_store):
            raise FailedPrecondition(
                f"replica {self.id} knows of a later promotion than {self.peer}: nothing is "
                "received from a former primary",
                reason="STALE_TERM",
                volume=self.id,
            )

    def _check_new(self, view: View, facts: ReplicaFacts) -> None:
        """Raise AlreadyExists when a volume, or one in the trash, has the uid or the zvol."""
        deleted = (trashed.volume for trashed in view.txn.scan(Trashed))
        for volume in (*view.txn.scan(Volume), *deleted):
            if volume.uid == self.uid:
                raise AlreadyExists(
                    f"this server has the volume itself, as {volume.id}: it cannot be its replica",
                    reason="OTHER_VOLUME",
                    volume=volume.id,
                )
        if facts.exists:
            raise FailedPrecondition(
                f"the zvol of {self.id} exists without a record: run zfsiloctl adopt --all on this "
                "server, then replicate again",
                reason="NO_RECORD",
                volume=self.id,
            )

    def _replica(self, view: View) -> ReplicaOf:
        return ReplicaOf(
            peer=self.peer,
            snapshot_uid=self.snapshot_uid,
            snapshot_guid=self.snapshot_guid,
            taken_at=self.taken_at,
            received_at=view.now,
            raw=self.raw,
        )

    def _volume(self, view: View, existing: Volume | None) -> Volume:
        if existing is not None:
            sent_by = existing.replica.but(peer=self.peer)
            return existing.but(
                capacity_bytes=self.capacity_bytes,
                volblocksize=self.volblocksize,
                mode=self.mode,
                filesystem=self.filesystem,
                replica=sent_by,
                term=self.term,
                term_store=self.term_store,
            )
        return Volume(
            id=self.id,
            uid=self.uid,
            dataset=f"{view.settings.root}/{self.id}",
            capacity_bytes=self.capacity_bytes,
            thin=True,
            mode=self.mode,
            volblocksize=self.volblocksize,
            filesystem=self.filesystem,
            replica=ReplicaOf(peer=self.peer, raw=self.raw),
            term=self.term,
            term_store=self.term_store,
            created_at=view.now,
            updated_at=view.now,
        )
