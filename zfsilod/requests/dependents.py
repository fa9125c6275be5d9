"""What needs the zvol of a volume, as recorded and as ZFS lists it: snapshots, and their clones.

A recorded snapshot that ZFS does not list with the zvol is lost, and needs it no more.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zfsilod.model.errors import Conflict, FailedPrecondition, some_of
from zfsilod.model.record import Record
from zfsilod.model.records import Dependent, Snapshot, Trashed, Volume

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import ExportPath
    from zfsilod.storage.transaction import Transaction

SNAPSHOTS = "snapshots"
MAX_NAMED = 20
ZFSILO_SNAPSHOT = re.compile(r"@zfsilo-[0-9a-f]{32}$")  # host/snapshots.py


class ZvolDependents(Record):
    """The dependents of a zvol, as ZFS lists them."""

    dependents: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()  # uids of the snapshots that had a record before the listing
    lost: bool = False  # the zvol does not exist any more
    foreign: str = ""  # why the dataset of its name is not the zvol, as a sentence
    paths: tuple[ExportPath, ...] = ()  # to the zvol, as Unpublish gathers them


def zvol_dependents(host: HostAdapters, dataset: str) -> ZvolDependents:
    """List the dependents of a zvol that may be missing."""
    try:
        return ZvolDependents(dependents=host.zfs.dependents(dataset))
    except FailedPrecondition as error:
        if error.reason != "NO_DATASET":
            raise
        return ZvolDependents(lost=True)


def own_dependents(host: HostAdapters, volume: Volume) -> ZvolDependents:
    """List the dependents of a volume's zvol, which may be missing, or another dataset."""
    try:
        if not host.zfs.has_zvol(volume.dataset, uid=volume.uid, guid=volume.guid):
            return ZvolDependents(lost=True)
    except Conflict as error:
        return ZvolDependents(foreign=error.message)
    return zvol_dependents(host, volume.dataset)


def dependents_of(txn: Transaction, volume: Volume) -> list[str]:
    """Return the resource names of the recorded dependents of a volume's zvol."""
    return [dependent.name for dependent in txn.scan_below(Dependent, volume.uid)]


def recorded_snapshots(txn: Transaction, volume: Volume) -> list[Snapshot]:
    """Return the records of a volume's snapshots."""
    names = (name.partition("/") for name in dependents_of(txn, volume))
    ids = [snapshot_id for collection, _slash, snapshot_id in names if collection == SNAPSHOTS]
    snapshots = (txn.get(Snapshot, snapshot_id) for snapshot_id in ids)
    return [snapshot for snapshot in snapshots if snapshot is not None]


def recorded_uids(txn: Transaction, volume: Volume) -> tuple[str, ...]:
    """Return the uids of a volume's snapshots that have a record, to compare with a listing."""
    return tuple(snapshot.uid for snapshot in recorded_snapshots(txn, volume))


def lost_snapshots(txn: Transaction, volume: Volume, listed: ZvolDependents) -> list[Snapshot]:
    """Return the snapshots whose records were there before the zvol was listed without them.

    They do not need the zvol.
    """
    return [
        snapshot
        for snapshot in recorded_snapshots(txn, volume)
        if snapshot.uid in listed.recorded and is_lost(snapshot, volume, listed)
    ]


def is_lost(snapshot: Snapshot, volume: Volume, listed: ZvolDependents) -> bool:
    """Tell whether the zvol of a volume is listed, without this snapshot."""
    if listed.lost or listed.foreign:
        return False  # the zvol itself is not listed
    return f"{volume.dataset}@zfsilo-{snapshot.uid}" not in listed.dependents


def all_dependents(txn: Transaction, volume: Volume, listed: ZvolDependents) -> list[str]:
    """Return every dependent of a volume's zvol once: by its resource name, else as in ZFS."""
    lost = {f"{SNAPSHOTS}/{snapshot.id}" for snapshot in lost_snapshots(txn, volume, listed)}
    recorded = [name for name in dependents_of(txn, volume) if name not in lost]
    if not recorded:
        return list(listed.dependents)
    # A snapshot of zfsilo is recorded, or exists only for a recorded clone.
    clones = _datasets(txn, recorded)
    foreign = [
        name
        for name in listed.dependents
        if not ZFSILO_SNAPSHOT.search(name) and name not in clones
    ]
    return [*recorded, *foreign]


def _datasets(txn: Transaction, names: list[str]) -> set[str]:
    """Return the zvols of the volumes among some resource names, those in the trash included."""
    ids = [name.removeprefix("volumes/") for name in names if name.startswith("volumes/")]
    living = [txn.get(Volume, volume_id) for volume_id in ids]
    deleted = [
        trashed.volume for volume_id in ids for trashed in txn.scan_below(Trashed, volume_id)
    ]
    return {volume.dataset for volume in (*living, *deleted) if volume is not None}


def has_dependents(volume: Volume, names: list[str], why: str = "") -> FailedPrecondition:
    """Return the error for a volume with dependents; `why` they cannot be kept."""
    unique = list(dict.fromkeys(names))
    some = some_of(unique, MAX_NAMED)
    return FailedPrecondition(
        f"{volume.id} has snapshots or clones: {some}; delete them first"
        + (f": {why}" if why else ", or keep them (--keep-dependents)"),
        reason="DEPENDENTS",
        volume=volume.id,
        dependents=some,
    )
