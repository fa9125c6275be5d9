"""The request that puts an existing zvol back under the record of a volume whose zvol vanished.

The zvol was renamed by hand, or restored with zfs receive. A renamed one has its guid and its local
marks; it gets its name back, and everything goes on. A received one has another guid, and its marks
are received ones, which prove nothing: it is a copy, perhaps an older one, and is accepted only by
an explicit word. Every publication of a copy has a new epoch and new secrets, since a client that
still has the former content in memory must not write it over the copy.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from zfsilod.engine import plans
from zfsilod.engine.steps.export import NoExport
from zfsilod.host.transports import target_adapter
from zfsilod.host.zfs_output import not_encrypted
from zfsilod.model.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound
from zfsilod.model.host_facts import ListedZvol, furthest
from zfsilod.model.marks import EPOCH, FILESYSTEM, parse_epoch
from zfsilod.model.record import Record
from zfsilod.model.records import Change, Condition, Publication, Trashed, Volume, VolumeKey
from zfsilod.requests.adoption import marked_epoch, parse_filesystem_mark
from zfsilod.requests.publications import chap_for
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put
from zfsilod.requests.volumes import need_served, need_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.host import HostAdapters
    from zfsilod.model.records import Action, Operation
    from zfsilod.model.settings import Export
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Preemption
    from zfsilod.storage.transaction import Transaction

Place = Literal["FREE", "OWN", "FOREIGN"]
"""What has the name of a recorded zvol: nothing, the zvol itself, or another dataset."""
LOST_FOR_GOOD = ("ZVOL_NEWER", "NO_DATASET", "NOT_OURS", "LOST")


class PutBackInputs(Record):
    """Facts of the pool and of the kernel's target."""

    place: Place  # at the recorded name
    filesystem: str  # mark of the zvol, local or received
    epoch: int  # mark of the zvol, local or received
    exported: bool  # a target or a backstore of the volume exists
    key_root: str = ""  # the encryption root of the zvol; "": it is not encrypted


