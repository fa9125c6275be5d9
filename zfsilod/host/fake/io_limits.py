"""The limits of I/O on the simulated host: by backstore, and which sessions they apply to."""

from __future__ import annotations

from zfsilod.model.host_facts import NO_LIMITS, IoLimits
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.fake.facts import Facts


class FakeIoLimits:
    """The limits as facts; a session that they apply to has the mark `limited`."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_limits(self, backstore: str, limits: IoLimits, *, dataset: str) -> bool:
        values = self.facts.get(f"limit:{backstore}")
        present = IoLimits(**values) if values else NO_LIMITS
        return present == limits

    def set_limits(self, backstore: str, limits: IoLimits, *, dataset: str = "") -> None:
        if limits:
            values = {name: getattr(limits, name) for name in limits.FIELDS}
            self.facts.effect(f"limit:{backstore}", values)
            self.take_sessions()
            return
        if self.facts.get(f"limit:{backstore}") is not None:
            self.facts.effect(f"limit:{backstore}", None)
        if not self.facts.names("limit"):
            for name, session in self._sessions(limited=True):
                session.pop("limited")
                self.facts.effect(name, session)

    def has_all_sessions(self) -> bool:
        return not self.facts.names("limit") or not list(self._sessions(limited=False))

    def take_sessions(self) -> None:
        if self.facts.names("limit"):
            for name, session in self._sessions(limited=False):
                self.facts.effect(name, session | {"limited": True})

    def _sessions(self, *, limited: bool) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield the live iSCSI sessions with targets of this host to which limits apply, or not."""
        for target, session in self.facts.of_kind("session").items():
            live = "lost" not in session and self.facts.get(f"target:{target}") is not None
            if target.startswith("iqn.") and live and ("limited" in session) == limited:
                yield f"session:{target}", dict(session)
