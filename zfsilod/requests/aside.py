"""A former primary: its data are put aside, or it becomes the replica of what it has sent.

Putting aside destroys nothing: the zvol gets another name and another uid, and becomes a volume of
its own, with its snapshots and its clones. The name, the id and the uid of the volume are free for
the replica of the server that was promoted.
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilod.engine import plans
from zfsilod.engine.steps.replica import changed_since
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.record import Record
from zfsilod.model.records import ReplicaOf, Snapshot, Standing, Trashed, Volume
from zfsilod.model.replica import KeptSnapshot
from zfsilod.model.validation import check_etag, check_id
from zfsilod.requests.clones import clone_dependent
from zfsilod.requests.deletion import check_unpublished, published_to
from zfsilod.requests.dependents import recorded_snapshots
from zfsilod.requests.peers import PeerAnswer, known_peers
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.replication import (
    ReplicateVolume,
    kept_for,
    list_kept,
    release,
    replication_of,
    replications,
)
from zfsilod.requests.request import Plan, Request, View, drop, put
from zfsilod.requests.snapshots import dependent, record_removal
from zfsilod.requests.volumes import need_primary, need_served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfsilod.model.records import Change
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

MAX_STEM = 96  # characters of the id of a volume in the name of what is put aside


class AsideInputs(Record):
    """What the promoted peer says, and what the pool keeps for peers."""

    answer: PeerAnswer
    kept: tuple[KeptSnapshot, ...] = ()


class SetAside(Request[AsideInputs]):
    """Put the data of a volume aside that a peer serves, and become the peer's replica."""

    descends = True
    kind = "set-aside"
    id: str
    peer: str
    etag: str = ""

    async def gather(self, context: Context, operation_id: str) -> AsideInputs:
        with context.read() as txn:
            volume = need_primary(txn, self.id)
        context.promoting.pop(volume.uid, None)  # a promotion of this server has ended
        (answer,) = await context.ask_peers(volume, (check_id(self.peer, "server name"),))
        return AsideInputs(answer=answer, kept=await list_kept(context, volume))

    def prerequisites(self, view: View, inputs: AsideInputs) -> Sequence[Request[Any]]:
        volume = need_primary(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        if inputs.answer.outcome != "PRIMARY":
            raise FailedPrecondition(
                f"{self.peer} does not say that it serves {self.id}: nothing is put aside",
                reason="NOT_PROMOTED",
                volume=self.id,
                server=self.peer,
            )
        if not published_to(view.txn, volume):
            return ()
        return (Unpublish(volume=self.id, fence=True, grace_s=0),)

    def continued(self) -> SetAside:
        return self.but(etag="")  # it was compared, and the volume was changed since

    def plan(self, view: View, inputs: AsideInputs) -> Plan:
        txn, volume = view.txn, need_primary(view.txn, self.id)
        aside = self._aside(volume, view)
        replica = self._replica(volume, inputs.answer, view)
        records, claims = _moved(txn, volume, aside)
        sent = replications(txn, volume.uid)
        holders = dict.fromkeys([*(one.peer for one in sent), *_holders(inputs.kept)])
        released = [
            action
            for known in [replication_of(txn, volume, peer) for peer in holders]
            for action in release(volume, known.peer, kept_for(known, inputs.kept))
        ]
        return Plan(
            title=f"put the data of {self.id} aside as {aside.id}: {self.peer} serves it",
            claims=(
                f"volume/{self.id}",
                f"volume/{aside.id}",
                f"uid/{volume.uid}",
                *(f"replication/{one.id}" for one in sent),
                *claims,
            ),
            actions=(*released, *plans.set_aside(volume, aside, aside.epoch, view.operation_id)),
            commit=(
                put(replica),
                put(aside),
                *records,
                *map(drop, sent),
                drop(Standing(id=volume.uid)),
            ),
            revert=(put(volume),),
        )

    def _aside(self, volume: Volume, view: View) -> Volume:
        """Return the volume that has the data from now on; no policy selects it."""
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(view.now))
        stem = f"{self.id[:MAX_STEM].rstrip('._-')}-aside-{moment}"
        taken = view.txn.get(Volume, stem) is not None
        name = f"{stem}-{view.operation_id[-6:].lower()}" if taken else stem
        return volume.but(
            id=name,
            uid=uuid.uuid4().hex,
            dataset=f"{volume.dataset.rpartition('/')[0]}/{name}",
            labels=(),
            hosts=(),
            state="CREATED",
            target="",
            backstore="",
            epoch=max(volume.epoch + 1, view.now),
            term=0,
            term_store="",
            peers=(),
            aside_of=self.id,
            updated_at=view.now,
        )

    def _replica(self, volume: Volume, answer: PeerAnswer, view: View) -> Volume:
        """Return the replica that the peer sends next; it has nothing yet."""
        return volume.but(
            guid="",
            thin=True,
            state="ABSENT",
            filesystem=Filesystem(),
            target="",
            backstore="",
            source_snapshot="",
            source_volume="",
            origin="",
            replica=ReplicaOf(peer=self.peer),
            term=answer.term,
            term_store=answer.term_store,
            peers=known_peers(volume, self.peer),
            updated_at=view.now,
        )


