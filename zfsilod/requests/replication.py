"""Requests on volumes that this server sends to a peer: replicate, and end the replication.

The snapshot of a replication is taken by an operation of its own, and kept until the next one has
arrived. So a transfer that is cut off goes on with the same snapshot, also in a later operation.

The pool tells what is kept for a peer: holds, and bookmarks. So a record that is lost, or older
than the pool, costs no transfer of a whole volume, and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.engine.steps.replica import Sent
from zfsilod.model.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.record import Record
from zfsilod.model.records import Snapshot
from zfsilod.model.replica import MIN_RATE, KeptSnapshot, ReplicaFacts, Replication
from zfsilod.model.validation import check_id
from zfsilod.requests.dependents import recorded_snapshots, recorded_uids
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    record_removal,
    snapshot_of,
    snapshot_steps,
)
from zfsilod.requests.volumes import need_primary, need_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zfsilod.model.records import Action, Operation, Volume
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

MAX_ID = 128
MAX_NUMBER = 20  # digits of a snapshot's number


class PeerState(Record):
    """What the peer has of a volume, and what the pool here keeps."""

    replica: ReplicaFacts = ReplicaFacts()
    encrypted: bool = False
    kept: tuple[KeptSnapshot, ...] = ()
    recorded: tuple[str, ...] = ()  # uids of the snapshots that had a record before the listing

    def is_lost(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot was recorded, and the pool does not have it."""
        uids = {one.uid for one in self.kept if one.exists}
        return snapshot.uid in self.recorded and snapshot.uid not in uids


