"""Deletion of volumes: at once, or into the trash, from which `undelete` restores them.

A zvol with snapshots or clones cannot be destroyed, and no snapshot is destroyed with it. The
deletion of such a volume is refused (REFUSE), or (KEEP) the zvol is renamed to
`<root>/.trash/<uid>`: its name is free, no list shows it, and it is destroyed after the last of its
dependents. With a retention time every deletion goes through the trash. A rename can be reverted,
by a rollback or by `undelete`.

Of a volume whose zvol vanished, or was replaced by another dataset, the record alone can be
deleted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from zfsilod.engine import plans
from zfsilod.engine.steps.users import ZvolUnused
from zfsilod.model.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound
from zfsilod.model.records import Publication, Standing, Trashed, Volume, VolumeKey
from zfsilod.model.sizes import show_round
from zfsilod.model.validation import check_etag, check_id
from zfsilod.requests.clones import clone_dependent
from zfsilod.requests.dependents import (
    ZFSILO_SNAPSHOT,
    ZvolDependents,
    all_dependents,
    dependents_of,
    has_dependents,
    lost_snapshots,
    own_dependents,
    recorded_uids,
    zvol_dependents,
)
from zfsilod.requests.lost_snapshots import claims_on, forgotten
from zfsilod.requests.publications import Unpublish
from zfsilod.requests.replication import check_not_replicated
from zfsilod.requests.request import Plan, Preemption, Request, View, drop, drop_secret, put
from zfsilod.requests.volumes import need_volume

if TYPE_CHECKING:
    from zfsilod.model.records import Change, Operation
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

Dependents = Literal["REFUSE", "KEEP"]
FOLDER = ".trash"


class DeleteVolume(Request[ZvolDependents]):
    """Destroy an unpublished volume and its data, or move it into the trash.

    `record_only`: delete the record of a volume whose zvol vanished; no data are touched.
    `unpublish`: withdraw the volume from all hosts in the same operation; refused, as Unpublish
    is, while one of them is logged in.
    """

    descends = True
    kind = "delete"
    id: str
    etag: str = ""
    dependents: Dependents = "REFUSE"
    record_only: bool = False
    unpublish: bool = False

    def authorise(self, view: View) -> None:
        if self.unpublish:
            self._withdrawal.authorise(view)

    async def gather(self, context: Context, operation_id: str) -> ZvolDependents:
        with context.read() as txn:
            volume = need_volume(txn, self.id)
            recorded = recorded_uids(txn, volume)
        dependents = await context.look(partial(own_dependents, context.machine, volume))
        dependents = dependents.but(recorded=recorded)
        if not self.unpublish:
            return dependents
        return dependents.but(paths=await self._withdrawal.gather(context, operation_id))

    def plan(self, view: View, inputs: ZvolDependents) -> Plan:
        volume = need_volume(view.txn, self.id)
        check_etag(self.etag, volume.revision)
        hosts = published_to(view.txn, volume)
        if not (hosts and self.unpublish):
            check_unpublished(volume, hosts)
            return self._deletion(volume, view, inputs)
        withdrawal = self._withdrawal.plan_before(view, inputs.paths, trash_of(volume))
        deletion = self._deletion(withdrawal.leaves(Volume), view, inputs)
        title = f"{deletion.title}, unpublished from {', '.join(hosts)}"
        return Plan.joined(title, (withdrawal, deletion))

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        return self._withdrawal.preempts(owner) if self.unpublish else ()

    @property
    def _withdrawal(self) -> Unpublish:
        return Unpublish(volume=self.id)

    def _deletion(self, volume: Volume, view: View, inputs: ZvolDependents) -> Plan:
        """Return the plan for a volume as it is, or as its withdrawal leaves it."""
        check_not_replicated(view.txn, volume)
        if volume.is_replica and not self.record_only and not inputs.foreign:
            recorded = dependents_of(view.txn, volume)
            if recorded:  # of the time when it was the primary
                raise has_dependents(volume, recorded, "they are not from its peer")
            return self._replica_deletion(volume, inputs)
        names = all_dependents(view.txn, volume, inputs)
        if names and self.dependents == "REFUSE":
            raise has_dependents(volume, names)
        title, claims = f"delete {self.id}", (f"volume/{self.id}",)
        if self.record_only:
            check_lost(volume, inputs)
            return Plan(
                title=f"delete the record of {self.id}, and touch no data",
                claims=claims,
                commit=(drop(volume), *released(volume)),
            )
        if inputs.foreign:
            raise Conflict(
                f"{inputs.foreign}; run `zfsiloctl volume delete {self.id} --record-only` to "
                "delete the record alone",
                reason="NOT_OURS",
                volume=self.id,
            )
        titled = f"{title} ({show_round(volume.capacity_bytes)})"
        cloned = has_key_of_origin(volume)
        if names and cloned:
            raise has_dependents(volume, names, "ZFS does not move a clone of an encrypted volume")
        if inputs.lost or cloned or not (names or view.settings.trash_retention_s):
            erased = () if inputs.lost else erased_key(view.txn, volume)
            data = "its data, and its key" if erased else "its data"
            gone = lost_snapshots(view.txn, volume, inputs)
            note = ": ZFS moves no encrypted clone to the trash"
            kept = note if cloned and view.settings.trash_retention_s else ""
            return Plan(
                title=title if inputs.lost else f"{titled} and {data}{kept}",
                claims=(*claims, *claims_on(gone)),
                actions=plans.destruction(volume),
                commit=(drop(volume), *released(volume), *erased, *forgotten(view.txn, gone)),
            )
        return _into_trash(f"{titled}, into the trash", volume, view)

    def _replica_deletion(self, volume: Volume, inputs: ZvolDependents) -> Plan:
        """Return the plan for a replica: with the snapshots that it has from its peer."""
        own = {
            name.rpartition("-")[2]: name
            for name in inputs.dependents
            if ZFSILO_SNAPSHOT.search(name)
        }
        others = [name for name in inputs.dependents if name not in own.values()]
        if others:
            raise has_dependents(volume, others, "they are not from its peer")
        return Plan(
            title=f"delete replica {self.id} and its data",
            claims=(f"volume/{self.id}",),
            # The guards come first: with the last snapshot the zvol is destroyed.
            actions=(
                *plans.up([plans.not_exported(volume), plans.not_newer(volume)]),
                *plans.up([ZvolUnused(dataset=volume.dataset)] if own else []),
                *plans.received_gone(volume, own),
                *plans.down([plans.zvol(volume)]),
            ),
            commit=(drop(volume),),
        )


def _into_trash(title: str, volume: Volume, view: View) -> Plan:
    """Return the plan that moves a volume into the trash."""
    trash = trash_of(volume)
    trashed = Trashed(
        id=f"{volume.id}/{volume.uid}",
        volume=volume.but(dataset=trash),
        home=volume.dataset,
        deleted_at=view.now,
        purge_at=view.now + view.settings.trash_retention_s,
        clock_trusted=view.clock_trusted,
    )
    return Plan(
        title=title,
        claims=(f"volume/{volume.id}", f"trash/{volume.uid}"),
        actions=plans.up(
            [
                plans.not_exported(volume),
                plans.not_newer(volume),
                ZvolUnused(dataset=volume.dataset),
                plans.in_trash(volume, volume.dataset, trash),
            ]
        ),
        commit=(drop(volume), put(trashed)),
    )


def trash_of(volume: Volume) -> str:
    """Return the name of a volume's zvol in the trash."""
    return f"{volume.dataset.rpartition('/')[0]}/{FOLDER}/{volume.uid}"


