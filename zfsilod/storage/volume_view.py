"""What readers are shown: a volume as this host knows it, whichever side it is on. No I/O."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING

from zfsilod.model.errors import NotFound
from zfsilod.model.record import Record
from zfsilod.model.records import Attachment, Condition, Operation, Publication, Trashed, Volume
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfsilod.storage.store import Transaction


class VolumeView(Record):
    """All that one host knows under a volume's name: the volume, an attachment, or both."""

    id: str
    volume: Volume | None = None
    publications: tuple[Publication, ...] = ()
    attachment: Attachment | None = None
    operation: str = ""  # at work on it now
    conditions: tuple[str, ...] = ()  # what is wrong with it
    trashed: Trashed | None = None  # it was deleted, and its name leads here no more

    @property
    def key(self) -> str:
        """The key that lists are ordered by; deleted volumes come after a living one's name."""
        return self.trashed.key if self.trashed else self.id

    @property
    def uid(self) -> str:
        """The volume's uid, which is the serial of its disk on the other side."""
        if self.volume is not None:
            return self.volume.uid
        return self.attachment.disk.serial if self.attachment else ""

    @property
    def state(self) -> str:
        """The highest state on this host, one of STATES."""
        if self.attachment is not None and self.attachment.state != "ABSENT":
            return self.attachment.state
        if self.volume is None:
            return "ABSENT"
        return "PUBLISHED" if self.publications else "CREATED"

    @property
    def etag(self) -> str:
        """The etag that requests about the volume take: its record's revision."""
        record = self.volume or self.attachment
        return str(record.revision) if record else ""


def volume_view(txn: Transaction, volume_id: str) -> VolumeView:
    """Return what is known under a name, else raise NotFound."""
    check_id(volume_id, "volume id")
    found = _volume_view(txn, volume_id)
    if found.volume is None and found.attachment is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return found


def volume_views(txn: Transaction, after: str = "") -> Iterator[VolumeView]:
    """Yield what is known under every name behind `after`, in the order of the names."""
    names = heapq.merge(
        (each.id for each in txn.scan(Volume, after)),
        (each.id for each in txn.scan(Attachment, after)),
    )
    for volume_id, _same in groupby(names):
        yield _volume_view(txn, volume_id)


def volume_views_with_deleted(txn: Transaction, after: str = "") -> Iterator[VolumeView]:
    """Yield the same and what is in the trash, in the order of `View.key`."""
    deleted = (
        VolumeView(id=each.volume.id, volume=each.volume, trashed=each)
        for each in txn.scan(Trashed, after)
    )
    return heapq.merge(volume_views(txn, after), deleted, key=lambda each: each.key)


def page(
    txn: Transaction, *, after: str, limit: int, wanted: Callable[[VolumeView], bool]
) -> tuple[list[VolumeView], str]:
    """Return up to `limit` wanted views behind `after`, and the next `after` ("": the end)."""
    found: list[VolumeView] = []
    for each in volume_views(txn, after):
        if len(found) == limit:
            return found, found[-1].id
        if wanted(each):
            found.append(each)
    return found, ""


def _volume_view(txn: Transaction, volume_id: str) -> VolumeView:
    found = VolumeView(
        id=volume_id,
        volume=txn.get(Volume, volume_id),
        publications=tuple(txn.scan_below(Publication, volume_id)),
        attachment=txn.get(Attachment, volume_id),
        operation=txn.claimant(f"volume/{volume_id}")
        or txn.claimant(f"attachment/{volume_id}")
        or "",
    )
    conditions = conditions_of(txn, found)
    return found.but(conditions=conditions) if conditions else found


def conditions_of(txn: Transaction, view: VolumeView) -> tuple[str, ...]:
    """Return the conditions of a volume, one sentence each, as every interface shows them."""
    operation = txn.get(Operation, view.operation) if view.operation else None
    stored = txn.get(Condition, view.uid)
    sentences = stored.sentences if stored else ()
    if operation is None or operation.state != "NEEDS_REPAIR":
        return sentences
    return (f"{needs_repair(operation)}; run {repair_command(operation)}", *sentences)


def needs_repair(operation: Operation) -> str:
    """Return why an operation needs repair, as a sentence."""
    reason = operation.failure.message if operation.failure else "it was stopped"
    return f"{operation.title} needs repair: {reason}"


def repair_command(operation: Operation) -> str:
    """Return the command line that repairs an operation."""
    return f"zfsiloctl operation repair {operation.id}"
