"""The rates of streams to peers, which may change while a stream runs.

The rate of a policy is shared by its streams. That of a stream by hand is in the record of the
replication, when a caller has changed it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from zfsilod.gateway import packets
from zfsilod.model.policies import ReplicationPolicy
from zfsilod.model.replica import MIN_RATE, Replication

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from zfsilod.engine.steps.replica import Sent
    from zfsilod.model.records import Operation
    from zfsilod.storage.transaction import Transaction


class StreamRates:
    """How fast each stream may be now."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()  # of each policy

    @contextmanager
    def counted(self, step: Sent) -> Iterator[None]:
        """Count a stream among those of its policy."""
        self._streams[step.policy] += 1
        try:
            yield
        finally:
            self._streams[step.policy] -= 1
            if not self._streams[step.policy]:
                del self._streams[step.policy]

    def rate(self, txn: Transaction, step: Sent, operation: Operation, volume_uid: str) -> int:
        """Return the bytes a second of a stream; 0: no limit.

        Without its policy a stream keeps the rate with which its operation began.
        """
        if step.policy:
            policy = txn.get(ReplicationPolicy, step.policy)
            rate = step.rate if policy is None else policy.bytes_per_second
            return max(MIN_RATE, rate // max(1, self._streams[step.policy])) if rate else 0
        known = txn.get(Replication, f"{volume_uid}/{step.server}")
        if known is None or known.rate_of != operation.id:
            return step.rate
        return known.rate


class RateTeller:
    """Tells the process that carries a stream when its rate changes."""

    def __init__(self, rate: Callable[[], int], control: socket.socket) -> None:
        """`rate` returns the rate now; `control`: the socket to the process, without blocking."""
        self._rate = rate
        self._control = control
        self.told = rate()

    def keep(self) -> None:
        """Tell the rate when it is another one."""
        rate = self._rate()
        if rate == self.told:
            return
        with suppress(OSError):  # the process ends, or reads later
            packets.send(self._control, {"tell": "rate", "bytes": rate})
            self.told = rate
