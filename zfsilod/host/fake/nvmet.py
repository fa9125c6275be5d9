"""The NVMe subsystems of the simulated host."""

from __future__ import annotations

from zfsilod.host.fake.psk import has_psk, put_psk, remove_psk
from zfsilod.host.fake.targets import FakeTargets
from zfsilod.host.fake.zfs import FakeZfs
from zfsilod.model.errors import Busy, Conflict
from zfsilod.model.host_facts import CONTROLLER_IDS, ExportPath
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap

TLS = "tls "  # before a portal that requires it


class FakeNvmet(FakeTargets):
    """The NVMe subsystems as facts: a subsystem is a target, an allowed host an ACL."""

    prefix = "nqn."

    def has_namespace(self, target: str, *, dataset: str, uid: str) -> bool:
        namespace = self.facts.get(f"namespace:{target}")
        if namespace and namespace["enabled"] and namespace["uid"] != uid:
            raise Conflict(f"namespace 1 of {target} has another identity", target=target)
        if namespace and namespace["dataset"] != dataset:
            raise Conflict(f"namespace 1 of {target} has another device", target=target)
        return bool(namespace and namespace["enabled"])

    def add_namespace(self, target: str, *, dataset: str, uid: str) -> None:
        self._need(f"target:{target}")
        FakeZfs(self.facts).check_device(dataset)
        backstores = self.facts.of_kind("backstore").items()
        exports = [name for name, backstore in backstores if backstore["dataset"] == dataset]
        if names := [*exports, *self.facts.users(dataset, "process")]:
            raise Busy(f"the zvol {dataset} is in use by {', '.join(names)}", dataset=dataset)
        namespace = {"dataset": dataset, "uid": uid}
        self.facts.effect(f"namespace:{target}", namespace | {"enabled": False})
        self.facts.effect(f"namespace:{target}", namespace | {"enabled": True})

    def remove_namespace(self, target: str) -> None:
        namespace = self.facts.get(f"namespace:{target}")
        if namespace and namespace["enabled"]:
            self.facts.effect(f"namespace:{target}", namespace | {"enabled": False})
        self._remove(f"namespace:{target}")

    def has_controller_ids(self, target: str, first: int, last: int) -> bool:
        return self.exists(target) and self._controller_ids(target) == (first, last)

    def _controller_ids(self, target: str) -> tuple[int, int]:
        lowest, highest = self.facts.get(f"cntlids:{target}") or CONTROLLER_IDS
        return lowest, highest

    def set_controller_ids(self, target: str, first: int, last: int) -> None:
        self._need(f"target:{target}")
        lowest, highest = self._controller_ids(target)
        half = (lowest, last) if first >= highest else (first, highest)
        if half not in ((lowest, highest), (first, last)):
            self.facts.effect(f"cntlids:{target}", list(half))
        if (first, last) == CONTROLLER_IDS:  # as a new subsystem has them
            self._remove(f"cntlids:{target}")
        else:
            self.facts.effect(f"cntlids:{target}", [first, last])

    def is_empty(self, target: str) -> bool:
        return self.facts.get(f"namespace:{target}") is None

    def remove_target(self, target: str) -> None:
        parts = (f"namespace:{target}", f"portals:{target}")
        if self.list_acls(target) or any(self.facts.get(name) for name in parts):
            raise Busy(f"the subsystem {target} is not empty", target=target)
        self._remove(f"cntlids:{target}")
        self._remove(f"target:{target}")

    def has_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> bool:
        return super().has_portals(target, _of_kind(portals, tls=tls))

    def add_portals(self, target: str, portals: tuple[str, ...], *, tls: bool = False) -> None:
        super().add_portals(target, _of_kind(portals, tls=tls))
        self._remove(f"closed:{target}")

    def has_secrets(self, target: str, initiator: str, *, chap: Chap) -> bool:
        has_keys = super().has_secrets(target, initiator, chap=chap)
        return has_keys and has_psk(self.facts, target, chap)

    def has_acl(self, target: str, initiator: str, *, chap: Chap, allowed: tuple[str, ...]) -> bool:
        is_allowed = super().has_acl(target, initiator, chap=chap, allowed=allowed)
        return is_allowed and self.has_secrets(target, initiator, chap=chap)

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        self._need(f"target:{target}")
        self.facts.effect(f"acl:{target}/{initiator}", "no secrets")
        put_psk(self.facts, target, chap)
        super().add_acl(target, initiator, chap=chap)
        self._reopen(target)

    def add_portals_to_all(
        self, targets: tuple[str, ...], portals: tuple[str, ...], *, tls: bool = False
    ) -> None:
        for target in targets:
            if not self.has_portals(target, portals, tls=tls):
                self.add_portals(target, portals, tls=tls)

    def remove_acl(self, target: str, initiator: str) -> None:
        """End the controller by the removal of the ports, which other hosts get back."""
        portals = self.facts.get(f"portals:{target}")
        if initiator in self.list_acls(target):
            if portals and not self.facts.get(f"closed:{target}"):
                self.facts.effect(f"closed:{target}", portals)
            if self.facts.get(f"session:{target}"):  # of any host
                super().remove_portals(target)
        super().remove_acl(target, initiator)
        self._reopen(target)
        remove_psk(self.facts, target, initiator)

    def _reopen(self, target: str) -> None:
        closed = self.facts.get(f"closed:{target}")
        if closed and self.list_acls(target) and not super().has_portals(target, closed):
            super().add_portals(target, closed)
        self._remove(f"closed:{target}")

    def remove_portals(self, target: str) -> None:
        super().remove_portals(target)
        self._remove(f"closed:{target}")

    def exists(self, target: str, initiator: str = "") -> bool:
        is_closed = bool(initiator) and self.facts.get(f"closed:{target}") is not None
        return is_closed or super().exists(target, initiator)

    def remove_export(self, target: str, backstore: str | None) -> None:
        self.remove_portals(target)
        for initiator in self.list_acls(target):
            self.remove_acl(target, initiator)
        self.remove_namespace(target)
        self.remove_target(target)

    def export_paths(self) -> list[ExportPath]:
        return [
            ExportPath(
                dataset=namespace["dataset"],
                target=target,
                fabric="nvme",
                initiators=tuple(self.list_acls(target)),
            )
            for target, namespace in sorted(self.facts.of_kind("namespace").items())
        ]


def _of_kind(portals: tuple[str, ...], *, tls: bool) -> tuple[str, ...]:
    return tuple(f"{TLS}{portal}" for portal in portals) if tls else portals
