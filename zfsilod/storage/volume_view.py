"""Views of volumes for readers: all records of one host under the name of a volume. No I/O."""

from __future__ import annotations

import heapq
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from zfsilod.model.errors import NotFound
from zfsilod.model.record import Record
from zfsilod.model.records import (
    Attachment,
    Condition,
    Operation,
    Publication,
    Standing,
    Trashed,
    Volume,
    VolumeKey,
)
from zfsilod.model.validation import check_id
from zfsilod.storage.selection import replications

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfsilod.model.replica import Replication
    from zfsilod.storage.transaction import Transaction


class VolumeView(Record):
    """The records of one host under a volume's name: the volume, an attachment, or both."""

    id: str
    volume: Volume | None = None
    publications: tuple[Publication, ...] = ()
    attachment: Attachment | None = None
    operation: str = ""  # the live operation on it
    conditions: tuple[str, ...] = ()  # its problems, a sentence each
    condition_reasons: tuple[str, ...] = ()  # of these problems, in the same order
    volume_key: VolumeKey | None = None  # what zfsilo knows of the key of the volume
    replications: tuple[Replication, ...] = ()  # to which peers it is sent
    standing: Standing | None = None  # of a volume with peers: what they said
    trashed: Trashed | None = None  # of a deleted volume, which does not own its name any more

    @property
    def key(self) -> str:
        """The sort key of lists; a deleted volume comes after an existing one of the same name."""
        return self.trashed.key if self.trashed else self.id

    @property
    def uid(self) -> str:
        """The volume's uid, which is the serial of its disk on a client."""
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
        if self.volume.is_replica and self.volume.state == "ABSENT":
            return "ABSENT"  # no snapshot of it is whole
        return "PUBLISHED" if self.publications else "CREATED"

    @property
    def etag(self) -> str:
        """The etag for requests on the volume: the revision of its record."""
        record = self.volume or self.attachment
        return str(record.revision) if record else ""


def volume_view(txn: Transaction, volume_id: str) -> VolumeView:
    """Return the view of a volume. Raises NotFound."""
    check_id(volume_id, "volume id")
    view = _volume_view(txn, volume_id)
    if view.volume is None and view.attachment is None:
        raise NotFound(f"there is no volume {volume_id} on this host", volume=volume_id)
    return view


def volume_views(txn: Transaction, after: str = "") -> Iterator[VolumeView]:
    """Yield the views of all names after `after`, in the order of the names."""
    names = heapq.merge(
        (volume.id for volume in txn.scan(Volume, after)),
        (attachment.id for attachment in txn.scan(Attachment, after)),
    )
    for volume_id, _same in groupby(names):
        yield _volume_view(txn, volume_id)


def volume_views_with_deleted(txn: Transaction, after: str = "") -> Iterator[VolumeView]:
    """Yield the same and the deleted volumes, in the order of `VolumeView.key`."""
    deleted = (
        VolumeView(id=trashed.volume.id, volume=trashed.volume, trashed=trashed)
        for trashed in txn.scan(Trashed, after)
    )
    return heapq.merge(volume_views(txn, after), deleted, key=lambda view: view.key)


def page(
    txn: Transaction, *, after: str, limit: int, wanted: Callable[[VolumeView], bool]
) -> tuple[list[VolumeView], str]:
    """Return up to `limit` wanted views after `after`, and the next `after` ("": the end)."""
    views: list[VolumeView] = []
    for view in volume_views(txn, after):
        if len(views) == limit:
            return views, views[-1].id
        if wanted(view):
            views.append(view)
    return views, ""


def _volume_view(txn: Transaction, volume_id: str) -> VolumeView:
    volume = txn.get(Volume, volume_id)
    view = VolumeView(
        id=volume_id,
        volume=volume,
        volume_key=txn.get(VolumeKey, volume.key_uid)
        if volume is not None and volume.key_uid
        else None,
        publications=tuple(txn.scan_below(Publication, volume_id)),
        attachment=txn.get(Attachment, volume_id),
        replications=replications(txn, volume) if volume is not None else (),
        standing=standing_of(txn, volume) if volume is not None else None,
        operation=txn.claimant(f"volume/{volume_id}")
        or txn.claimant(f"attachment/{volume_id}")
        or "",
    )
    conditions = conditions_of(txn, view)
    if not conditions:
        return view
    return view.but(
        conditions=tuple(sentence for sentence, _reason in conditions),
        condition_reasons=tuple(reason for _sentence, reason in conditions),
    )


def standing_of(txn: Transaction, volume: Volume) -> Standing | None:
    """Return what the peers of a volume said; None: it has no peer that could be promoted."""
    if volume.is_replica or not volume.peers:
        return None
    return txn.get(Standing, volume.uid) or Standing(id=volume.uid)


def why_withheld(standing: Standing | None, volume_id: str) -> tuple[str, str]:
    """Return why a volume is not served, as a sentence and a reason; "": it is.

    The start of the daemon has removed the boots before this one.
    """
    if standing is None or standing.boot_id:
        return "", ""
    peer, here = standing.peer, f"zfsiloctl volume promote {volume_id}"
    match standing.reason:
        case "PEER_SILENT":
            why = (
                f"{peer} has its data and does not answer, so it may be served there; when {peer} "
                f"is back this ends by itself, and when it is off run `{here} --primary-is-off`"
            )
        case "PROMOTED_ELSEWHERE":
            why = f"{peer} was promoted later and serves it; what only this server has is put aside"
        case "LATER_TERM":
            why = (
                f"{peer} knows of a later promotion, on a server that this one does not know; when "
                f"that is off for good run `{here} --primary-is-off`"
            )
        case "PRIMARY_SERVES":
            why = (
                f"{peer} serves it too, since an earlier promotion: decide which data are right, "
                f"and run zfsiloctl volume demote {volume_id} --aside on the other server"
            )
        case _:
            why = "its peers are being asked whether one of them was promoted"
    return f"{volume_id} is not served: {why}", standing.reason or "NOT_ASKED"


def conditions_of(txn: Transaction, view: VolumeView) -> list[tuple[str, str]]:
    """Return the conditions of a volume, as every interface shows them: sentences and reasons."""
    operation = txn.get(Operation, view.operation) if view.operation else None
    stored = txn.get(Condition, view.uid)
    conditions: list[tuple[str, str]] = []
    if operation is not None and operation.state == "NEEDS_REPAIR":
        sentence = f"{needs_repair(operation)}; run {repair_command(operation)}"
        conditions.append((sentence, "NEEDS_REPAIR"))
    withheld, reason = why_withheld(view.standing, view.id)
    if withheld:
        conditions.append((withheld, reason))
    if stored is not None:
        conditions += zip_longest(
            stored.sentences, stored.reasons[: len(stored.sentences)], fillvalue="UNKNOWN"
        )
    return conditions


def needs_repair(operation: Operation) -> str:
    """Return why an operation needs repair, as a sentence."""
    reason = operation.failure.message if operation.failure else "it was stopped"
    return f"{operation.title} needs repair: {reason}"


def repair_command(operation: Operation) -> str:
    """Return the command line that repairs an operation."""
    return f"zfsiloctl operation repair {operation.id}"
