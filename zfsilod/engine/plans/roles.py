"""Plans by which a server begins or ends to serve a volume that a peer has too. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.engine.plans import server
from zfsilod.engine.plans.actions import up
from zfsilod.engine.steps.replica import ReceiveEnded, ReplicaUnchanged
from zfsilod.engine.steps.users import ZvolUnused
from zfsilod.engine.steps.zfs import ZvolProperty
from zfsilod.engine.steps.zvol_name import ZvolRenamed
from zfsilod.model.zfs_properties import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.records import Action, Step, Volume


def promotion(before: Volume, after: Volume, operation: str) -> tuple[Action, ...]:
    """Return the change of a replica into a volume that this server serves.

    The epoch comes first: a store from before the promotion is older than the zvol from then on.
    """
    dataset, values = after.dataset, server.all_properties(after)
    chosen = [
        ZvolProperty(dataset=dataset, name=name, value=value, previous=HIDDEN.get(name, ""))
        for name, value in values.items()
    ]
    writable = ZvolProperty(dataset=dataset, name="readonly", value="", previous="on")
    ended = ReceiveEnded(dataset=dataset, uid=after.uid)
    first: list[Step] = [
        server.not_exported(before),
        server.epoch(before, after.epoch, operation),
        ended,
    ]
    return (*up([*first, *chosen]), *server.mark_changes(before, after), *up([writable]))


def demotion(
    before: Volume, after: Volume, released: Sequence[Action], operation: str
) -> tuple[Action, ...]:
    """Return the change of a volume into a replica of the snapshot that its peer has.

    `released`: the end of what was kept for the peer.

    It is read-only before the last look whether something was written since that snapshot.
    """
    readonly = ZvolProperty(dataset=after.dataset, name="readonly", value="on", previous="")
    unchanged = ReplicaUnchanged(
        dataset=after.dataset,
        uid=after.uid,
        snapshot_uid=after.replica.snapshot_uid,
        snapshot_guid=after.replica.snapshot_guid,
    )
    first: list[Step] = [
        server.not_exported(before),
        server.epoch(before, after.epoch, operation),
        ZvolUnused(dataset=before.dataset),
        readonly,
        unchanged,
    ]
    return (*up(first), *released, *server.mark_changes(before, after))


def set_aside(before: Volume, after: Volume, epoch_now: int, operation: str) -> tuple[Action, ...]:
    """Return the change of a volume into one with another name and another uid."""
    first: list[Step] = [
        server.not_exported(before),
        server.epoch(before, epoch_now, operation),
        ZvolUnused(dataset=before.dataset),
        ZvolRenamed(dataset=after.dataset, other=before.dataset, uid=before.uid, guid=before.guid),
    ]
    return (*up(first), *server.mark_changes(before, after))
