"""Which D-Bus calls may start: root's always have places, those of other users have limits.

A call is judged by its header, and once more when the bus has told its user. Its body has not been
unpacked, and polkit has not been asked.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from dbus_next import DBusError, ErrorType

from zfsilod.gateway.limits import Pace
from zfsilod.systemd.messages import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilod.systemd.messages import IncomingCall

MAX_CALLS = 1024  # of root that run at one time; and of all others
MAX_OTHERS = 256  # calls of other users, beyond one for each connection
MAX_OF_ONE = 128  # calls of one connection of another user
REFUSALS = 400  # calls without authorization of one user in a row; then one more each REFUSAL_S
REFUSAL_S = 0.05
MAX_USERS = 1024
# Calls of one user, whatever they are: further ones wait for at most MAX_WAIT_S, or are refused.
BURST, PER_S, MAX_WAIT_S = 512, 100, 2.0
# Of calls that read much.
COSTS = {"Introspect": 8, "GetManagedObjects": 64, "GetStatus": 64, "Probe": 8, "GetAll": 2}

TOO_FAST = f"more than {PER_S} calls of this user a second: retry later"

ROOT, OTHER = "root", "other"


class Admission:
    """The calls that run, by connection, and the users whose calls were refused."""

    def __init__(self, uids: Mapping[str, int]) -> None:
        """`uids`: the known users of connections, by unique bus name."""
        self._uids = uids
        self._running: Counter[str] = Counter()  # by kind of user, and by connection
        self._held: Counter[str] = Counter()  # calls of connections whose user is not known yet
        self._kinds: dict[int, str] = {}  # of calls that run, as they were counted
        self._refused: OrderedDict[int, float] = OrderedDict()  # by uid: when its bucket is full
        self._pace = Pace(BURST, PER_S)  # by uid

    def refusal(self, call: IncomingCall) -> str:
        """Return why a call may not start now, or an empty string."""
        kind = self._kind(call)
        if self._running[kind] >= MAX_CALLS:
            return f"{MAX_CALLS} calls are running: retry when one has ended"
        if call.is_too_large:
            return f"the arguments have more than {MAX_BODY_BYTES} bytes: split the call"
        if kind == ROOT:
            return ""
        running = self._running.get(call.sender, 0)
        if running and (running >= MAX_OF_ONE or self._running[OTHER] >= MAX_OTHERS):
            return f"{running} calls of this connection are running: retry later"
        uid = self._uids.get(call.sender, 0)  # 0: not known yet
        if self._due_s(uid) > MAX_WAIT_S:
            return TOO_FAST
        return _throttled() if self._is_throttled(uid) else ""

    def hold(self, call: IncomingCall) -> str:
        """Hold a call whose user is not known yet; return why not, or an empty string."""
        own, all_held = self._held.get(call.sender, 0), self._held.total()
        if all_held >= MAX_CALLS or (own and (own >= MAX_OF_ONE or all_held >= MAX_OTHERS)):
            return f"{all_held} calls of new connections are waiting: retry later"
        self._held[call.sender] += 1
        return ""

    def release(self, call: IncomingCall) -> None:
        """Release a call that was held."""
        self._held[call.sender] -= 1
        if not self._held[call.sender]:
            del self._held[call.sender]

    def wait_s(self, uid: int, member: str) -> float:
        """Return how long a call of a user has to wait, and count it. Raises LimitsExceeded."""
        if uid == 0:
            return 0.0
        if self._due_s(uid) > MAX_WAIT_S:
            raise DBusError(ErrorType.LIMITS_EXCEEDED, TOO_FAST)
        if self._is_throttled(uid):
            raise DBusError(ErrorType.LIMITS_EXCEEDED, _throttled())
        return self._pace.wait_s(str(uid), time.monotonic(), COSTS.get(member, 1))

    def _due_s(self, uid: int) -> float:
        return self._pace.wait_s(str(uid), time.monotonic(), 0) if uid else 0.0

    def start(self, call: IncomingCall) -> None:
        """Count a call that starts."""
        kind = self._kinds[id(call)] = self._kind(call)
        self._running.update((kind, call.sender))

    def end(self, call: IncomingCall) -> None:
        """Count a call that has ended."""
        for key in (self._kinds.pop(id(call)), call.sender):
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    def refused(self, call: IncomingCall) -> None:
        """Count a call that was refused for lack of authorization."""
        uid = self._uids.get(call.sender, 0)
        if uid:
            now = time.monotonic()
            self._refused[uid] = max(now, self._refused.pop(uid, now)) + REFUSAL_S
            if len(self._refused) > MAX_USERS:
                self._refused.popitem(last=False)

    def _is_throttled(self, uid: int) -> bool:
        due = self._refused.get(uid, 0.0)
        return due - time.monotonic() > REFUSALS * REFUSAL_S

    def _kind(self, call: IncomingCall) -> str:
        return ROOT if self._uids.get(call.sender) == 0 else OTHER


def _throttled() -> str:
    return f"more than {REFUSALS} calls of this user were refused: retry in a minute"