class DemotionInputs(Record):
    """What the peer has, and what the pool keeps for it."""

    answer: PeerAnswer
    kept: tuple[KeptSnapshot, ...] = ()
    newest: KeptSnapshot | None = None  # which the peer has; None: it has not all that is here
    encrypted: bool = False


class DemoteVolume(Request[DemotionInputs]):
    """Send the rest of an unpublished volume to a peer, and become the replica of it.

    Afterwards neither server serves the volume until one of them is promoted.
    """

    kind = "demote"
    id: str
    peer: str
    etag: str = ""
    replicated: bool = False  # the prerequisite has ended
    dry: bool = False  # the plan as if it had

    async def gather(self, context: Context, operation_id: str) -> DemotionInputs:
        with context.read() as txn:
            volume = need_primary(txn, self.id)
        context.promoting.pop(volume.uid, None)  # a promotion of this server has ended
        (answer,) = await context.ask_peers(volume, (check_id(self.peer, "server name"),))
        kept = await list_kept(context, volume)
        there = next((one for one in kept if one.exists and one.guid == answer.guid), None)
        if there is not None:
            look = partial(
                context.machine.replicas.is_unchanged,
                volume.dataset,
                uid=volume.uid,
                snapshot_uid=there.uid,
                guid=there.guid,
            )
            there = there if await context.look(look) else None
        root = await context.look(partial(context.machine.keys.find_root, volume.dataset))
        return DemotionInputs(answer=answer, kept=kept, newest=there, encrypted=bool(root))

    def prerequisites(self, view: View, inputs: DemotionInputs) -> Sequence[Request[Any]]:
        volume = need_served(view, self.id)
        check_etag(self.etag, volume.revision)
        check_unpublished(volume, published_to(view.txn, volume))
        if inputs.newest is not None or self.replicated or self.dry:
            return ()
        return (ReplicateVolume(id=self.id, peer=self.peer),)

    def continued(self) -> DemoteVolume:
        return self.but(etag="", replicated=True)

    def preview(self) -> DemoteVolume:
        return self.but(dry=True)

    def plan(self, view: View, inputs: DemotionInputs) -> Plan:
        txn, volume = view.txn, need_served(view, self.id)
        check_unpublished(volume, published_to(txn, volume))
        newest = inputs.newest
        if newest is None and self.dry:
            newest = KeptSnapshot(uid="0" * 32, guid="1", created_txg=0)
        if newest is None:
            raise changed_since(volume.dataset)
        records = [one for one in recorded_snapshots(txn, volume) if one.uid == newest.uid]
        known = replication_of(txn, volume, self.peer)
        after = volume.but(
            replica=ReplicaOf(
                peer=self.peer,
                snapshot_uid=newest.uid,
                snapshot_guid=newest.guid,
                taken_at=max((one.created_at for one in records), default=known.taken_at),
                received_at=view.now,
                raw=inputs.encrypted,
            ),
            state="CREATED",
            peers=known_peers(volume, self.peer),
            epoch=max(volume.epoch + 1, view.now),
            updated_at=view.now,
        )
        return Plan(
            title=f"hand {self.id} over to {self.peer}",
            claims=(
                f"volume/{self.id}",
                f"uid/{volume.uid}",
                f"replication/{known.id}",
                *(f"snapshot/{one.id}" for one in records),
            ),
            actions=plans.demotion(
                volume,
                after,
                release(volume, self.peer, kept_for(known, inputs.kept)),
                view.operation_id,
            ),
            commit=(
                put(after),
                drop(known),
                drop(Standing(id=volume.uid)),
                *(change for one in records for change in record_removal(one)),
            ),
            revert=(put(volume),),
        )


def _holders(kept: Sequence[KeptSnapshot]) -> Iterator[str]:
    return (peer for one in kept for peer in one.peers)


def _moved(
    txn: Transaction, volume: Volume, aside: Volume
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Return the record changes of the snapshots and clones that go with the zvol; their claims."""
    changes: list[Change] = []
    claims: list[str] = []
    for snapshot in recorded_snapshots(txn, volume):
        moved: Snapshot = snapshot.but(volume=aside.id, volume_uid=aside.uid, peer="")
        changes += [put(moved), drop(dependent(snapshot)), put(dependent(moved))]
        claims.append(f"snapshot/{snapshot.id}")
    for clone in [one for one in txn.scan(Volume) if one.origin == volume.uid]:
        after = clone.but(origin=aside.uid)
        changes += [put(after), drop(clone_dependent(clone)), put(clone_dependent(after))]
        claims.append(f"volume/{clone.id}")
    for trashed in [one for one in txn.scan(Trashed) if one.volume.origin == volume.uid]:
        kept = trashed.but(volume=trashed.volume.but(origin=aside.uid))
        former, now = clone_dependent(trashed.volume), clone_dependent(kept.volume)
        changes += [put(kept), drop(former), put(now)]
        claims.append(f"trash/{trashed.volume.uid}")
    if volume.origin:  # it is a clone itself
        changes += [drop(clone_dependent(volume)), put(clone_dependent(aside))]
    return tuple(changes), tuple(claims)
