"""Which volumes a policy selects, and when a peer must have a newer snapshot of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.policies import ReplicationPolicy
from zfsilod.model.records import Volume
from zfsilod.model.replica import Replication

if TYPE_CHECKING:
    from zfsilod.model.policies import TimedPolicy
    from zfsilod.storage.transaction import Transaction

    Labels = dict[str, set[tuple[str, str]]]


def volume_labels(txn: Transaction) -> Labels:
    """Return the labels of every volume by its id, replicas left out.

    Reads all volumes: not in the event loop.
    """
    return {
        volume["id"]: {(name, value) for name, value in volume.get("labels", ())}
        for volume in txn.scan_plain(Volume)
        if not volume.get("replica", {}).get("peer")  # its snapshots come with it
    }


def selected(policy: TimedPolicy, labels: Labels) -> list[str]:
    """Return the ids of the volumes that a policy selects: replicas are never among them.

    These are the volumes with all labels of its selector, and those that it names; one that names
    some and has no selector selects no others.
    """
    named = set(policy.volumes) if isinstance(policy, ReplicationPolicy) else set()
    wanted = set(policy.selector)
    by_labels = bool(wanted) or not named
    return [
        volume for volume, own in labels.items() if volume in named or (by_labels and wanted <= own)
    ]


def due_times(txn: Transaction) -> dict[tuple[str, str], int]:
    """Return when a peer must have a newer snapshot, by volume and peer.

    Only of volumes that a policy still selects, with the calendar by which it sent them last.
    """
    policies = list(txn.scan(ReplicationPolicy))
    if not policies:
        return {}
    labels = volume_labels(txn)
    sent = {(one.timer_text, one.peer, name) for one in policies for name in selected(one, labels)}
    return {
        (one["volume"], one["peer"]): int(one["due_at"])
        for one in txn.scan_plain(Replication)
        if one.get("due_at") and (one["due_of"], one["peer"], one["volume"]) in sent
    }


def replications(txn: Transaction, volume: Volume) -> tuple[Replication, ...]:
    """Return to which peers a volume is sent, with `due_at` 0 where no policy does it any more."""
    known = tuple(txn.scan_below(Replication, volume.uid))
    if not any(one.due_at for one in known):
        return known
    labels = {volume.id: set(volume.labels)}
    sent = {
        (policy.timer_text, policy.peer)
        for policy in txn.scan(ReplicationPolicy)
        if selected(policy, labels)
    }
    return tuple(one if (one.due_of, one.peer) in sent else one.but(due_at=0) for one in known)
