"""The request that adopts a zvol without a record: a foreign one, or one of a lost store.

zfsilo stores the fields of a volume as user properties of its zvol (plans.marks). Publications are
not among them. The first epoch after an adoption is the time of the adoption, in seconds, or that
of the zvol, whichever is later.

A store that was restored from a backup has the record of a volume, and the zvol knows a later
epoch. The adoption then takes the epoch from the zvol and drops the publications of the backup.
"""

from __future__ import annotations

import json
import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import NO_LIMITS, Filesystem, IoLimits, ListedZvol
from zfsilod.model.marks import parse_epoch
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import Publication, ReplicaOf, Standing, Trashed, Volume
from zfsilod.model.validation import check_id, check_limits
from zfsilod.model.words import AccessMode, FilesystemState, Mode
from zfsilod.requests.clones import origin_kept
from zfsilod.requests.peers import MAX_PEERS
from zfsilod.requests.request import Plan, Request, View, drop, drop_secret, put

if TYPE_CHECKING:
    from zfsilod.model.records import Operation
    from zfsilod.model.replica import KeptSnapshot
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Preemption
    from zfsilod.storage.transaction import Transaction


MAX_PEER = 160
PEER = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,159}"


def _outside(dataset: str, root: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"zvol {dataset} is not below server.root ({root}): add it, or a dataset above it, to "
        "server.adopt_from in /etc/zfsilo/zfsilod.toml, and restart zfsilod.service",
        reason="OUTSIDE_LIMITS",
        dataset=dataset,
    )


def unfinished(dataset: str) -> FailedPrecondition:
    """Return the error for a zvol that is only a part of one."""
    return FailedPrecondition(
        f"zvol {dataset} is an unfinished receive: finish it (zfs send -t with its "
        f"receive_resume_token), or end it: zfs receive -A {dataset}",
        reason="UNFINISHED_RECEIVE",
        dataset=dataset,
    )


