"""The targets of the simulated host, as far as all transports have the same facts."""

from __future__ import annotations

from zfsilod.host.fake.secrets import digest
from zfsilod.model.errors import Conflict, FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.chap import Chap


class FakeTargets:
    """The targets of one transport as facts."""

    prefix: str  # of the names of its targets

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def exists(self, target: str, initiator: str = "") -> bool:
        name = f"acl:{target}/{initiator}" if initiator else f"target:{target}"
        return self.facts.get(name) is not None

    def list_targets(self) -> list[str]:
        names = self.facts.names("target")
        return sorted(name for name in names if name.startswith(self.prefix))

    def list_acls(self, target: str) -> list[str]:
        prefix = f"{target}/"
        names = [name for name in self.facts.names("acl") if name.startswith(prefix)]
        return sorted(name.removeprefix(prefix) for name in names)

    def has_target(self, target: str) -> bool:
        return bool(self.facts.get(f"target:{target}") == "ready")

    def add_target(self, target: str) -> None:
        self.facts.effect(f"target:{target}", "bare")
        self.facts.effect(f"target:{target}", "ready")

    def has_portals(self, target: str, portals: tuple[str, ...]) -> bool:
        return (self.facts.get(f"portals:{target}") or []) == sorted(portals)

    def add_portals(self, target: str, portals: tuple[str, ...]) -> None:
        self._need(f"target:{target}")
        for count in range(1, len(portals) + 1):
            self.facts.effect(f"portals:{target}", sorted(portals)[:count])

    def remove_portals(self, target: str) -> None:
        for count in range(len(self.facts.get(f"portals:{target}") or ()) - 1, -1, -1):
            left = self.facts.get(f"portals:{target}")[:count]
            self.facts.effect(f"portals:{target}", left or None)

    def has_acl(self, target: str, initiator: str, *, chap: Chap, allowed: tuple[str, ...]) -> bool:
        for unknown in set(self.list_acls(target)) - {initiator, *allowed}:
            raise Conflict(
                f"the target {target} has an ACL for {unknown}, which has no publication",
                target=target,
            )
        return bool(self.facts.get(f"acl:{target}/{initiator}") == digest(chap))

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        self._need(f"target:{target}")
        self.facts.effect(f"acl:{target}/{initiator}", "no secrets")
        self.facts.effect(f"acl:{target}/{initiator}", digest(chap))

    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool:
        return bool(self.facts.get(f"acl:{target}/{initiator}") == digest(chap))

    def set_secrets(self, target: str, initiator: str, *, chap: Chap) -> None:
        if self.facts.get(f"acl:{target}/{initiator}") is not None:
            self.add_acl(target, initiator, chap=chap)

    def remove_acl(self, target: str, initiator: str) -> None:
        session = self.facts.get(f"session:{target}")
        if session and session["initiator"] == initiator:  # it ends with the ACL
            self.facts.effect(f"session:{target}", session | {"lost": True})
        self._remove(f"acl:{target}/{initiator}")

    def has_session(self, target: str, initiator: str) -> bool:
        session = self.facts.get(f"session:{target}")
        return bool(
            session
            and session["initiator"] == initiator
            and self.facts.get(f"acl:{target}/{initiator}")
        )

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        if self.has_session(target, initiator):
            self.remove_acl(target, initiator)

    def _need(self, name: str) -> None:
        if self.facts.get(name) is None:
            raise FailedPrecondition(f"{name} is missing")

    def _remove(self, name: str) -> None:
        if self.facts.get(name) is not None:
            self.facts.effect(name, None)