class PutBackVolume(Request[PutBackInputs]):
    """Put a zvol back under the record of its volume, with its exports."""

    kind = "put-back"
    id: str
    uid: str  # of the record
    zvol: ListedZvol
    accept_copy: bool = False  # another zvol than the recorded one, with its content

    def satisfied(self, view: View) -> tuple[Action, ...] | None:
        volume = view.txn.get(Volume, self.id)
        if volume is None or (self.zvol.uid, self.zvol.guid, self.zvol.dataset) != (
            volume.uid,
            volume.guid,
            volume.dataset,
        ):
            return None
        publications = list(view.txn.scan_below(Publication, self.id))
        return plans.server_facts(volume, publications, view.settings.export)

    async def gather(self, context: Context, operation_id: str) -> PutBackInputs:
        with context.read() as txn:
            volume, trashed = self.recorded(txn)
        dataset = trashed.home if trashed else volume.dataset
        return await context.look(
            partial(self._look, context.machine, volume, dataset, context.settings.export)
        )

    def _look(
        self, machine: HostAdapters, volume: Volume, dataset: str, export: Export
    ) -> PutBackInputs:
        zfs, lio = machine.zfs, machine.lio
        present = {zvol.dataset: zvol.guid for zvol in zfs.list_zvols(self.zvol.dataset)}
        if present.get(self.zvol.dataset) != self.zvol.guid:
            raise FailedPrecondition(
                f"zvol {self.zvol.dataset} does not exist any more: it cannot be adopted",
                reason="NO_ZVOL",
                dataset=self.zvol.dataset,
            )
        try:
            place: Place = (
                "OWN" if zfs.has_zvol(dataset, uid=volume.uid, guid=volume.guid) else "FREE"
            )
        except Conflict:
            place = "FOREIGN"
        try:
            epoch, _operation = parse_epoch(zfs.find_mark(self.zvol.dataset, EPOCH))
        except ValueError:
            epoch = 0
        return PutBackInputs(
            place=place,
            filesystem=zfs.find_mark(self.zvol.dataset, FILESYSTEM),
            epoch=epoch,
            exported=any(
                target_adapter(machine, target).exists(target)
                for target in plans.own_targets(export.prefix, volume)
            )
            or plans.backstore_name(volume) in lio.list_backstores(),
            key_root=machine.keys.find_root(self.zvol.dataset),
        )

    def prerequisites(self, view: View, inputs: PutBackInputs) -> Sequence[Request[Any]]:
        volume, trashed = self.recorded(view.txn)
        self._check(view.txn, volume, trashed, inputs)
        # The export leads to the former zvol: the kernel's target keeps its device open.
        if self.is_same(volume) or trashed is not None or not inputs.exported:
            return ()
        return (RemoveExport(volume=self.id),)

    def plan(self, view: View, inputs: PutBackInputs) -> Plan:
        volume, trashed = self.recorded(view.txn)
        if trashed is None and not volume.is_replica:
            need_served(view, self.id)  # it is exported again
        self._check(view.txn, volume, trashed, inputs)
        filesystem = furthest(parse_filesystem_mark(inputs.filesystem), volume.filesystem)
        after = volume.but(
            dataset=trashed.home if trashed else volume.dataset,
            guid=self.zvol.guid,
            capacity_bytes=max(volume.capacity_bytes, self.zvol.size_bytes),
            volblocksize=self.zvol.volblocksize,
            filesystem=filesystem,
            updated_at=view.now,
        )
        before = list(view.txn.scan_below(Publication, self.id)) if trashed is None else []
        publications = before
        if not self.is_same(volume):
            first = max(volume.epoch, inputs.epoch) + 1
            publications = [
                publication.but(epoch=first + index, rotation=publication.rotation + 1)
                for index, publication in enumerate(before)
            ]
            after = after.but(epoch=first + max(len(before) - 1, 0))
        key = view.txn.get(VolumeKey, volume.key_uid) if volume.key_uid else None
        own = key if inputs.key_root == self.zvol.dataset else None
        return self._plan(view, volume, after, before, publications, trashed, own)

    def _plan(
        self,
        view: View,
        volume: Volume,
        after: Volume,
        before: list[Publication],
        publications: list[Publication],
        trashed: Trashed | None,
        key: VolumeKey | None,
    ) -> Plan:
        export = view.settings.export
        renewed = [] if publications == before else publications
        target = plans.target_name(export.prefix, after)
        title = f"put {self.zvol.dataset} back as the zvol of {self.id}"
        if not self.is_same(volume):
            title = f"{title}, a copy: {_clients(renewed)}"
        number = after.epoch if after.epoch > volume.epoch else 0
        resolved = Change(bucket=Condition.bucket(), key=volume.uid)
        commit: list[Change] = [put(after), *map(put, renewed), resolved]
        if trashed is not None:
            commit.append(drop(trashed))
        return Plan(
            title=title,
            claims=(
                f"volume/{self.id}",
                f"dataset/{self.zvol.dataset}",
                *((f"trash/{volume.uid}",) if trashed else ()),
            ),
            actions=plans.put_back(
                after,
                self.zvol,
                publications,
                export,
                epoch=number,
                operation=view.operation_id,
                key=key,
            ),
            commit=(*commit, *(drop_secret(old.secret) for old in before if renewed)),
            revert=(
                *((put(volume),) if number and trashed is None else ()),
                *(drop_secret(new.secret) for new in renewed),
            ),
            secrets={new.secret: chap_for(new, target) for new in renewed},
        )

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        # The rollback of an operation fails for good when its zvol vanished meanwhile.
        is_lost = owner.failure is not None and owner.failure.reason in LOST_FOR_GOOD
        return ("RETRY_ROLLBACK", "ABANDON") if is_lost else ("RETRY_ROLLBACK",)

    def is_same(self, volume: Volume) -> bool:
        """Tell whether the zvol is the recorded one: it keeps its guid wherever it is."""
        return self.zvol.guid == volume.guid

    def recorded(self, txn: Transaction) -> tuple[Volume, Trashed | None]:
        """Return the record of the volume, and that of its deletion. Raises NotFound."""
        volume = txn.get(Volume, self.id)
        if volume is not None and volume.uid == self.uid:
            return volume, None
        trashed = txn.get(Trashed, f"{self.id}/{self.uid}")
        if trashed is None:
            raise NotFound(f"there is no volume {self.id} on this host", volume=self.id)
        if volume is not None:
            raise AlreadyExists(
                f"another volume is named {self.id}: delete it first", volume=self.id
            )
        return trashed.volume, trashed

    def _check(
        self, txn: Transaction, volume: Volume, trashed: Trashed | None, inputs: PutBackInputs
    ) -> None:
        """Raise the reason why the zvol cannot be put back."""
        home, dataset = trashed.home if trashed else volume.dataset, self.zvol.dataset
        for other in txn.scan(Volume):
            if other.uid != volume.uid and dataset == other.dataset:
                raise AlreadyExists(
                    f"{dataset} is the zvol of volume {other.id} already", volume=other.id
                )
        if self.zvol.uid not in ("", volume.uid):
            raise Conflict(
                f"zvol {dataset} belongs to volume {self.zvol.uid} by its local marks, not to "
                f"{volume.id}",
                reason="NOT_OURS",
                dataset=dataset,
            )
        inherits = dataset.startswith(f"{inputs.key_root}/")
        if volume.key_uid and (not inputs.key_root or inherits):
            raise not_encrypted(dataset)
        if dataset != home:
            self._check_home(volume, home, inputs)
        if self.is_same(volume):
            if marked_epoch(self.zvol) > volume.epoch:
                raise FailedPrecondition(
                    f"zvol {dataset} knows a later change of access than the record of volume "
                    f"{volume.id}: run `zfs rename {dataset} {home}`, then `zfsiloctl adopt "
                    f"{home}`",
                    reason="ZVOL_NEWER",
                    dataset=dataset,
                    volume=volume.id,
                )
        elif not self.accept_copy:
            raise FailedPrecondition(
                f"zvol {dataset} has the guid {self.zvol.guid}, and that of volume {volume.id} had "
                f"{volume.guid or 'none yet'}: it is another zvol; "
                f"{as_copy(self._words(volume, home))}",
                reason="OTHER_GUID",
                dataset=dataset,
                volume=volume.id,
            )

    def _words(self, volume: Volume, home: str) -> str:
        dataset = self.zvol.dataset
        named = dataset in (home, volume.dataset) or self.zvol.uid == volume.uid
        return dataset if named else f"{dataset} --id {volume.id}"

    def _check_home(self, volume: Volume, home: str, inputs: PutBackInputs) -> None:
        """Raise the reason why the zvol cannot get its recorded name."""
        dataset = self.zvol.dataset
        if inputs.place == "OWN":
            raise AlreadyExists(
                f"volume {volume.id} exists, with the zvol {home}; adopt {dataset} under another "
                "id",
                volume=volume.id,
            )
        if inputs.place == "FOREIGN":
            raise FailedPrecondition(
                f"another dataset has the name {home}: rename it, then adopt {dataset} again",
                reason="NOT_OURS",
                dataset=home,
            )
        if dataset.partition("/")[0] != home.partition("/")[0]:
            raise FailedPrecondition(
                f"zvol {dataset} is in another pool than {home}: send it there (zfs send, zfs "
                f"receive), then adopt {home}",
                reason="OTHER_POOL",
                dataset=dataset,
            )


