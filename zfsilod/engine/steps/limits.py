"""Steps on the limits of the I/O of volumes that are exported over iSCSI."""

from __future__ import annotations

from zfsilod.engine.step import HostStep, OneWay
from zfsilod.model.host_facts import NO_LIMITS, IoLimits
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Resources

if TYPE_CHECKING:
    from zfsilod.host import HostAdapters


class Limited(HostStep, tag="Limited", part="TARGET"):
    """The kernel has these limits of the I/O of sessions with the device of a backstore.

    NO_LIMITS: it has none. `undo` sets the previous limits.
    """

    volatile = True
    dataset: str
    backstore: str
    limits: IoLimits
    previous_limits: IoLimits

    def probe(self, host: HostAdapters) -> bool:
        return host.limits.has_limits(self.backstore, self.limits, dataset=self.dataset)

    def do(self, host: HostAdapters) -> None:
        host.limits.set_limits(self.backstore, self.limits, dataset=self.dataset)

    def undo(self, host: HostAdapters) -> None:
        host.limits.set_limits(self.backstore, self.previous_limits, dataset=self.dataset)

    def safe_untried(self, host: HostAdapters) -> bool:
        return host.limits.has_limits(self.backstore, self.previous_limits, dataset=self.dataset)

    def fact(self) -> str:
        return f"limits are set: {self.limits}" if self.limits else "no limits are set"

    def describe_do(self) -> str:
        return _change(self.dataset, self.limits)

    def describe_undo(self) -> str:
        return _change(self.dataset, self.previous_limits)

    def resources(self) -> Resources:
        return Resources(datasets=(self.dataset,))


def _change(dataset: str, limits: IoLimits) -> str:
    if limits == NO_LIMITS:
        return f"remove the limits of {dataset}"
    return f"set limits of {dataset}: {limits}"


class SessionsLimited(OneWay, tag="SessionsLimited", part="TARGET"):
    """The limits apply to every session of the kernel's iSCSI target; True without limits.

    One-way: the last limit that is removed releases all sessions.
    """

    volatile = True

    def probe(self, host: HostAdapters) -> bool:
        return host.limits.has_all_sessions()

    def do(self, host: HostAdapters) -> None:
        host.limits.take_sessions()

    def fact(self) -> str:
        return "limits apply to all sessions"

    def describe_do(self) -> str:
        return "apply the limits to new sessions"

    def resources(self) -> Resources:
        return Resources()