class ReplicateVolume(Request[PeerState]):
    """Take a snapshot of a volume, and send it to a peer: what differs from the last one.

    A request that differs from the running one by its rate joins it, and changes its rate.
    """

    kind = "replicate"
    id: str
    peer: str  # a server of servers.d
    rate: int | None = (
        None  # bytes a second; 0: no limit; None: the same, or that of the running one
    )
    policy: str = ""  # that sends it, and whose rate counts
    due_at: int = 0  # of a policy: see Replication; 0: as it was
    due_of: str = ""

    def fingerprint(self) -> str:
        return Request.fingerprint(self.but(rate=None))

    def joined(self, view: View, running: Operation) -> Replication | None:
        if self.rate is None or self.policy:
            return None
        known = replication_of(view.txn, need_primary(view.txn, self.id), self.peer)
        created_at = known.created_at or view.now
        return known.but(created_at=created_at, rate=self.rate, rate_of=running.id)

    async def gather(self, context: Context, operation_id: str) -> PeerState:
        need_root(context.settings)
        with context.read() as txn:
            volume = need_primary(txn, self.id)
            recorded = recorded_uids(txn, volume)
        check_id(self.peer, "server name")
        check_rate(self.rate or 0)
        replica = await context.servers.replica(self.peer, self.id, volume.uid, wait=False)
        find_root = partial(context.machine.keys.find_root, volume.dataset)
        return PeerState(
            replica=replica,
            encrypted=bool(await context.look(find_root)),
            kept=await list_kept(context, volume),
            recorded=recorded,
        )

    def prerequisites(self, view: View, inputs: PeerState) -> Sequence[CreateSnapshot]:
        volume = need_primary(view.txn, self.id)
        base = self._base(inputs)  # the first error of this request: no snapshot is taken in vain
        known = replication_of(view.txn, volume, self.peer)
        snapshot_id = snapshot_name(volume, self.peer, self._number(view, known, base, inputs))
        if view.txn.get(Snapshot, snapshot_id) is not None:
            return ()
        return (CreateSnapshot(id=snapshot_id, volume=self.id, peer=self.peer),)

    def plan(self, view: View, inputs: PeerState) -> Plan:
        txn = view.txn
        volume = need_primary(txn, self.id)
        known = replication_of(txn, volume, self.peer).but(
            created_at=view.now, volume=self.id, peer=self.peer, rate=0, rate_of=""
        )
        base = self._base(inputs)
        number = self._number(view, known, base, inputs)
        snapshot = self._snapshot(view, volume, number)
        if base is not None and base.uid == snapshot.uid:
            base = None  # the peer has it
        pending = known.but(pending_uid=snapshot.uid)
        sent = known.but(
            number=number,
            snapshot=snapshot.id,
            snapshot_uid=snapshot.uid,
            snapshot_guid=snapshot.guid,
            taken_at=snapshot.created_at,
            sent_at=view.now,
            pending_uid="",
            due_at=self.due_at or known.due_at,
            due_of=self.due_of if self.due_at else known.due_of,
        )
        gone = _former(txn, volume, self.peer, snapshot.uid)
        send = Sent(
            server=self.peer,
            volume=self.id,
            snapshot=snapshot.id,
            base_uid=base.uid if base else "",
            base_guid=base.guid if base else "",
            raw=inputs.encrypted,
            rate=self.rate or 0,
            policy=self.policy,
        )
        new = KeptSnapshot(uid=snapshot.uid, guid=snapshot.guid, created_txg=0)
        bare = [one for one in (base,) if one is not None and not one.bookmarked]
        released = [one for one in _kept_for(known, inputs.kept) if one.uid != snapshot.uid]
        return Plan(
            title=f"replicate {self.id} to {self.peer}",
            claims=(
                f"replication/{known.id}",
                f"snapshot/{snapshot.id}",
                *(f"snapshot/{one.id}" for one in gone),
            ),
            actions=(
                *plans.up([plans.kept_for_peer(volume, one, self.peer) for one in (new, *bare)]),
                *plans.up([send]),
                *_release(volume, self.peer, dict.fromkeys((*released, *bare))),
                *plans.down(snapshot_steps(txn, *gone)),
            ),
            commit=(put(sent), *(change for one in gone for change in record_removal(one))),
            revert=(put(pending),),
        )

    def _snapshot(self, view: View, volume: Volume, number: int) -> Snapshot:
        snapshot_id = snapshot_name(volume, self.peer, number)
        snapshot = view.txn.get(Snapshot, snapshot_id)
        if snapshot is None:  # a dry run
            return snapshot_of(volume, snapshot_id, "0" * 32, view)
        return snapshot

    def _number(
        self, view: View, known: Replication, base: KeptSnapshot | None, inputs: PeerState
    ) -> int:
        """Return the number of the snapshot that is sent next: the same one until it has arrived.

        A snapshot of this name that a caller took is passed over, and so is one that the pool has
        lost, or that is older than that of the peer: the record may be older than the pool.
        """
        volume = need_primary(view.txn, self.id)
        txgs = {one.uid: one.created_txg for one in inputs.kept}
        least = base.created_txg if base else 0
        for number in count(known.number + 1):
            snapshot = view.txn.get(Snapshot, snapshot_name(volume, self.peer, number))
            if snapshot is None:
                return number
            if (snapshot.volume_uid, snapshot.peer) != (volume.uid, self.peer):
                continue
            if not inputs.is_lost(snapshot) and txgs.get(snapshot.uid, least) >= least:
                return number
        raise AssertionError("there is always a next number")

    def _base(self, inputs: PeerState) -> KeptSnapshot | None:
        """Return the snapshot that both have; None: the peer has none, the whole one is sent.

        Raises FailedPrecondition (NO_COMMON_SNAPSHOT).
        """
        guid = inputs.replica.guid
        if not guid:
            return None
        for one in inputs.kept:
            if one.guid == guid:
                return one
        raise FailedPrecondition(
            f"{self.peer} has {self.id} as of a snapshot that this server does not have (guid "
            f"{guid}): delete the replica there (zfsiloctl volume delete {self.id}), and "
            "replicate again to send the whole volume",
            reason="NO_COMMON_SNAPSHOT",
            volume=self.id,
            server=self.peer,
        )