class UndeleteVolume(Request[None]):
    """Restore a volume from the trash under its name."""

    kind = "undelete"
    id: str
    uid: str = ""  # "": the volume of this name that was deleted last

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "volume id")
        trashed = self._trashed(view)
        if view.txn.get(Volume, self.id):
            raise AlreadyExists(
                f"another volume is named {self.id}: delete it first", volume=self.id
            )
        volume = trashed.volume.but(dataset=trashed.home, updated_at=view.now)
        return Plan(
            title=f"undelete {self.id}",
            claims=(f"volume/{self.id}", f"trash/{volume.uid}"),
            actions=plans.down([plans.in_trash(volume, trashed.home, trashed.volume.dataset)]),
            commit=(
                put(volume),
                drop(trashed),
                # A peer that was asked while it was in the trash may have been promoted since.
                *((put(Standing(id=volume.uid)),) if volume.peers else ()),
            ),
        )

    def _trashed(self, view: View) -> Trashed:
        of_name = view.txn.scan_below(Trashed, self.id)
        matches = [trashed for trashed in of_name if self.uid in ("", trashed.volume.uid)]
        if not matches:
            kept = view.settings.trash_retention_s
            why = "" if kept else "; this host keeps no deleted volume (server.trash_retention_s)"
            raise NotFound(f"{self.id} is not in the trash{why}", volume=self.id)
        return max(matches, key=lambda trashed: trashed.deleted_at)


