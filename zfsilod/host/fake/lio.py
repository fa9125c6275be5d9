"""The iSCSI targets of the simulated host: backstores, ACLs and sessions."""

from __future__ import annotations

from zfsilod.host.fake.targets import FakeTargets
from zfsilod.host.fake.zfs import FakeZfs
from zfsilod.model.errors import Busy, Conflict
from zfsilod.model.host_facts import ExportPath


class FakeLio(FakeTargets):
    """The iSCSI targets as facts."""

    prefix = "iqn."

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool:
        backstore = self.facts.get(f"backstore:{name}")
        if backstore and backstore["dataset"] != dataset:
            raise Conflict(f"the backstore {name} has another device", backstore=name)
        return bool(backstore == {"dataset": dataset, "serial": serial, "enabled": True})

    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None:
        FakeZfs(self.facts).check_device(dataset)
        namespaces = self.facts.of_kind("namespace").items()
        exports = [target for target, other in namespaces if other["dataset"] == dataset]
        if names := [*exports, *self.facts.users(dataset, "process")]:
            raise Busy(f"the zvol {dataset} is in use by {', '.join(names)}", dataset=dataset)
        backstore = {"dataset": dataset, "serial": serial}
        self.facts.effect(f"backstore:{name}", backstore | {"enabled": False})
        self.facts.effect(f"backstore:{name}", backstore | {"enabled": True})

    def remove_backstore(self, name: str) -> None:
        luns = self.facts.of_kind("lun").items()
        if targets := [target for target, linked in luns if linked == name]:
            raise Busy(f"the backstore {name} is still a LUN of {', '.join(targets)}")
        self._remove(f"backstore:{name}")

    def has_reservations(self, serial: str, initiator: str = "") -> bool:
        saved = self.facts.get(f"aptpl:{serial}")
        if initiator:
            return saved is not None and initiator in saved
        backstores = self.facts.of_kind("backstore").values()
        return saved is not None and serial not in [one["serial"] for one in backstores]

    def forget_reservations(self, serial: str, initiator: str = "") -> None:
        if self.has_reservations(serial, initiator):
            saved = self.facts.get(f"aptpl:{serial}") if initiator else []
            left = [other for other in saved if other != initiator]
            self.facts.effect(f"aptpl:{serial}", left if initiator else None)

    def list_backstores(self) -> list[str]:
        return sorted(self.facts.names("backstore"))

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

    def is_enabled(self, target: str) -> bool:
        return self.facts.get(f"enabled:{target}") is True

    def enable(self, target: str) -> None:
        self._need(f"target:{target}")
        self.facts.effect(f"enabled:{target}", value=True)

    def disable(self, target: str) -> None:
        self._remove(f"enabled:{target}")

    def has_mapped_lun(self, target: str, initiator: str, *, readonly: bool) -> bool:
        return bool(self.facts.get(f"mapped:{target}/{initiator}") == _access(readonly=readonly))

    def map_lun(self, target: str, initiator: str, *, readonly: bool) -> None:
        self._need(f"acl:{target}/{initiator}")
        self.facts.effect(f"mapped:{target}/{initiator}", "unlinked")
        self.facts.effect(f"mapped:{target}/{initiator}", _access(readonly=readonly))

    def unmap_lun(self, target: str, initiator: str) -> None:
        self._remove(f"mapped:{target}/{initiator}")

    def end_session(self, target: str, initiator: str, *, grace_s: int) -> None:
        if self.has_session(target, initiator):
            self.unmap_lun(target, initiator)
            self.remove_acl(target, initiator)


def _access(*, readonly: bool) -> str:
    return "readonly" if readonly else "read-write"
