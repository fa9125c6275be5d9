"""zvols of the simulated host."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from zfsilod.host.fake.snapshots import left_of
from zfsilod.model.errors import Busy, Conflict, FailedPrecondition
from zfsilod.model.host_facts import ListedZvol
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.record import Pairs

SIMULATED_POOL = "tank"
SIMULATED_BYTES = 1 << 40


class FakeZfs:
    """zvols as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool:
        found = self.facts.get(f"zvol:{dataset}")
        if found is None:
            return False
        if found["uid"] != uid or (guid and found["guid"] != guid):
            raise Conflict(f"the dataset {dataset} exists and is not ours", dataset=dataset)
        return True

    def create_zvol(
        self, dataset: str, *, size_bytes: int, thin: bool, volblocksize: int,
        properties: Pairs, marks: Pairs,
    ) -> None:  # fmt: skip
        uid = dict(marks)["zfsilo:uid"]
        if self.has_zvol(dataset, uid=uid, guid=""):
            return
        guid = str(int(hashlib.sha256(uid.encode()).hexdigest()[:15], 16))
        values = dict(properties) | dict(marks) | {"volblocksize": str(volblocksize)}
        zvol = {"uid": uid, "guid": guid, "size": size_bytes, "thin": thin, "properties": values}
        self.facts.effect(f"zvol:{dataset}", zvol)

    def destroy_zvol(self, dataset: str, *, uid: str, guid: str) -> None:
        if not self.has_zvol(dataset, uid=uid, guid=guid):
            return
        if any(self.facts.get(f"backstore:{n}")["dataset"] == dataset for n in self._backstores()):
            raise Busy(f"the dataset {dataset} is in use by a backstore", dataset=dataset)
        names = self.dependents(dataset)
        if names:
            raise FailedPrecondition(
                f"the zvol {dataset} has snapshots or clones: {', '.join(names)}",
                reason="DEPENDENTS", dataset=dataset,
            )  # fmt: skip
        self._destroy(dataset)

    def _destroy(self, dataset: str) -> None:
        """Remove a zvol, and with a last clone the snapshot that was given up."""
        origin = self._zvol(dataset).get("origin")
        if not origin:
            self.facts.effect(f"zvol:{dataset}", None)
            return
        name = f"cut:{origin[0]}"
        left = left_of(self.facts, origin[0], self.facts.get(name), but=dataset)
        self.facts.effect(f"zvol:{dataset}", None, instead_of="" if left else name)
        if left and left != self.facts.get(name):
            self.facts.effect(name, left)

    def _backstores(self) -> list[str]:
        return self.facts.names("backstore")

    def is_moved(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        if self.has_zvol(target, uid=uid, guid=guid):
            return True
        if self.has_zvol(source, uid=uid, guid=guid):
            return False
        raise FailedPrecondition(f"the dataset {source} does not exist", dataset=source)

    def move(self, source: str, target: str, *, uid: str, guid: str) -> None:
        if not self.is_moved(source, target, uid=uid, guid=guid):
            zvol = self._zvol(source)
            self.facts.effect(f"zvol:{target}", zvol, instead_of=f"zvol:{source}")

    def dependents(self, dataset: str) -> tuple[str, ...]:
        found = self._zvol(dataset)
        cuts = self.facts.each("cut")
        ours = (name for name, cut in cuts.items() if found["uid"] in cut["of"])
        return tuple(f"{dataset}@zfsilo-{name}" for name in ours)

    def find_guid(self, dataset: str, *, uid: str) -> str:
        self.has_zvol(dataset, uid=uid, guid="")
        return str(self._zvol(dataset)["guid"])

    def has_size(self, dataset: str, size_bytes: int) -> bool:
        return bool(self._zvol(dataset)["size"] >= size_bytes)

    def set_size(self, dataset: str, size_bytes: int) -> None:
        zvol = self._zvol(dataset)
        self.facts.effect(f"zvol:{dataset}", zvol | {"size": max(size_bytes, zvol["size"])})

    def has_property(self, dataset: str, name: str, value: str) -> bool:
        return bool(self._zvol(dataset)["properties"].get(name, "") == value)

    def set_property(self, dataset: str, name: str, value: str) -> None:
        zvol = self._zvol(dataset)
        kept = {n: v for n, v in zvol["properties"].items() if n != name}
        properties = kept | ({name: value} if value else {})
        uid = properties.get("zfsilo:uid", "")
        self.facts.effect(f"zvol:{dataset}", zvol | {"properties": properties, "uid": uid})

    def list_zvols(self, root: str) -> list[ListedZvol]:
        zvols = self.facts.each("zvol")
        homes = {zvol["uid"]: name for name, zvol in zvols.items()}
        return [
            self._listed(name, zvol, homes)
            for name, zvol in sorted(zvols.items())
            if name == root or name.startswith(f"{root}/")
        ]

    def _listed(self, dataset: str, zvol: Any, homes: dict[str, str]) -> ListedZvol:
        values = zvol["properties"]
        marks = {n[7:]: v for n, v in values.items() if n.startswith("zfsilo:")}
        return ListedZvol(
            dataset=dataset, guid=zvol["guid"], size_bytes=zvol["size"], thin=zvol["thin"],
            volblocksize=int(values["volblocksize"]), marks=pairs(marks),
            origin=homes[zvol["origin"][1]] if "origin" in zvol else "",
        )  # fmt: skip

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        zvols = self.facts.each("zvol")
        return {
            each.dataset: dict(zvols[each.dataset]["properties"]) for each in self.list_zvols(root)
        }

    def capacity(self, root: str) -> tuple[int, int]:
        if root.split("/")[0] != SIMULATED_POOL:
            raise FailedPrecondition(f"the dataset {root} does not exist", dataset=root)
        zvols = self.facts.each("zvol")
        used = sum(each["size"] for each in zvols.values() if not each["thin"])
        return SIMULATED_BYTES - used, SIMULATED_BYTES

    def usage(self, dataset: str) -> dict[str, int]:
        zvol = self._zvol(dataset)
        return {"volsize": zvol["size"], "used": 0, "referenced": 0}

    def usages(self, _root: str) -> dict[str, tuple[int, int, int]]:
        return {name: (zvol["size"], 0, 0) for name, zvol in self.facts.each("zvol").items()}

    def pool_problem(self, root: str) -> str:
        pool = root.split("/")[0]
        health = self.facts.get(f"pool:{pool}") or "ONLINE"
        return "" if health == "ONLINE" else f"the pool {pool} is {health}: see zpool status"

    def _zvol(self, dataset: str) -> Any:
        found = self.facts.get(f"zvol:{dataset}")
        if found is None:
            raise FailedPrecondition(
                f"the dataset {dataset} does not exist", reason="NO_DATASET", dataset=dataset
            )
        return found
