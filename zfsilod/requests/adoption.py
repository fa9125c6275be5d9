"""Adopt: take over a zvol that no record knows: a foreign one, or ours after the store was lost.

What a record would say lies on the zvol itself, as user properties (plan.marks). What does not is
begun anew: nobody holds the volume, and its epochs count on from the time of the adoption, which is
more than any publication was ever counted to.
"""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import TYPE_CHECKING, get_args

from zfsilod.engine import plans
from zfsilod.model.errors import AlreadyExists, FailedPrecondition
from zfsilod.model.host_facts import Filesystem, FilesystemState, ListedZvol
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import AccessMode, Mode, Trashed, Volume
from zfsilod.model.validation import check_id
from zfsilod.requests.clones import held
from zfsilod.requests.request import Plan, Request, View, put

if TYPE_CHECKING:
    from zfsilod.model.records import Change
    from zfsilod.requests.context import Context
    from zfsilod.storage.store import Transaction


class AdoptVolume(Request[None]):
    """Make a record of a zvol that is there; one without our marks gets them."""

    kind = "adopt"
    id: str
    zvol: ListedZvol
    properties: Pairs = ()
    origin: str = ""  # the uid of the volume that it is a clone of, where it was seen

    async def gather(self, context: Context, operation_id: str) -> None:
        """Probe the zvol again: it may have been removed as an orphan since it was listed."""
        zvol, zfs = self.zvol, context.machine.zfs
        probe = partial(zfs.has_zvol, zvol.dataset, uid=zvol.uid, guid=zvol.guid)
        if zvol.uid and not await context.look(probe):
            raise FailedPrecondition(
                f"{zvol.dataset} is gone", reason="NO_ZVOL", dataset=zvol.dataset
            )

    def plan(self, view: View, inputs: None) -> Plan:
        check_id(self.id, "volume id")
        self._check_new(view)
        volume = self._volume(view)
        actions = plans.adoption(volume) if not self.zvol.uid else ()
        return Plan(
            title=f"adopt {self.zvol.dataset} as {self.id}",
            claims=(f"volume/{self.id}", f"dataset/{self.zvol.dataset}"),
            actions=actions,
            commit=(*self._records(volume, view), *held(volume)),
        )

    def _records(self, volume: Volume, view: View) -> tuple[Change, ...]:
        return (put(volume),)

    def _check_new(self, view: View) -> None:
        for known in view.txn.scan(Volume):
            if known.id == self.id or known.uid == self.zvol.uid:
                raise AlreadyExists(
                    f"the volume {known.id} exists, as {known.dataset}", volume=known.id
                )
            if known.dataset == self.zvol.dataset:
                raise AlreadyExists(f"{known.dataset} is the volume {known.id}", volume=known.id)

    def _volume(self, view: View) -> Volume:
        marks = dict(self.zvol.marks)
        return Volume(
            id=self.id,
            uid=self.zvol.uid or uuid.uuid4().hex,
            dataset=self.zvol.dataset,
            capacity_bytes=self.zvol.size_bytes,
            thin=self.zvol.thin,
            mode=_one_of(get_args(Mode), marks.get("mode", "")),
            volblocksize=self.zvol.volblocksize,
            properties=self.properties,
            labels=pairs(mapping(marks.get("labels", ""))),
            hosts=tuple(filter(None, marks.get("hosts", "").split(","))),
            access_modes=_access_modes(marks.get("access_modes", "")),
            state="CREATED",
            guid=self.zvol.guid,
            filesystem=filesystem(marks.get("filesystem", "")),
            source_snapshot=marks.get("source_snapshot", ""),
            source_volume=marks.get("source_volume", ""),
            origin=self.origin or _uid_at(view.txn, self.zvol.origin),
            epoch=view.now,
            created_at=view.now,
            updated_at=view.now,
        )


def _uid_at(txn: Transaction, dataset: str) -> str:
    """Return the uid of the volume that is known to be at a dataset, or ""."""
    known = (*txn.scan(Volume), *(each.volume for each in txn.scan(Trashed)))
    return next((each.uid for each in known if dataset and each.dataset == dataset), "")


def _one_of(choices: tuple[Mode, ...], value: str) -> Mode:
    return next((each for each in choices if each == value), "FILESYSTEM")


def _access_modes(value: str) -> tuple[AccessMode, ...]:
    known: tuple[AccessMode, ...] = get_args(AccessMode)
    return tuple(each for each in known if each in value.split(",")) or ("SINGLE_NODE_WRITER",)


def mapping(value: str) -> dict[str, str]:
    """Return labels as plan.marks writes them; what somebody else has written there is none."""
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    plain = isinstance(found, dict) and all(isinstance(each, str) for each in found.values())
    return found if plain else {}


def filesystem(value: str) -> Filesystem:
    """Undo plan.filesystem_mark."""
    parts = [*value.split(":"), "", "", ""]
    known: tuple[FilesystemState, ...] = get_args(FilesystemState)
    state = next((each for each in known if each == parts[0]), None)
    if state is None or state == "NONE":
        return Filesystem()
    last = "origin" if state == "CLONED" else "operation"
    return Filesystem(state=state, type=parts[1], uuid=parts[2]).but(**{last: parts[3]})