class EndReplication(Request[tuple[KeptSnapshot, ...]]):
    """Keep nothing of a volume for a peer any more; the replica there stays."""

    descends = True
    kind = "end-replication"
    id: str
    peer: str

    async def gather(self, context: Context, operation_id: str) -> tuple[KeptSnapshot, ...]:
        with context.read() as txn:
            volume = need_primary(txn, self.id)
        try:
            return await list_kept(context, volume)
        except Conflict:
            return ()  # another dataset has its name: nothing of the volume is kept

    def plan(self, view: View, inputs: tuple[KeptSnapshot, ...]) -> Plan:
        txn = view.txn
        volume = need_primary(txn, self.id)
        recorded = txn.get(Replication, f"{volume.uid}/{self.peer}")
        known = replication_of(txn, volume, self.peer)
        released = _kept_for(known, inputs)
        if recorded is None and not released:
            raise NotFound(
                f"{self.id} is not replicated to {self.peer[:128]}",
                reason="NOT_REPLICATED",
                volume=self.id,
            )
        gone = _former(txn, volume, self.peer, "")
        return Plan(
            title=f"end the replication of {self.id} to {self.peer}",
            claims=(
                f"volume/{self.id}",
                f"replication/{known.id}",
                *(f"snapshot/{one.id}" for one in gone),
            ),
            actions=(
                *_release(volume, self.peer, released),
                *plans.down(snapshot_steps(txn, *gone)),
            ),
            commit=(
                *((drop(recorded),) if recorded is not None else ()),
                *(change for one in gone for change in record_removal(one)),
            ),
        )


async def list_kept(context: Context, volume: Volume) -> tuple[KeptSnapshot, ...]:
    """List the snapshots and bookmarks of a volume's zvol, and which peers hold them."""
    look = partial(context.machine.replicas.list_kept, volume.dataset, uid=volume.uid)
    return await context.look(look)


def check_rate(rate: int) -> None:
    """Raise InvalidArgument when a stream of this rate would be too slow; 0: no limit."""
    if rate and rate < MIN_RATE:
        raise InvalidArgument(
            f"invalid rate {rate}: the least is {MIN_RATE} bytes a second; 0 is no limit",
            reason="BAD_RATE",
        )


def replication_of(txn: Transaction, volume: Volume, peer: str) -> Replication:
    """Return the record of a volume and a peer, or a new one."""
    name = f"{volume.uid}/{peer}"
    return txn.get(Replication, name) or Replication(id=name, volume=volume.id, peer=peer)


def snapshot_name(volume: Volume, peer: str, number: int) -> str:
    """Return the id of a snapshot that is sent: of one volume and peer only.

    With a dash in one of the names, `data` to `x-y` would be `data-x` to `y`.
    """
    digest = hashlib.sha256(f"{volume.uid}/{peer}".encode()).hexdigest()
    parts = [volume.id, peer]
    if any("-" in part for part in parts):
        parts.append(digest[:12])
    stem = f"replica-{'-'.join(parts)}"
    if len(stem) + 1 + MAX_NUMBER > MAX_ID:
        stem = f"replica-{digest[:32]}"
    return f"{stem}-{number}"


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


def _kept_for(known: Replication, kept: Sequence[KeptSnapshot]) -> list[KeptSnapshot]:
    """Return what the pool keeps for a peer: by its holds, and bookmarks alone by the record."""
    recorded = (known.snapshot_uid, known.pending_uid)
    return [one for one in kept if known.peer in one.peers or one.uid in recorded]


def _former(txn: Transaction, volume: Volume, peer: str, sent_uid: str) -> list[Snapshot]:
    """Return the snapshots that were taken for a peer, besides the one that is sent."""
    taken = recorded_snapshots(txn, volume)
    return [one for one in taken if one.peer == peer and one.uid != sent_uid]


def _release(volume: Volume, peer: str, kept: Iterable[KeptSnapshot]) -> tuple[Action, ...]:
    """Return the end of what is kept for a peer.

    A hold without its bookmark gets that first: the step would count as undone.
    """
    actions: list[Action] = []
    for one in kept:
        step = plans.kept_for_peer(volume, one, peer)
        bare = one.exists and not one.bookmarked
        actions += [*plans.up([step] if bare else []), *plans.down([step])]
    return tuple(actions)
