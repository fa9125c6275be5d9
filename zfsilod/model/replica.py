"""Replicas: what a server knows of a volume that it sends to a peer, and what a peer has of it."""

from __future__ import annotations

from zfsilod.model.record import Record, Stored

MAX_TOKEN = 4096
MAX_TERM = 1 << 40  # a term is a number of seconds since 1970, or one more than another
MIN_RATE = 1 << 16  # bytes a second: a slower stream would seem to be silent
TOKEN_CHARACTERS = frozenset("0123456789abcdef-")


def is_token(text: str) -> bool:
    """Tell whether a text has the form of a resume token: receive_resume_token in zfsprops(7)."""
    return 0 < len(text) <= MAX_TOKEN and text[0] != "-" and TOKEN_CHARACTERS.issuperset(text)


class Replication(Stored, tag="Replication"):
    """A volume that is sent to a peer: the snapshot that both have, and the one on its way."""

    id: str  # <uid of the volume>/<peer>
    volume: str
    peer: str  # a server of servers.d
    number: int = 0  # of the newest snapshot that the peer has; 0: none
    snapshot: str = ""  # its id
    snapshot_uid: str = ""
    snapshot_guid: str = ""
    taken_at: int = 0
    sent_at: int = 0
    pending_uid: str = ""  # of a snapshot that is kept for a transfer that was cut off
    due_at: int = 0  # when the peer must have a newer snapshot; 0: not known
    due_of: str = ""  # timer_text of the policy that says so
    rate: int = 0  # bytes a second of the operation `rate_of`, changed while that runs
    rate_of: str = ""
    created_at: int = 0


class ReplicaFacts(Record):
    """What the pool of a peer has of a volume."""

    exists: bool = False  # the zvol, whole or partly received
    guid: str = ""  # of its newest whole snapshot
    token: str = ""  # that continues an unfinished receive: zfs-send(8), -t
    problem: str = ""  # why the last receive ended before its end, as a sentence
    reason: str = ""  # of that problem
    is_primary: bool = False  # the peer is the server of the volume itself
    term: int = 0  # of the primary that the peer knows of
    term_store: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in the zvol: its last snapshot was destroyed, and itself not yet."""
        return self.exists and not self.guid and not self.token


class KeptSnapshot(Record):
    """A snapshot of a zvol that zfsilo took, or its bookmark, which can be the base of a stream."""

    uid: str  # of the snapshot set
    guid: str
    created_txg: int  # in which the snapshot was taken: later ones have larger numbers
    exists: bool = False  # the snapshot; False: the bookmark alone
    bookmarked: bool = False
    peers: tuple[str, ...] = ()  # that hold it


class SendJob(Record):
    """A stream of zfs send: which snapshot, since which base."""

    dataset: str  # the zvol
    volume_uid: str
    uid: str  # of the snapshot set
    guid: str  # of the snapshot in ZFS
    base_uid: str = ""  # "": the whole snapshot
    base_guid: str = ""
    raw: str = ""  # "raw": as it is on the disks, for an encrypted zvol
    token: str = ""  # of the peer, which is not trusted

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of a process."""
        return tuple(getattr(self, name) or NONE for name in self.FIELDS)

    @classmethod
    def parsed(cls, words: list[str]) -> SendJob:
        """Return the job of a process by its arguments."""
        texts = ("" if word == NONE else word for word in words)
        return cls(**dict(zip(cls.FIELDS, texts, strict=True)))


NONE = "-"
