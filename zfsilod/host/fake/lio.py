"""The iSCSI targets of the simulated host: backstores, ACLs and sessions."""

from __future__ import annotations

from zfsilod.host.fake.secrets import digest
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition
from zfsilod.model.host_facts import ExportPath
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.chap import Chap


class FakeLio:
    """The iSCSI targets as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool:
        backstore = self.facts.get(f"backstore:{name}")
        if backstore and backstore["dataset"] != dataset:
            raise Conflict(f"the backstore {name} has another device", backstore=name)
        return bool(backstore == {"dataset": dataset, "serial": serial, "enabled": True})

    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None:
        if self.facts.get(f"zvol:{dataset}") is None:
            raise FailedPrecondition(f"the dataset {dataset} does not exist", dataset=dataset)
        if names := self.facts.users(dataset, "process"):
            raise Busy(f"the zvol {dataset} is in use by {', '.join(names)}", dataset=dataset)
        backstore = {"dataset": dataset, "serial": serial}
        self.facts.effect(f"backstore:{name}", backstore | {"enabled": False})
        self.facts.effect(f"backstore:{name}", backstore | {"enabled": True})

    def remove_backstore(self, name: str) -> None:
        luns = self.facts.of_kind("lun").items()
        if targets := [target for target, linked in luns if linked == name]:
            raise Busy(f"the backstore {name} is still a LUN of {', '.join(targets)}")
        self._remove(f"backstore:{name}")

    def list_backstores(self) -> list[str]:
        return sorted(self.facts.names("backstore"))

    def exists(self, target: str, initiator: str = "") -> bool:
        name = f"acl:{target}/{initiator}" if initiator else f"target:{target}"
        return self.facts.get(name) is not None

    def list_targets(self) -> list[str]:
        return sorted(self.facts.names("target"))

    def list_acls(self, target: str) -> list[str]:
        prefix = f"{target}/"
        names = [name for name in self.facts.names("acl") if name.startswith(prefix)]
        return sorted(name.removeprefix(prefix) for name in names)

    def remove_export(self, target: str, backstore: str | None) -> None:
        self.disable(target)
        self.remove_portals(target)
        for initiator in self.list_acls(target):
            self.unmap_lun(target, initiator)
            self.remove_acl(target, initiator)
        self.remove_lun(target)
        self.remove_target(target)
        if backstore is not None:
            self.remove_backstore(backstore)

    def export_paths(self) -> list[ExportPath]:
        paths = []
        luns = self.facts.of_kind("lun")
        for name, backstore in sorted(self.facts.of_kind("backstore").items()):
            targets = sorted(target for target, linked in luns.items() if linked == name)
            for target in targets or [""]:
                initiators = tuple(self.list_acls(target)) if target else ()
                dataset = backstore["dataset"]
                path = ExportPath(
                    dataset=dataset, backstore=name, target=target, initiators=initiators
                )
                paths.append(path)
        return paths

    def has_target(self, target: str) -> bool:
        return bool(self.facts.get(f"target:{target}") == "ready")

    def add_target(self, target: str) -> None:
        self.facts.effect(f"target:{target}", "bare")
        self.facts.effect(f"target:{target}", "ready")

    def remove_target(self, target: str) -> None:
        parts = (f"lun:{target}", f"portals:{target}", f"enabled:{target}")
        if self.list_acls(target) or any(self.facts.get(name) for name in parts):
            raise Busy(f"the target {target} is not empty", target=target)
        self._remove(f"target:{target}")

    def has_lun(self, target: str, backstore: str) -> bool:
        linked = self.facts.get(f"lun:{target}")
        if linked not in (None, "unlinked", backstore):
            raise Conflict(f"LUN 0 of {target} is {linked}, not {backstore}", target=target)
        return bool(linked == backstore)

    def add_lun(self, target: str, backstore: str) -> None:
        self._need(f"target:{target}")
        self._need(f"backstore:{backstore}")
        self.facts.effect(f"lun:{target}", "unlinked")
        self.facts.effect(f"lun:{target}", backstore)

    def remove_lun(self, target: str) -> None:
        if self.facts.get(f"lun:{target}") not in (None, "unlinked"):
            self.facts.effect(f"lun:{target}", "unlinked")
        self._remove(f"lun:{target}")

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

    def is_enabled(self, target: str) -> bool:
        return self.facts.get(f"enabled:{target}") is True

    def enable(self, target: str) -> None:
        self._need(f"target:{target}")
        self.facts.effect(f"enabled:{target}", value=True)

    def disable(self, target: str) -> None:
        self._remove(f"enabled:{target}")

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

    def has_mapped_lun(self, target: str, initiator: str, *, readonly: bool) -> bool:
        return bool(self.facts.get(f"mapped:{target}/{initiator}") == _access(readonly=readonly))

    def map_lun(self, target: str, initiator: str, *, readonly: bool) -> None:
        self._need(f"acl:{target}/{initiator}")
        self.facts.effect(f"mapped:{target}/{initiator}", "unlinked")
        self.facts.effect(f"mapped:{target}/{initiator}", _access(readonly=readonly))

    def unmap_lun(self, target: str, initiator: str) -> None:
        self._remove(f"mapped:{target}/{initiator}")

    def has_session(self, target: str, initiator: str) -> bool:
        session = self.facts.get(f"session:{target}")
        return bool(
            session
            and session["initiator"] == initiator
            and self.facts.get(f"acl:{target}/{initiator}")
        )

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        if self.has_session(target, initiator):
            self.unmap_lun(target, initiator)
            self.remove_acl(target, initiator)

    def _need(self, name: str) -> None:
        if self.facts.get(name) is None:
            raise FailedPrecondition(f"{name} is missing")

    def _remove(self, name: str) -> None:
        if self.facts.get(name) is not None:
            self.facts.effect(name, None)


def _access(*, readonly: bool) -> str:
    return "readonly" if readonly else "read-write"
