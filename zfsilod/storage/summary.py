"""What a host has, in numbers, and what needs somebody's attention: for `status` and the metrics.

It looks at every record, so it takes them as they are stored: making objects of ten thousand
volumes would take ten times as long.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.record import Record
from zfsilod.model.records import Attachment, Condition, Host, PendingRelease, Publication, Volume
from zfsilod.storage.volume_view import needs_repair, repair_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.storage.store import Transaction


class Attention(Record):
    """Something that does not get well by itself."""

    subject: str  # a resource name
    sentence: str
    command: str = ""  # what to type


def about_volume(name: str, sentence: str) -> Attention:
    """Return that something is wrong with a volume."""
    command = f"zfsiloctl volume show {name}"
    return Attention(subject=f"volumes/{name}", sentence=sentence, command=command)


class Served(NamedTuple):
    """What is kept of a volume of this host: there may be very many."""

    uid: str
    dataset: str
    size_bytes: int


class Used(NamedTuple):
    """What is kept of an attachment."""

    serial: str
    state: str


class Summary:
    """All records of a host, counted."""

    def __init__(self, txn: Transaction) -> None:
        self.revision = txn.revision()
        self.promised_bytes = txn.promised()
        self.volumes = {
            each["id"]: Served(each["uid"], each["dataset"], each["capacity_bytes"])
            for each in txn.scan_plain(Volume)
        }
        self.attachments = {
            each["id"]: Used(each["disk"]["serial"], each["state"])
            for each in txn.scan_plain(Attachment)
        }
        self.publications = Counter(each["volume"] for each in txn.scan_plain(Publication))
        self.hosts = sum(1 for _each in txn.scan_plain(Host))
        self.pending_releases = sum(1 for _each in txn.scan_plain(PendingRelease))
        live = list(txn.live())
        self.operations: Counter[str] = Counter(each.state for each in live)
        self.states = Counter(self._states())
        self.attention = (
            *(
                Attention(
                    subject=each.subject,
                    sentence=needs_repair(each),
                    command=repair_command(each),
                )
                for each in live
                if each.state == "NEEDS_REPAIR"
            ),
            *self._conditions(txn),
        )

    def _states(self) -> Iterator[str]:
        """Yield every volume's state, as views.View has it."""
        for name in self.volumes.keys() | self.attachments.keys():
            here = self.attachments.get(name)
            if name in self.volumes and (here is None or here.state == "ABSENT"):
                yield "PUBLISHED" if self.publications[name] else "CREATED"
            elif here is not None:
                yield here.state

    def _conditions(self, txn: Transaction) -> Iterator[Attention]:
        found = list(txn.scan_plain(Condition))
        if not found:
            return
        names = {each.uid: name for name, each in self.volumes.items()}
        names |= {each.serial: name for name, each in self.attachments.items()}
        for each in found:
            if name := names.get(each["id"]):  # else it is gone, as this will be
                yield from (about_volume(name, sentence) for sentence in each["sentences"])
