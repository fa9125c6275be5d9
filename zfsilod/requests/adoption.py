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
from zfsilod.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zfsilod.model.host_facts import Filesystem, FilesystemState, ListedZvol
from zfsilod.model.names import check_dataset
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import AccessMode, Mode, Trashed, Volume
from zfsilod.model.validation import check_id
from zfsilod.model.zfs_properties import check_properties
from zfsilod.requests.clones import held
from zfsilod.requests.deletion import FOLDER
from zfsilod.requests.request import Plan, Request, View, put
from zfsilod.requests.volumes import need_root

if TYPE_CHECKING:
    from zfsilod.host import Host as Machine
    from zfsilod.model.records import Change
    from zfsilod.model.settings import Settings
    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

LOOK_DEADLINE_S = 150


class AdoptVolume(Request):
    """Make a record of a zvol that is there; one without our marks gets them."""

    kind = "adopt"
    id: str
    zvol: ListedZvol
    properties: Pairs = ()
    origin: str = ""  # the uid of the volume that it is a clone of, where it was seen

    def look(self, host: Machine, settings: Settings) -> None:
        """Look again: what was seen may be removed by now, as an orphan."""
        zvol = self.zvol
        if zvol.uid and not host.zfs.has_zvol(zvol.dataset, uid=zvol.uid, guid=zvol.guid):
            raise FailedPrecondition(
                f"{zvol.dataset} is gone", reason="NO_ZVOL", dataset=zvol.dataset
            )

    def plan(self, view: View, seen: object) -> Plan:
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


async def find(service: Service, dataset: str, volume_id: str) -> AdoptVolume:
    """Return the request that adopts one zvol: under its own id, else this one, else its last name."""
    need_root(service.settings)
    if volume_id:
        check_id(volume_id, "volume id")
    found = await find_all(service, check_dataset(dataset), volume_id)
    if f"/{FOLDER}/" in dataset:
        raise FailedPrecondition(
            f"{dataset} is in the trash: zfsiloctl adopt --all, then volume undelete",
            reason="IN_TRASH",
            dataset=dataset,
        )
    if len(found) != 1 or found[0].zvol.dataset != dataset:
        raise FailedPrecondition(f"{dataset} is no zvol", reason="NO_ZVOL", dataset=dataset)
    return found[0]


async def find_all(service: Service, dataset: str, volume_id: str) -> list[AdoptVolume]:
    """Return the requests that adopt the zvols below a dataset, ours and others."""
    question = partial(_look, service.machine, dataset, volume_id)
    return await service.look(question, timeout_s=LOOK_DEADLINE_S)


def _look(machine: Machine, dataset: str, volume_id: str) -> list[AdoptVolume]:
    properties = machine.zfs.own_properties(dataset)
    found = machine.zfs.list_zvols(dataset)
    uids = {each.dataset: each.uid for each in found}
    return [
        AdoptVolume(
            id=_id(each, volume_id),
            zvol=each,
            origin=uids.get(each.origin, ""),
            properties=pairs(
                {
                    name: value
                    for name, value in properties.get(each.dataset, {}).items()
                    if _is_settable(name, value)
                }
            ),
        )
        for each in found
    ]


def _is_settable(name: str, value: str) -> bool:
    """Tell whether it is a caller's choice: one of the list, and not what every volume has."""
    if plans.DURABLE.get(name) == value:
        return False
    try:
        check_properties(((name, value),), new=True)
    except InvalidArgument:
        return False
    return True


def _id(zvol: ListedZvol, wanted: str) -> str:
    own = dict(zvol.marks).get("id", "")
    if wanted and zvol.uid and own != wanted:
        raise InvalidArgument(
            f"{zvol.dataset} is the volume {own}: it keeps that id", reason="BAD_ID", volume=own
        )
    return own or wanted or zvol.dataset.rpartition("/")[2]


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
