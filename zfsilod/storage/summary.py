"""Counts of the records of a host, and the problems that need an administrator.

`zfsiloctl status` and the metrics show them. Every record is read, as JSON: decoding ten thousand
volumes to objects would take ten times as long.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.policies import PolicyOutcome, ReplicationOutcome
from zfsilod.model.record import Record
from zfsilod.model.records import (
    Attachment,
    Condition,
    Host,
    PendingRelease,
    Publication,
    Standing,
    Volume,
)
from zfsilod.model.replica import Replication
from zfsilod.storage.selection import due_times
from zfsilod.storage.volume_view import needs_repair, repair_command, why_withheld

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.storage.transaction import Transaction


NO_TIMER = "has no timer"


class Attention(Record):
    """A problem that zfsilo does not repair by itself."""

    subject: str  # a resource name
    sentence: str
    command: str = ""  # the command line that shows or repairs it


def about_volume(name: str, sentence: str) -> Attention:
    """Return a problem of a volume, with the command that shows the volume."""
    command = f"zfsiloctl volume show {name}"
    return Attention(subject=f"volumes/{name}", sentence=sentence, command=command)


def _about_policy(outcome: PolicyOutcome) -> Attention:
    sentences = outcome.failures or outcome.prune_failures or outcome.all_failures
    more = f" and {len(sentences) - 1} more" if len(sentences) > 1 else ""
    if outcome.failures:
        what = "could not take a snapshot"
    else:
        what = "could not delete a snapshot" if outcome.prune_failures else NO_TIMER
    return Attention(
        subject=f"snapshotPolicies/{outcome.id}",
        sentence=f"policy {outcome.id} {what}: {sentences[0]}{more}",
        command=f"zfsiloctl schedule show {outcome.id}",
    )


def _about_replication(outcome: ReplicationOutcome) -> Attention:
    more = f" and {outcome.failed - 1} more" if outcome.failed > 1 else ""
    what = "could not send a volume" if outcome.failures else NO_TIMER
    return Attention(
        subject=f"replicationPolicies/{outcome.id}",
        sentence=f"replication policy {outcome.id} {what}: {outcome.all_failures[0]}{more}",
        command=f"zfsiloctl replication show {outcome.id}",
    )


class Served(NamedTuple):
    """The fields of a volume of this server that the metrics need."""

    uid: str
    dataset: str
    size_bytes: int
    target: str


class Used(NamedTuple):
    """The fields of an attachment that the summary needs."""

    serial: str
    state: str


class Summary:
    """The counts, and the problems, of all records of a host."""

    def __init__(self, txn: Transaction) -> None:
        self.revision = txn.revision()
        self.promised_bytes = txn.promised()
        self.volumes = {
            volume["id"]: Served(
                volume["uid"],
                volume["dataset"],
                volume["capacity_bytes"],
                volume.get("target", ""),
            )
            for volume in txn.scan_plain(Volume)
        }
        # By volume and peer: when the newest snapshot was taken that has arrived; 0: none has.
        self.replicas = {
            (volume["id"], replica["peer"]): int(replica["taken_at"])
            for volume in txn.scan_plain(Volume)
            if (replica := volume.get("replica")) and replica["peer"]
        }
        # Volumes that are not served because of what their peers said, or did not say yet.
        self.withheld = dict(_withheld(txn))
        self.replications = {
            (one["volume"], one["peer"]): int(one["taken_at"])
            for one in txn.scan_plain(Replication)
        }
        self.due = due_times(txn)  # by volume and peer
        self.attachments = {
            attachment["id"]: Used(attachment["disk"]["serial"], attachment["state"])
            for attachment in txn.scan_plain(Attachment)
        }
        self.publications = Counter(
            publication["volume"] for publication in txn.scan_plain(Publication)
        )
        self.hosts = sum(1 for _host in txn.scan_plain(Host))
        self.pending_releases = sum(1 for _release in txn.scan_plain(PendingRelease))
        live = list(txn.live())
        self.operations: Counter[str] = Counter(operation.state for operation in live)
        self.states = Counter(self._states())
        self.attention = (
            *(
                Attention(
                    subject=operation.subject,
                    sentence=needs_repair(operation),
                    command=repair_command(operation),
                )
                for operation in live
                if operation.state == "NEEDS_REPAIR"
            ),
            *(about_volume(name, sentence) for (name, _), sentence in self.withheld.items()),
            *self._conditions(txn),
        )
        self.policies = {outcome.id: outcome for outcome in txn.scan(PolicyOutcome)}
        self.attention += tuple(_about_policy(one) for one in self.policies.values() if one.failed)
        self.replication_runs = {outcome.id: outcome for outcome in txn.scan(ReplicationOutcome)}
        self.attention += tuple(
            _about_replication(one) for one in self.replication_runs.values() if one.failed
        )

    def late(self, now: int) -> list[Attention]:
        """Return the volumes of which a peer has an older snapshot than a policy allows."""
        return [
            about_volume(
                volume,
                f"{peer} has no snapshot of it that is new enough for its replication policy: one "
                f"was due by {time.strftime('%Y-%m-%d %H:%M', time.gmtime(due))} UTC",
            )
            for (volume, peer), due in self.due.items()
            if due < now
        ]

    def _states(self) -> Iterator[str]:
        """Yield the state of every volume, as VolumeView.state."""
        for name in self.volumes.keys() | self.attachments.keys():
            attachment = self.attachments.get(name)
            if name in self.volumes and (attachment is None or attachment.state == "ABSENT"):
                yield "PUBLISHED" if self.publications[name] else "CREATED"
            elif attachment is not None:
                yield attachment.state

    def _conditions(self, txn: Transaction) -> Iterator[Attention]:
        conditions = list(txn.scan_plain(Condition))
        if not conditions:
            return
        names = {volume.uid: name for name, volume in self.volumes.items()}
        names |= {attachment.serial: name for name, attachment in self.attachments.items()}
        for condition in conditions:
            if name := names.get(condition["id"]):  # else of a deleted volume
                yield from (about_volume(name, sentence) for sentence in condition["sentences"])


def _withheld(txn: Transaction) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield volume and reason, and the sentence, of each volume with peers that is not served."""
    known = {standing.id: standing for standing in txn.scan(Standing)}
    for volume in txn.scan_plain(Volume):
        if volume.get("peers") and not volume.get("replica", {}).get("peer"):
            standing = known.get(volume["uid"]) or Standing(id=volume["uid"])
            sentence, reason = why_withheld(standing, volume["id"])
            if sentence:
                yield (volume["id"], reason), sentence
