"""What the peers of a volume say of it: whether one of them was promoted.

A peer is another server that has, or had, the data of a volume. Before a volume is served after a
boot, and before a replica is promoted, its peers are asked. An answer is bounded and checked before
it is used (wire/server_answers.py); no answer is never taken as "not promoted".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from zfsilod.model.errors import Busy, FailedPrecondition
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfsilod.model.records import Volume
    from zfsilod.model.replica import ReplicaFacts

Outcome = Literal["NONE", "REPLICA", "PRIMARY", "BUSY", "SILENT"]
"""Of a question: it has no such volume, a replica, serves it, is changing it, or did not answer."""
MAX_PEERS = 8
PROMOTING = "PROMOTING"
ROLE_CHANGES = ("promote", "demote", "set-aside")  # kinds of requests


class PeerAnswer(Record):
    """What one peer said of a volume."""

    peer: str
    outcome: Outcome
    term: int = 0
    term_store: str = ""
    guid: str = ""  # of the newest snapshot of its replica
    why: str = ""  # it did not answer, or is busy

    def is_later_than(self, volume: Volume) -> bool:
        """Tell whether the peer knows a later promotion than the record of a volume."""
        return (self.term, self.term_store) > (volume.term, volume.term_store)


def known_peers(volume: Volume, *others: str) -> tuple[str, ...]:
    """Return the peers of a volume with some more; what sends a replica is one too."""
    names = (*volume.peers, volume.replica.peer, *others)
    return tuple(dict.fromkeys(name for name in names if name))


def answer_of(peer: str, facts: ReplicaFacts) -> PeerAnswer:
    """Return the answer that a peer gave."""
    outcome: Outcome = "PRIMARY" if facts.is_primary else "REPLICA" if facts.exists else "NONE"
    return PeerAnswer(
        peer=peer,
        outcome=outcome,
        term=facts.term,
        term_store=facts.term_store,
        guid=facts.guid,
    )


def judge(volume: Volume, answers: Sequence[PeerAnswer]) -> tuple[str, str]:
    """Return why a volume may not be served here, and the peer that is the cause; "": it may.

    A later promotion counts more than a peer that is silent. Two servers never serve a volume,
    whichever was promoted later.
    """
    for reason, matches in (
        ("PROMOTED_ELSEWHERE", [a for a in answers if _serves(a) and a.is_later_than(volume)]),
        ("PRIMARY_SERVES", [a for a in answers if _serves(a)]),
        ("LATER_TERM", [a for a in answers if a.is_later_than(volume)]),
        ("PEER_SILENT", [a for a in answers if a.outcome in ("BUSY", "SILENT")]),
    ):
        if matches:
            return reason, matches[0].peer
    return "", ""


def _serves(answer: PeerAnswer) -> bool:
    return answer.outcome == "PRIMARY"


def check_not_promoted(volume: Volume, answer: PeerAnswer) -> None:
    """Raise FailedPrecondition when a peer that is to receive a volume was promoted later.

    One that serves it otherwise refuses what is sent.
    """
    if answer.is_later_than(volume):
        raise FailedPrecondition(
            f"{answer.peer} was promoted, and serves {volume.id} itself: this server puts its own "
            f"data aside, and becomes the replica; see zfsiloctl volume show {volume.id}",
            reason="PROMOTED_ELSEWHERE",
            volume=volume.id,
            server=answer.peer,
        )


def promoting(volume: str) -> Busy:
    """Return the error for a question about a volume whose role is being changed."""
    return Busy(
        f"the role of volume {volume} is being changed on this server: ask again",
        reason=PROMOTING,
        volume=volume,
    )
