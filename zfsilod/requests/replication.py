"""Requests on volumes that this server sends to a peer: replicate, and end the replication.

The snapshot of a replication is taken by an operation of its own, and kept until the next one has
arrived. So a transfer that is cut off goes on with the same snapshot, also in a later operation.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.replica import Sent
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.record import Record
from zfsilod.model.records import Snapshot
from zfsilod.model.replica import ReplicaFacts, Replication
from zfsilod.model.validation import check_id
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    record_removal,
    snapshot_of,
    snapshot_steps,
)
from zfsilod.requests.volumes import need_primary, need_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.records import Step, Volume
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

MAX_ID = 128
MIN_RATE = 1 << 16  # bytes a second: a slower stream would seem to be silent


class PeerState(Record):
    """What the peer has of a volume, and whether the zvol here is encrypted."""

    replica: ReplicaFacts = ReplicaFacts()
    encrypted: bool = False


class ReplicateVolume(Request[PeerState]):
    """Take a snapshot of a volume, and send it to a peer: what differs from the last one."""

    kind = "replicate"
    id: str
    peer: str  # a server of servers.d
    rate: int = 0  # bytes a second; 0: no limit
    due_at: int = 0  # of a policy: see Replication; 0: as it was
    due_of: str = ""

    async def gather(self, context: Context, operation_id: str) -> PeerState:
        need_root(context.settings)
        with context.read() as txn:
            volume = need_primary(txn, self.id)
        check_id(self.peer, "server name")
        check_rate(self.rate)
        replica = await context.servers.replica(self.peer, self.id, volume.uid, wait=False)
        find_root = partial(context.machine.keys.find_root, volume.dataset)
        return PeerState(replica=replica, encrypted=bool(await context.look(find_root)))

    def prerequisites(self, view: View, inputs: PeerState) -> Sequence[CreateSnapshot]:
        volume = need_primary(view.txn, self.id)
        known = replication_of(view.txn, volume, self.peer)
        snapshot_id = next_snapshot(volume, known)
        if view.txn.get(Snapshot, snapshot_id) is not None:
            return ()
        # The first error of this request, so that no snapshot is taken in vain.
        self._base(known, "", inputs.replica)
        return (CreateSnapshot(id=snapshot_id, volume=self.id),)

    def plan(self, view: View, inputs: PeerState) -> Plan:
        txn = view.txn
        volume = need_primary(txn, self.id)
        known = replication_of(txn, volume, self.peer).but(
            created_at=view.now, volume=self.id, peer=self.peer
        )
        snapshot = self._snapshot(view, volume, known)
        base_uid, base_guid = self._base(known, snapshot.guid, inputs.replica)
        pending = known.but(pending_uid=snapshot.uid)
        sent = known.but(
            number=known.number + 1,
            snapshot=snapshot.id,
            snapshot_uid=snapshot.uid,
            snapshot_guid=snapshot.guid,
            taken_at=snapshot.created_at,
            sent_at=view.now,
            pending_uid="",
            due_at=self.due_at or known.due_at,
            due_of=self.due_of if self.due_at else known.due_of,
        )
        former = txn.get(Snapshot, known.snapshot) if known.snapshot else None
        of_volume = former is not None and former.volume_uid == volume.uid
        gone = [former] if former is not None and of_volume else []
        send = Sent(
            server=self.peer,
            volume=self.id,
            snapshot=snapshot.id,
            base_uid=base_uid,
            base_guid=base_guid,
            raw=inputs.encrypted,
            rate=self.rate,
        )
        return Plan(
            title=f"replicate {self.id} to {self.peer}",
            claims=(
                f"replication/{known.id}",
                f"snapshot/{snapshot.id}",
                *(f"snapshot/{one.id}" for one in gone),
            ),
            actions=(
                *plans.up([_kept(volume, snapshot.uid, snapshot.guid, self.peer), send]),
                *plans.down([*snapshot_steps(txn, *gone), *_released(volume, known, snapshot.uid)]),
            ),
            commit=(put(sent), *(change for one in gone for change in record_removal(one))),
            revert=(put(pending),),
        )

    def _snapshot(self, view: View, volume: Volume, known: Replication) -> Snapshot:
        snapshot_id = next_snapshot(volume, known)
        snapshot = view.txn.get(Snapshot, snapshot_id)
        if snapshot is None:  # a dry run
            return snapshot_of(volume, snapshot_id, "0" * 32, view)
        if snapshot.volume_uid != volume.uid:
            raise FailedPrecondition(
                f"snapshot {snapshot_id} is of another volume: delete it, and replicate again",
                reason="SNAPSHOT_TAKEN",
                snapshot=snapshot_id,
            )
        return snapshot

    def _base(self, known: Replication, guid: str, replica: ReplicaFacts) -> tuple[str, str]:
        """Return uid and guid of the snapshot that both have, "": the whole one is sent.

        Raises FailedPrecondition (NO_COMMON_SNAPSHOT).
        """
        if not replica.guid or replica.guid == guid:
            return ("", "")
        if replica.guid == known.snapshot_guid:
            return known.snapshot_uid, known.snapshot_guid
        if not guid:  # it may be the snapshot that the prerequisite finds again
            return ("", "")
        raise FailedPrecondition(
            f"{self.peer} has {self.id} as of a snapshot that this server does not know (guid "
            f"{replica.guid}): delete the replica there (zfsiloctl volume delete {self.id}), and "
            "replicate again to send the whole volume",
            reason="NO_COMMON_SNAPSHOT",
            volume=self.id,
            server=self.peer,
        )


class EndReplication(Request[None]):
    """Keep nothing of a volume for a peer any more; the replica there stays."""

    descends = True
    kind = "end-replication"
    id: str
    peer: str

    def plan(self, view: View, inputs: None) -> Plan:
        txn = view.txn
        volume = need_primary(txn, self.id)
        known = txn.get(Replication, f"{volume.uid}/{self.peer}")
        if known is None:
            raise NotFound(
                f"{self.id} is not replicated to {self.peer[:128]}",
                reason="NOT_REPLICATED",
                volume=self.id,
            )
        names = (known.snapshot, next_snapshot(volume, known))
        snapshots = [txn.get(Snapshot, name) for name in names if name]
        gone = [one for one in snapshots if one is not None and one.volume_uid == volume.uid]
        return Plan(
            title=f"end the replication of {self.id} to {self.peer}",
            claims=(
                f"volume/{self.id}",
                f"replication/{known.id}",
                *(f"snapshot/{one.id}" for one in gone),
            ),
            actions=plans.down([*snapshot_steps(txn, *gone), *_released(volume, known, "")]),
            commit=(drop(known), *(change for one in gone for change in record_removal(one))),
        )


def check_rate(rate: int) -> None:
    """Raise InvalidArgument when a stream of this rate would be too slow; 0 is no limit."""
    if rate and rate < MIN_RATE:
        raise InvalidArgument(
            f"invalid rate {rate}: the least is {MIN_RATE} bytes a second; 0 is no limit",
            reason="BAD_RATE",
        )


def replication_of(txn: Transaction, volume: Volume, peer: str) -> Replication:
    """Return the record of a volume and a peer, or a new one."""
    name = f"{volume.uid}/{peer}"
    return txn.get(Replication, name) or Replication(id=name, volume=volume.id, peer=peer)


def next_snapshot(volume: Volume, known: Replication) -> str:
    """Return the id of the snapshot that is sent next: the same one until it has arrived."""
    name = f"replica-{volume.id}-{known.peer}-{known.number + 1}"
    if len(name) <= MAX_ID:
        return name
    digest = hashlib.sha256(known.id.encode()).hexdigest()[:32]
    return f"replica-{digest}-{known.number + 1}"


def replications(txn: Transaction, volume_uid: str) -> list[Replication]:
    """Return to which peers a volume is replicated."""
    return list(txn.scan_below(Replication, volume_uid))


def check_not_replicated(txn: Transaction, volume: Volume) -> None:
    """Raise FailedPrecondition while snapshots of a volume are kept for a peer."""
    peers = [one.peer for one in replications(txn, volume.uid)]
    begun = f"replication/{volume.uid}/"  # the claim of one that has no record yet
    claims = (claim for operation in txn.live() for claim in operation.claims)
    peers += [claim.removeprefix(begun) for claim in claims if claim.startswith(begun)]
    if peers:
        raise FailedPrecondition(
            f"{volume.id} is replicated to {', '.join(peers)}: run zfsiloctl volume replicate "
            f"{volume.id} --to {peers[0]} --end first; the replica stays",
            reason="REPLICATED",
            volume=volume.id,
        )


def _kept(volume: Volume, uid: str, guid: str, peer: str) -> Step:
    ref = SnapshotRef(dataset=volume.dataset, uid=volume.uid, guid=guid)
    return plans.kept_for_peer(ref, uid, peer)


def _released(volume: Volume, known: Replication, sent_uid: str) -> list[Step]:
    """Return the steps of all snapshots that are kept for a peer, besides the one that is sent."""
    kept = {known.snapshot_uid: known.snapshot_guid, known.pending_uid: ""}
    return [
        _kept(volume, uid, guid, known.peer)
        for uid, guid in kept.items()
        if uid not in ("", sent_uid)
    ]
