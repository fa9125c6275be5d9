"""The promotion of a replica: from then on this server serves the volume.

Each promotion has a term that is larger than all that this server and its peers know. A former
primary that comes back sees it, serves nothing, and puts its own data aside (requests/aside.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zfsilod.engine import plans
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.ownership import IDENTITY, StoreIdentity
from zfsilod.model.record import Record
from zfsilod.model.records import ReplicaOf, Snapshot, Standing, Volume, VolumeKey
from zfsilod.model.validation import check_etag
from zfsilod.requests.peers import (
    ROLE_CHANGES,
    PeerAnswer,
    judge,
    known_peers,
    promoting,
)
from zfsilod.requests.replication import snapshot_name
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.snapshots import dependent, snapshot_of
from zfsilod.requests.volumes import need_volume
from zfsilod.storage.volume_view import standing_of

if TYPE_CHECKING:
    from zfsilod.model.records import Action, Change, Operation
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Preemption

INTENT_S = 25.0  # until the operation is stored, which a write may take; a peer asks again
NO_STORE = "0" * 32


class PromotionInputs(Record):
    """What the peers say of the volume."""

    answers: tuple[PeerAnswer, ...]


class PromoteVolume(Request[PromotionInputs]):
    """Serve a volume on this server: a replica, or a volume whose peers do not answer.

    `primary_is_off`: the caller knows that each server which does not answer is off, or does not
    serve the volume.
    """

    kind = "promote"
    id: str
    primary_is_off: bool = False
    etag: str = ""

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        volume = view.txn.get(Volume, self.id)
        if volume is None or volume.is_replica:
            return None
        standing = standing_of(view.txn, volume)
        return () if standing is None or standing.boot_id == view.boot_id else None

    async def gather(self, context: Context, operation_id: str) -> PromotionInputs:
        with context.read() as txn:
            volume = need_volume(txn, self.id)
        # From now on a peer that asks gets no answer, so that it cannot begin to serve meanwhile.
        context.promoting[volume.uid] = time.monotonic() + INTENT_S
        answers = await context.ask_peers(volume, known_peers(volume))
        return PromotionInputs(answers=answers)

    def plan(self, view: View, inputs: PromotionInputs) -> Plan:
        volume = need_volume(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        if volume.is_replica and not (volume.state == "CREATED" and volume.replica.snapshot_guid):
            raise FailedPrecondition(
                f"replica {self.id} cannot be promoted: it has no whole snapshot yet",
                reason="NOTHING_RECEIVED",
                volume=self.id,
            )
        self._check(volume, inputs.answers)
        if not volume.is_replica and not judge(volume, inputs.answers)[0]:
            return self._served(volume, view)
        after = self._promoted(volume, inputs.answers, view)
        actions: tuple[Action, ...]
        commit: tuple[Change, ...] = (put(after), _standing(volume, view))
        if volume.is_replica:
            actions = plans.promotion(volume, after, view.operation_id)
            commit = (*commit, *_last_received(volume, view))
            title = f"promote replica {self.id}, as of {_as_of(volume.replica.taken_at)}"
        else:
            first = plans.epoch(volume, after.epoch, view.operation_id)
            actions = (*plans.up([first]), *plans.mark_changes(volume, after))
            title = f"serve {self.id} without its peers"
        return Plan(
            title=title,
            claims=(f"volume/{self.id}", f"uid/{volume.uid}"),
            actions=actions,
            commit=commit,
            revert=(put(volume),),
        )

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        # The stream of a server that is off would be waited for for minutes. What is left of an
        # operation from before a boot waits for the word of the peers, which this request replaces.
        return () if owner.kind in ROLE_CHANGES else ("CANCEL", "RETRY_ROLLBACK")

    def _check(self, volume: Volume, answers: tuple[PeerAnswer, ...]) -> None:
        for answer in answers:
            if answer.outcome == "BUSY":
                raise promoting(self.id)
            if answer.outcome == "PRIMARY":
                raise FailedPrecondition(
                    f"{answer.peer} answers, and serves {self.id}: run `zfsiloctl volume demote "
                    f"{self.id} --to` with the name of this server there first",
                    reason="PRIMARY_SERVES",
                    volume=self.id,
                    server=answer.peer,
                )
        unsure = [a for a in answers if a.outcome == "SILENT" or a.is_later_than(volume)]
        if unsure and not self.primary_is_off:
            first = unsure[0]
            why = first.why or f"{first.peer} knows of a later promotion on another server"
            raise FailedPrecondition(
                f"it is not known whether another server serves {self.id} ({why}); when it is off, "
                f"run `zfsiloctl volume promote {self.id} --primary-is-off`",
                reason="PRIMARY_UNKNOWN",
                volume=self.id,
                server=first.peer,
            )

    def _served(self, volume: Volume, view: View) -> Plan:
        """Return the plan for a volume of which all peers say that they do not serve it."""
        return Plan(
            title=f"serve {self.id}",
            claims=(f"volume/{self.id}",),
            commit=(_standing(volume, view),),
        )

    def _promoted(self, volume: Volume, answers: tuple[PeerAnswer, ...], view: View) -> Volume:
        term = max(volume.term, *(answer.term for answer in answers), 0)
        identity = view.txn.get(StoreIdentity, IDENTITY)
        key = view.txn.get(VolumeKey, volume.uid) if volume.replica.raw else None
        return volume.but(
            replica=ReplicaOf(),
            term=max(term + 1, view.now),
            term_store=identity.store_id if identity is not None else NO_STORE,
            peers=known_peers(volume),
            epoch=max(volume.epoch + 1, view.now),
            key_uid=volume.key_uid or (key.id if key is not None else ""),
            updated_at=view.now,
        )


def _standing(volume: Volume, view: View) -> Change:
    return put(Standing(id=volume.uid, boot_id=view.boot_id))


def _last_received(volume: Volume, view: View) -> tuple[Change, ...]:
    """Return the record of the snapshot that was received last: an ordinary one from now on.

    It is the base of the first replication back, which deletes it when it has arrived.
    """
    replica = volume.replica
    peer = replica.peer.rpartition("/")[2]
    names = (snapshot_name(volume, peer, 0), f"promoted-{replica.snapshot_uid}")
    name = next((one for one in names if view.txn.get(Snapshot, one) is None), "")
    if not name:
        return ()
    received = snapshot_of(volume, name, replica.snapshot_uid, view)
    snapshot = received.but(guid=replica.snapshot_guid, peer=peer, created_at=replica.taken_at)
    return (put(snapshot), put(dependent(snapshot)))


def _as_of(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
