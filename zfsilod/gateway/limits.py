"""Limits on connections: in all per kind, and per address, user or certificate."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from zfsilod.model.record import Record

if TYPE_CHECKING:
    from zfsilod.model.identity import Peer


BURST, PER_S = 40, 20.0  # new connections of one address, user or certificate
# Headers of one token or certificate, in bytes and CALL_COST for each call: 400 calls a second. A
# byte may name an entry of a table, so that gRPC needs 60 ns for it.
HEADER_BURST, HEADERS_PER_S = 256 << 10, 128 << 10
MAX_KEYS = 4096


class Limits(Record):
    """The numbers of connections that are accepted; further ones are closed at once."""

    unix: int = 256  # root has as many of its own
    node: int = 256
    tcp: int = 256
    handshake: int = 256  # TCP connections that have not completed it
    anonymous: int = 256  # TCP connections without a certificate
    per_peer: int = 64  # from one address, user or certificate; root has no such limit


class ConnectionCount:
    """Counts connections by kind and by peer."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._by_kind: Counter[str] = Counter()
        self.by_peer: Counter[str] = Counter()

    def is_full(self, peer: Peer, kind: str = "") -> bool:
        """Tell whether a connection of this peer would exceed a limit."""
        if peer.uid != 0 and self.by_peer[peer.quota_key] >= self.limits.per_peer:
            return True
        kind = kind or _kind(peer)
        limits = self.limits
        places = {
            "root": limits.unix,
            "unix": limits.unix,
            "node": limits.node,
            "tcp": limits.tcp,
            "handshake": limits.handshake,
            "anonymous": limits.anonymous,
        }
        return self._by_kind[kind] >= places[kind]

    def add(self, peer: Peer, kind: str = "") -> None:
        """Count a connection; `kind` "handshake": one that has not completed it."""
        self._by_kind[kind or _kind(peer)] += 1
        self.by_peer[peer.quota_key] += 1

    def remove(self, peer: Peer, kind: str = "") -> None:
        """Count a connection no more."""
        self._by_kind[kind or _kind(peer)] -= 1
        self.by_peer[peer.quota_key] -= 1
        self.by_peer += Counter()  # drops keys whose count is 0


class Pace:
    """Spreads what peers begin: `burst` at once, then `per_s` a second."""

    def __init__(self, burst: float = BURST, per_s: float = PER_S) -> None:
        self._burst_s = burst / per_s
        self._per_s = per_s
        self._free_at: dict[str, float] = {}  # when as many as arrived would have been let in

    def wait_s(self, key: str, now: float, cost: float = 1) -> float:
        """Return how long a new connection, or what costs `cost`, has to wait, and count it."""
        if len(self._free_at) > MAX_KEYS:
            self._free_at = {name: at for name, at in self._free_at.items() if at > now}
        free_at = max(now, self._free_at.get(key, 0.0)) + cost / self._per_s
        self._free_at[key] = free_at
        return max(0.0, free_at - now - self._burst_s)


def _kind(peer: Peer) -> str:
    """Return the kind under which a connection is counted.

    Root has places of its own, and so have peers with a certificate.
    """
    if peer.kind == "tcp":
        return "tcp" if peer.certificate else "anonymous"
    return "root" if peer.kind == "unix" and peer.uid == 0 else peer.kind