class AdoptVolume(Request["KeptSnapshot | None"]):
    """Create the record of an existing zvol, and mark the zvol when it has no marks of zfsilo."""

    kind = "adopt"
    id: str
    zvol: ListedZvol
    properties: Pairs = ()
    origin: str = ""  # the uid of the volume that the zvol is a clone of; "": look in the records

    async def gather(self, context: Context, operation_id: str) -> KeptSnapshot | None:
        """Probe the zvol again: it may have been removed as an orphan since it was listed.

        Returns the newest snapshot of a replica; None: it has none that is whole.
        """
        zvol, zfs = self.zvol, context.machine.zfs
        probe = partial(zfs.has_zvol, zvol.dataset, uid=zvol.uid, guid=zvol.guid)
        if zvol.uid and not await context.look(probe):
            raise FailedPrecondition(
                f"zvol {zvol.dataset} does not exist any more: it cannot be adopted",
                reason="NO_ZVOL",
                dataset=zvol.dataset,
            )
        if self.peer and zvol.uid:
            look = partial(context.machine.replicas.list_kept, zvol.dataset, uid=zvol.uid)
            present = [one for one in await context.look(look) if one.exists]
            return max(present, key=lambda one: one.created_txg, default=None)
        if await context.look(partial(zfs.is_receiving, zvol.dataset)):
            raise unfinished(zvol.dataset)
        return None

    @property
    def peer(self) -> str:
        """The peer that sends the volume: its next receive goes on where the last one ended."""
        return dict(self.zvol.marks).get("replica", "")

    def uses_pool(self, view: View) -> bool:
        return self.on_pool and not self.zvol.uid  # a marked zvol is recorded, and not changed

    def plan(self, view: View, inputs: KeptSnapshot | None) -> Plan:
        check_id(self.id, "volume id")
        if not view.settings.may_hold(self.zvol.dataset):
            raise _outside(self.zvol.dataset, view.settings.root)
        if self.zvol.size_bytes <= 0 and not self.peer:
            raise unfinished(self.zvol.dataset)
        outdated = view.txn.get(Volume, self.id)
        if outdated is not None and self.is_newer_than(outdated):
            return self._merge(outdated, inputs, view)
        self.check_new(view.txn)
        volume = self.volume(view)
        if self.peer:
            volume = _as_replica(volume, self.peer, inputs)
        return Plan(
            title=f"adopt {self.zvol.dataset} as {self.id}",
            claims=(f"volume/{self.id}", f"dataset/{self.zvol.dataset}"),
            actions=plans.adoption(volume) if not self.zvol.uid else (),
            commit=(put(self.record(volume, view)), *origin_kept(volume)),
        )

    def preempts(self, owner: Operation) -> tuple[Preemption, ...]:
        # An operation of a restored store cannot be rolled back: the zvol is newer than it.
        is_outdated = owner.failure is not None and owner.failure.reason == "ZVOL_NEWER"
        return ("RETRY_ROLLBACK", "ABANDON") if is_outdated else ()

    def is_newer_than(self, volume: Volume) -> bool:
        """Tell whether the zvol is that of the record, and carries a later epoch."""
        zvol = self.zvol
        same = (zvol.uid, zvol.guid, zvol.dataset) == (volume.uid, volume.guid, volume.dataset)
        return same and marked_epoch(zvol) > volume.epoch

    def _merge(self, volume: Volume, inputs: KeptSnapshot | None, view: View) -> Plan:
        """Return the plan that brings an outdated record up to its zvol, without publications."""
        now = self.volume(view)
        publications = list(view.txn.scan_below(Publication, volume.id))
        role = _as_replica(now, self.peer, inputs) if self.peer else now
        merged = volume.but(
            replica=role.replica,
            peers=now.peers,
            term=now.term,
            term_store=now.term_store,
            capacity_bytes=max(volume.capacity_bytes, now.capacity_bytes),
            filesystem=now.filesystem if now.filesystem.state != "NONE" else volume.filesystem,
            state="CREATED",
            epoch=now.epoch,
            updated_at=view.now,
        )
        return Plan(
            title=f"adopt {self.zvol.dataset} as {self.id}, without the publications of a backup",
            claims=(f"volume/{self.id}", f"dataset/{self.zvol.dataset}"),
            commit=(
                put(merged),
                *((put(Standing(id=merged.uid)),) if merged.peers else ()),  # they are asked again
                *map(drop, publications),
                *(drop_secret(publication.secret) for publication in publications),
            ),
        )

    def record(self, volume: Volume, view: View) -> Volume | Trashed:
        """Return the record that the adoption writes."""
        return volume

    def check_new(self, txn: Transaction) -> None:
        """Raise AlreadyExists when a record has the id, the uid or the dataset."""
        for volume in txn.scan(Volume):
            if volume.id == self.id or volume.uid == self.zvol.uid:
                raise AlreadyExists(
                    f"volume {volume.id} exists, with the zvol {volume.dataset}; adopt "
                    f"{self.zvol.dataset} under another id",
                    volume=volume.id,
                )
            if volume.dataset == self.zvol.dataset:
                raise AlreadyExists(
                    f"{volume.dataset} is the zvol of volume {volume.id} already", volume=volume.id
                )

    def volume(self, view: View) -> Volume:
        """Return the volume as the listed zvol and its marks describe it."""
        marks = dict(self.zvol.marks)
        allowed = marks.get("access_modes", "").split(",")
        known_modes: tuple[AccessMode, ...] = get_args(AccessMode)
        access_modes = tuple(mode for mode in known_modes if mode in allowed)
        mode: Mode = "BLOCK" if marks.get("mode") == "BLOCK" else "FILESYSTEM"
        uids = {volume.dataset: volume.uid for volume in all_volumes(view.txn)}
        return Volume(
            id=self.id,
            uid=self.zvol.uid or uuid.uuid4().hex,
            dataset=self.zvol.dataset,
            capacity_bytes=self.zvol.size_bytes,
            thin=self.zvol.thin,
            mode=mode,
            volblocksize=self.zvol.volblocksize,
            properties=self.properties,
            labels=pairs(parse_labels(marks.get("labels", ""))),
            hosts=tuple(filter(None, marks.get("hosts", "").split(","))),
            access_modes=access_modes or ("SINGLE_NODE_WRITER",),
            transport="NVME" if marks.get("transport") == "NVME" else "ISCSI",
            limits=parse_limits_mark(marks.get("limits", "")),
            tls=marks.get("tls") == "yes",
            state="CREATED",
            guid=self.zvol.guid,
            filesystem=parse_filesystem_mark(marks.get("filesystem", "")),
            source_snapshot=marks.get("source_snapshot", ""),
            source_volume=marks.get("source_volume", ""),
            key_uid=parse_uid(marks.get("key", "")),
            peers=parse_peers(marks.get("peers", "")),
            aside_of=marks.get("aside_of", "")[:MAX_PEER],
            **parse_term(marks.get("term", "")),
            origin=self.origin or uids.get(self.zvol.origin, ""),
            epoch=max(view.now, marked_epoch(self.zvol)),
            created_at=view.now,
            updated_at=view.now,
        )