class RemoveExport(Request[None]):
    """Remove the export of a volume whose zvol was replaced; refused while a client uses it."""

    descends = True
    kind = "remove-export"
    resource = ("volumes", "volume")
    volume: str

    def plan(self, view: View, inputs: None) -> Plan:
        volume, export = need_volume(view.txn, self.volume), view.settings.export
        publications = list(view.txn.scan_below(Publication, self.volume))
        steps = [
            NoExport(target=target, backstore=plans.backstore_name(volume))
            for target in plans.own_targets(export.prefix, volume)
        ]
        return Plan(
            title=f"remove the export of the former zvol of {self.volume}",
            claims=(f"volume/{self.volume}",),
            actions=plans.up([*plans.no_sessions(volume, publications, export), *steps]),
        )


def put_back_request(
    txn: Transaction, zvol: ListedZvol, volume_id: str, *, accept_copy: bool
) -> PutBackVolume | None:
    """Return the request that puts a zvol back; None when no record claims it.

    A record does by its uid in the local marks, by the dataset, or by an id that the caller gives.
    """
    deleted = list(txn.scan(Trashed))
    recorded = [*txn.scan(Volume), *(trashed.volume for trashed in deleted)]
    homes = {trashed.volume.uid: trashed.home for trashed in deleted}
    matches = [volume for volume in recorded if volume.uid == zvol.uid]
    if not matches and not zvol.uid:
        matches = [volume for volume in recorded if volume.dataset == zvol.dataset]
        matches = matches or [volume for volume in recorded if volume.id == volume_id]
        matches = [one for one in matches if one.uid not in homes or one.dataset == zvol.dataset]
    if not matches:
        return None
    volume = matches[0]
    newer = marked_epoch(zvol) > volume.epoch and zvol.dataset == volume.dataset
    if newer and zvol.guid == volume.guid:
        return None  # the store is old: AdoptVolume takes what the zvol knows
    in_trash = volume.uid in homes and zvol.dataset == volume.dataset
    if in_trash and (zvol.uid, zvol.guid) == (volume.uid, volume.guid):
        return None  # it is where it belongs
    return PutBackVolume(id=volume.id, uid=volume.uid, zvol=zvol, accept_copy=accept_copy)


def as_copy(dataset: str) -> str:
    """Return what to do with a copy in place of a zvol: a part of a sentence."""
    return (
        "if it is a copy of the volume, such as zfs receive makes, run `zfsiloctl adopt "
        f"{dataset} --accept-copy` to use its content from now on"
    )


def delete_record(volume: str) -> str:
    """Return how the record of a volume without a zvol is deleted: a part of a sentence."""
    return (
        f"if the data are lost, run `zfsiloctl volume unpublish {volume} --all --fence`, then "
        f"`zfsiloctl volume delete {volume} --record-only`"
    )


def _clients(renewed: list[Publication]) -> str:
    if not renewed:
        return "its content is used from now on"
    hosts = ", ".join(publication.host for publication in renewed)
    return f"{hosts} must connect again"
