"""What a new volume may begin with: a snapshot, or another volume; and where a snapshot's zvol is.

The volume that a snapshot is of may be deleted meanwhile, and lie in the trash.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from zfsilod.engine.plans import Origin
from zfsilod.model.errors import FailedPrecondition, InvalidArgument, NotFound
from zfsilod.model.host_facts import Filesystem, SnapshotRef
from zfsilod.model.record import Record
from zfsilod.model.records import Dependent, Mode, Snapshot, Trashed, Volume
from zfsilod.model.sizes import show_exact
from zfsilod.model.validation import check_id
from zfsilod.requests.request import put

if TYPE_CHECKING:
    from zfsilod.model.records import Change
    from zfsilod.storage.store import Transaction


class Content(Record):
    """What a snapshot or volume holds, as the beginning of a new volume."""

    origin: Origin
    mode: Mode
    volblocksize: int
    filesystem: Filesystem
    claims: tuple[str, ...]  # so that it stays where it is meanwhile


def content_of_snapshot(txn: Transaction, snapshot_id: str) -> Content:
    """Return what a snapshot holds. Raises NotFound."""
    found = need_snapshot(txn, snapshot_id)
    home = home_of(txn, found)
    if home is None:
        raise FailedPrecondition(
            f"the volume of the snapshot {snapshot_id} is not known any more",
            reason="LOST",
            snapshot=snapshot_id,
        )
    origin = Origin(
        snapshot_ref=SnapshotRef(dataset=home.dataset, uid=home.uid, guid=found.guid),
        snapshot_uid=found.uid,
        own=False,
        size_bytes=found.size_bytes,
    )
    return Content(
        origin=origin,
        mode=found.mode,
        volblocksize=found.volblocksize,
        filesystem=found.filesystem,
        claims=(f"snapshot/{snapshot_id}", claim_of(txn, found)),
    )


def content_of_volume(txn: Transaction, volume_id: str) -> Content:
    """Return what a volume holds now. Raises NotFound."""
    found = txn.get(Volume, check_id(volume_id, "volume id"))
    if found is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    snapshot_ref = SnapshotRef(dataset=found.dataset, uid=found.uid)
    return Content(
        origin=Origin(
            snapshot_ref=snapshot_ref,
            snapshot_uid=uuid.uuid4().hex,
            own=True,
            size_bytes=found.capacity_bytes,
        ),
        mode=found.mode,
        volblocksize=found.volblocksize,
        filesystem=found.filesystem,
        claims=(f"volume/{volume_id}",),
    )


def begin_with(volume: Volume, content: Content, asked_block: str) -> Volume:
    """Return a new volume with what it takes from its origin, else raise what forbids it."""
    origin = content.origin
    if volume.capacity_bytes < origin.size_bytes:
        raise InvalidArgument(
            f"{volume.id} is to have {show_exact(volume.capacity_bytes)}, what it begins with has "
            f"{show_exact(origin.size_bytes)}: make it at least as large",
            reason="SMALLER_THAN_SOURCE",
            volume=volume.id,
        )
    if asked_block and volume.volblocksize != content.volblocksize:
        raise InvalidArgument(
            f"what {volume.id} begins with has a volblocksize of {content.volblocksize}, which "
            "cannot be changed",
            reason="BAD_PROPERTY",
            property="volblocksize",
        )
    if volume.mode == "FILESYSTEM" and content.mode == "BLOCK":
        raise InvalidArgument(
            f"what {volume.id} begins with is a raw block volume: make it one too",
            reason="MODE",
            volume=volume.id,
        )
    return volume.but(
        volblocksize=content.volblocksize,
        origin=origin.snapshot_ref.uid,
        filesystem=copied(content.filesystem) if volume.mode == "FILESYSTEM" else Filesystem(),
    )


def copied(filesystem: Filesystem) -> Filesystem:
    """Return the mark of a filesystem on a clone: it needs a UUID of its own before it is used."""
    match filesystem.state:
        case "NONE":
            return Filesystem()
        case "FORMATTING":
            raise FailedPrecondition(
                "the filesystem was only being made when the snapshot was taken: take another",
                reason="FORMATTING",
            )
    # One that was never used since it was cloned itself may still have the UUID before.
    origin = filesystem.origin or filesystem.uuid
    return Filesystem(state="CLONED", type=filesystem.type, uuid=str(uuid.uuid4()), origin=origin)


def clone_dependent(volume: Volume) -> Dependent:
    """Return the record that keeps a clone's origin from being destroyed."""
    return Dependent(id=f"{volume.origin}/volumes/{volume.uid}", name=f"volumes/{volume.id}")


def held(volume: Volume) -> tuple[Change, ...]:
    """Return the change that keeps the origin of a clone."""
    return (put(clone_dependent(volume)),) if volume.origin else ()


def home_of(txn: Transaction, snapshot: Snapshot) -> Volume | None:
    """Return the volume of a snapshot, wherever its zvol is now."""
    living = txn.get(Volume, snapshot.volume)
    if living is not None and living.uid == snapshot.volume_uid:
        return living
    trashed = txn.get(Trashed, f"{snapshot.volume}/{snapshot.volume_uid}")
    return trashed.volume if trashed else None


def claim_of(txn: Transaction, snapshot: Snapshot) -> str:
    """Return the claim that keeps a snapshot's zvol where it is."""
    living = txn.get(Volume, snapshot.volume)
    here = living is not None and living.uid == snapshot.volume_uid
    return f"volume/{snapshot.volume}" if here else f"trash/{snapshot.volume_uid}"


def need_snapshot(txn: Transaction, snapshot_id: str) -> Snapshot:
    """Return a snapshot, else raise NotFound."""
    found = txn.get(Snapshot, check_id(snapshot_id, "snapshot id"))
    if found is None:
        raise NotFound(f"there is no snapshot {snapshot_id}", snapshot=snapshot_id)
    return found