def _as_replica(volume: Volume, peer: str, newest: KeptSnapshot | None) -> Volume:
    """Return an adopted volume as the replica that it is, with its newest whole snapshot."""
    if newest is None:
        return volume.but(state="ABSENT", replica=ReplicaOf(peer=peer))
    replica = ReplicaOf(peer=peer, snapshot_uid=newest.uid, snapshot_guid=newest.guid)
    return volume.but(replica=replica)


def all_volumes(txn: Transaction) -> tuple[Volume, ...]:
    """Return every volume, those in the trash included."""
    return (*txn.scan(Volume), *(trashed.volume for trashed in txn.scan(Trashed)))


def marked_epoch(zvol: ListedZvol) -> int:
    """Return the epoch in the marks of a zvol; 0 without one, or when it is not a number."""
    try:
        return parse_epoch(dict(zvol.marks).get("epoch", ""))[0]
    except ValueError:
        return 0


def parse_uid(mark: str) -> str:
    """Return the uid in a mark; "" for any other text."""
    return mark if re.fullmatch(r"[0-9a-f]{32}", mark) else ""


def parse_peers(mark: str) -> tuple[str, ...]:
    """Return the peers in a mark that plans.marks wrote; none for any other text."""
    names = tuple(filter(None, mark.split(",")))
    is_valid = len(names) <= MAX_PEERS and all(re.fullmatch(PEER, name) for name in names)
    return names if is_valid else ()


def parse_term(mark: str) -> dict[str, Any]:
    """Return the term in a mark that plans.marks wrote; none for any other text."""
    match = re.fullmatch(r"([1-9][0-9]{0,12}):([0-9a-f]{32})", mark)
    return {"term": int(match[1]), "term_store": match[2]} if match else {}


def parse_labels(mark: str) -> dict[str, str]:
    """Return the labels of a mark that plans.marks wrote; none for any other text."""
    try:
        labels = json.loads(mark)
    except (ValueError, RecursionError):
        return {}
    plain = isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())
    return labels if plain else {}


def parse_limits_mark(mark: str) -> IoLimits:
    """Return the limits of a mark that plans.marks wrote; none for any other text."""
    values = dict(re.findall(r"(\w+)=([0-9]{1,19})(?:,|$)", mark))
    try:
        return check_limits(IoLimits(**{name: int(value) for name, value in values.items()}))
    except (InvalidArgument, TypeError):
        return NO_LIMITS


def parse_filesystem_mark(mark: str) -> Filesystem:
    """Return the filesystem of a mark that plans.filesystem_mark wrote; NONE for any other text."""
    parts = [*mark.split(":"), "", "", "", ""]
    states: tuple[FilesystemState, ...] = get_args(FilesystemState)
    state = next((state for state in states if state == parts[0]), None)
    if state is None or state == "NONE":
        return Filesystem()
    filesystem = Filesystem(state=state, type=parts[1], uuid=parts[2])
    if state == "CLONED":
        return filesystem.but(origin=parts[3])
    return filesystem.but(operation=parts[3], host=parts[4])