class PurgeVolume(Request[ZvolDependents]):
    """Destroy a volume in the trash."""

    descends = True
    kind = "purge"
    id: str  # of the record: <volume>/<uid>

    async def gather(self, context: Context, operation_id: str) -> ZvolDependents:
        with context.read() as txn:
            volume = self._trashed(txn).volume
            recorded = recorded_uids(txn, volume)
        listed = await context.look(partial(zvol_dependents, context.machine, volume.dataset))
        return listed.but(recorded=recorded)

    def plan(self, view: View, inputs: ZvolDependents) -> Plan:
        trashed = self._trashed(view.txn)
        volume = trashed.volume
        names = all_dependents(view.txn, volume, inputs)
        if names:
            raise has_dependents(volume, names)
        erased = () if inputs.lost else erased_key(view.txn, volume)
        gone = lost_snapshots(view.txn, volume, inputs)
        return Plan(
            title=f"purge {volume.id} from the trash",
            claims=(f"trash/{volume.uid}", *claims_on(gone)),
            actions=plans.destruction(volume),
            commit=(drop(trashed), *released(volume), *erased, *forgotten(view.txn, gone)),
        )

    def _trashed(self, txn: Transaction) -> Trashed:
        trashed = txn.get(Trashed, self.id)
        if trashed is None:
            raise NotFound(f"{self.id[:200]} is not in the trash")
        return trashed


def check_lost(volume: Volume, zvol: ZvolDependents) -> None:
    """Raise FailedPrecondition when a volume has its zvol, which would become an orphan."""
    if not (zvol.lost or zvol.foreign):
        raise FailedPrecondition(
            f"{volume.id} has its zvol {volume.dataset}: run `zfsiloctl volume delete {volume.id}` "
            "to delete both",
            reason="NOT_LOST",
            volume=volume.id,
        )


def released(volume: Volume) -> tuple[Change, ...]:
    """Return the record changes that go with the destruction of a volume's zvol."""
    return (drop(clone_dependent(volume)),) if volume.origin else ()


def has_key_of_origin(volume: Volume) -> bool:
    """Tell whether a volume is a clone of an encrypted one. ZFS renames it to no other parent."""
    return volume.key_uid not in ("", volume.uid)


def erased_key(txn: Transaction, volume: Volume) -> tuple[Change, ...]:
    """Return the changes that forget the key of a volume whose zvol is destroyed.

    Its clones, which have the same key, are destroyed before. No data can be read after them.
    """
    key = txn.get(VolumeKey, volume.uid)
    return (drop(key), drop_secret(key.secret)) if key is not None else ()


def published_to(txn: Transaction, volume: Volume) -> list[str]:
    """Return the hosts that a volume is published to."""
    return [publication.host for publication in txn.scan_below(Publication, volume.id)]


def check_unpublished(volume: Volume, hosts: list[str]) -> None:
    """Raise FailedPrecondition when a volume is published to hosts."""
    if hosts:
        raise FailedPrecondition(
            f"{volume.id} is published to {', '.join(hosts)}: unpublish it first",
            reason="PUBLISHED",
            volume=volume.id,
            hosts=",".join(hosts),
        )
