"""Sources of new volumes: a snapshot, or another volume; and the volume that a snapshot is of.

The volume of a snapshot may be in the trash. Its snapshots can be cloned there.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine.plans import Origin
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.host_facts import Filesystem, SnapshotRef
from zfsilod.model.record import Record
from zfsilod.model.records import Dependent, Snapshot, Trashed, Volume
from zfsilod.model.sizes import show_exact
from zfsilod.model.validation import check_id
from zfsilod.requests.request import put

if TYPE_CHECKING:
    from zfsilod.model.records import Change
    from zfsilod.model.words import Mode
    from zfsilod.storage.transaction import Transaction


class Source(Record):
    """The first content of a new volume, with the properties that it takes over."""

    origin: Origin
    mode: Mode
    volblocksize: int
    filesystem: Filesystem
    key: str  # uid of the volume whose key it has; "": not encrypted
    claims: tuple[str, ...]  # that keep the source from being moved or destroyed during the clone


def snapshot_source(txn: Transaction, snapshot_id: str) -> Source:
    """Return a snapshot as a source. Raises NotFound, or FailedPrecondition without its volume."""
    snapshot = need_snapshot(txn, snapshot_id)
    volume = volume_of(txn, snapshot)
    if volume is None:
        raise FailedPrecondition(
            f"snapshot {snapshot_id} cannot be cloned: its volume {snapshot.volume} has no record; "
            "restore the record with zfsiloctl adopt --all",
            reason="LOST",
            snapshot=snapshot_id,
        )
    return Source(
        origin=Origin(
            snapshot_ref=SnapshotRef(dataset=volume.dataset, uid=volume.uid, guid=snapshot.guid),
            snapshot_uid=snapshot.uid,
            own=False,
            size_bytes=snapshot.size_bytes,
        ),
        mode=snapshot.mode,
        volblocksize=snapshot.volblocksize,
        filesystem=snapshot.filesystem,
        key=volume.key_uid,
        claims=(f"snapshot/{snapshot_id}", zvol_claim(txn, snapshot)),
    )


def of_replica(volume: Volume) -> FailedPrecondition:
    """Return the error for a change of a replica, or a use of it."""
    return FailedPrecondition(
        f"{volume.id} is a replica that {volume.replica.peer} sends: it gets its next snapshot, or "
        "is deleted; use the volume there",
        reason="REPLICA",
        volume=volume.id,
    )


def volume_source(txn: Transaction, volume_id: str) -> Source:
    """Return a volume as a source, by a snapshot that the clone takes of it. Raises NotFound."""
    volume = txn.get(Volume, check_id(volume_id, "volume id"))
    if volume is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    if volume.is_replica:
        raise of_replica(volume)
    return Source(
        origin=Origin(
            snapshot_ref=SnapshotRef(dataset=volume.dataset, uid=volume.uid),
            snapshot_uid=uuid.uuid4().hex,
            own=True,
            size_bytes=volume.capacity_bytes,
        ),
        mode=volume.mode,
        volblocksize=volume.volblocksize,
        filesystem=volume.filesystem,
        key=volume.key_uid,
        claims=(f"volume/{volume_id}",),
    )


def as_clone(volume: Volume, source: Source, asked_block: str) -> Volume:
    """Return a new volume as a clone of a source. Raises when size, block size or mode differ.

    `asked_block`: the volblocksize that the caller asked for; "": none.
    """
    origin = source.origin
    if volume.capacity_bytes < origin.size_bytes:
        raise InvalidArgument(
            f"{volume.id} is smaller than its source: {show_exact(volume.capacity_bytes)}; create "
            f"it with at least {show_exact(origin.size_bytes)}",
            reason="SMALLER_THAN_SOURCE",
            volume=volume.id,
        )
    if asked_block and volume.volblocksize != source.volblocksize:
        raise InvalidArgument(
            f"{volume.id} cannot have the volblocksize {volume.volblocksize}: a clone keeps the "
            f"one of its source, {source.volblocksize}",
            reason="BAD_PROPERTY",
            property="volblocksize",
        )
    if volume.mode == "FILESYSTEM" and source.mode == "BLOCK":
        raise InvalidArgument(
            f"{volume.id} cannot have the mode FILESYSTEM: its source is a raw block volume; "
            "create it with the mode BLOCK",
            reason="MODE",
            volume=volume.id,
        )
    return volume.but(
        volblocksize=source.volblocksize,
        origin=origin.snapshot_ref.uid,
        filesystem=cloned(source.filesystem) if volume.mode == "FILESYSTEM" else Filesystem(),
    )


def cloned(filesystem: Filesystem) -> Filesystem:
    """Return the mark of a filesystem on a clone: it gets a new UUID before its first use."""
    match filesystem.state:
        case "NONE":
            return Filesystem()
        case "FORMATTING":
            raise FailedPrecondition(
                "the source was taken while its filesystem was being made; take another snapshot",
                reason="FORMATTING",
            )
    # A filesystem in the state CLONED may still have the UUID of its own origin.
    origin = filesystem.origin or filesystem.uuid
    return Filesystem(state="CLONED", type=filesystem.type, uuid=str(uuid.uuid4()), origin=origin)


def clone_dependent(volume: Volume) -> Dependent:
    """Return the record that keeps a clone's origin from being destroyed."""
    return Dependent(id=f"{volume.origin}/volumes/{volume.uid}", name=f"volumes/{volume.id}")


def origin_kept(volume: Volume) -> tuple[Change, ...]:
    """Return the change that keeps the origin of a volume; none when it is not a clone."""
    return (put(clone_dependent(volume)),) if volume.origin else ()


def volume_of(txn: Transaction, snapshot: Snapshot) -> Volume | None:
    """Return the volume of a snapshot, also one in the trash."""
    volume = txn.get(Volume, snapshot.volume)
    if volume is not None and volume.uid == snapshot.volume_uid:
        return volume
    trashed = txn.get(Trashed, f"{snapshot.volume}/{snapshot.volume_uid}")
    return trashed.volume if trashed else None


def zvol_claim(txn: Transaction, snapshot: Snapshot) -> str:
    """Return the claim that keeps a snapshot's zvol from being moved to or from the trash."""
    volume = txn.get(Volume, snapshot.volume)
    if volume is not None and volume.uid == snapshot.volume_uid:
        return f"volume/{snapshot.volume}"
    return f"trash/{snapshot.volume_uid}"


def need_snapshot(txn: Transaction, snapshot_id: str) -> Snapshot:
    """Return a snapshot. Raises NotFound."""
    snapshot = txn.get(Snapshot, check_id(snapshot_id, "snapshot id"))
    if snapshot is None:
        raise NotFound(f"there is no snapshot {snapshot_id}", snapshot=snapshot_id)
    return snapshot
