"""Limits on the calls of one caller, and the pace of its changes.

A caller that exceeds its limit is refused, and nobody else: neither root nor other callers share
its places. A refusal waits for a moment, so that a caller in a loop costs little.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from zfsilod.gateway.limits import Pace
from zfsilod.model.errors import ResourceExhausted

if TYPE_CHECKING:
    from zfsilod.model.identity import Peer

MAX_CALLS = 256  # of one caller: daemon.max_calls
LASTING_SHARE = 8  # of these calls one in so many may be a stream without an end

CHANGE, REFUSED = "change", "refused"
# What one caller may do at once, and then each second; more waits. A client registers and renews
# once in weeks, and neither needs a unit, which would limit it.
PACES = {
    CHANGE: (256, 100.0),
    REFUSED: (32, 10.0),
    "RegisterHost": (16, 1.0),
    "RenewCertificate": (16, 1.0),
}


class CallLimits:
    """Counts the calls of each caller, from their first header to their end."""

    def __init__(self, most: int = MAX_CALLS) -> None:
        self._most = most
        self._calls: Counter[str] = Counter()
        self._paces = {kind: Pace(*pace) for kind, pace in PACES.items()}

    def enter(self, peer: Peer, *, lasts: bool) -> CallPlace:
        """Return a place for a call. Raises ResourceExhausted."""
        key = f"{peer.kind} {peer.caller_key}"
        place = CallPlace(self._calls, key)
        if is_root(peer):
            return place
        place.paces = self._paces
        self._check(key, self._most)
        if lasts:
            place.keys.append(f"{key} lasting")
            self._check(place.keys[-1], max(1, self._most // LASTING_SHARE))
        return place

    def _check(self, key: str, most: int) -> None:
        if self._calls[key] >= most:
            raise ResourceExhausted(
                f"{key} has {most} calls in progress; wait for one of them, or raise "
                "daemon.max_calls on the server",
                reason="TOO_MANY_CALLS",
            )


class CallPlace:
    """The place of one call; it lasts as long as the call or work that the call has left behind."""

    def __init__(self, calls: Counter[str], key: str) -> None:
        self.keys = [key]
        self.paces: dict[str, Pace] = {}  # none: root has no pace
        self._calls = calls
        self._users = 0

    def __enter__(self) -> CallPlace:
        self.retain()
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    async def wait_for_turn(self, kind: str) -> None:
        """Wait until a change (the name of its method) or the answer to a refusal is due."""
        pace = self.paces.get(kind) or self.paces.get(CHANGE)
        if pace is not None and (wait_s := pace.wait_s(self.keys[0], time.monotonic())):
            await asyncio.sleep(wait_s)

    def retain(self) -> None:
        """Keep the place until one more `release`."""
        if not self._users:
            for key in self.keys:
                self._calls[key] += 1  # Counter.update takes ten times as long
        self._users += 1

    def release(self, _task: object = None) -> None:
        """Give the place back, unless somebody else retains it."""
        self._users -= 1
        if not self._users:
            for key in self.keys:
                self._calls[key] -= 1
                if not self._calls[key]:
                    del self._calls[key]


def is_root(peer: Peer) -> bool:
    """Tell whether a peer is root on the local socket, which has no limits."""
    return peer.kind == "unix" and peer.uid == 0


def room_of(peer: Peer) -> str:
    """Return the kind of caller whose threads a peer may use."""
    return "root" if is_root(peer) else peer.kind
