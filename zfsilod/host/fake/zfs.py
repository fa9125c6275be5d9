"""The zvols of the simulated host."""

from __future__ import annotations

from zfsilod.host.fake.snapshot_sets import guid_of, remaining
from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    ZfsiloError,
)
from zfsilod.model.host_facts import ListedZvol
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import EPOCH, find_sign_of_use, parse_epoch
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from typing import Any

    from zfsilod.host.fake.facts import Facts
    from zfsilod.model.disk_key import DiskKey
    from zfsilod.model.record import Pairs

SIMULATED_POOL = "tank"
SIMULATED_BYTES = 1 << 40


class FakeZfs:
    """zvols as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool:
        self._need_pool(dataset)
        zvol = self.facts.get(f"zvol:{dataset}")
        if zvol is None:
            return False
        if zvol["uid"] != uid or (guid and zvol["guid"] != guid):
            raise Conflict(
                f"the dataset {dataset} exists but does not belong to this volume",
                reason="NOT_OURS",
                dataset=dataset,
            )
        return True

    def create_zvol(
        self,
        dataset: str,
        *,
        size_bytes: int,
        thin: bool,
        volblocksize: int,
        properties: Pairs,
        marks: Pairs,
        key: DiskKey | None = None,
    ) -> None:
        uid = dict(marks)["zfsilo:uid"]
        if self.has_zvol(dataset, uid=uid, guid=""):
            return
        values = dict(properties) | dict(marks) | {"volblocksize": str(volblocksize)}
        zvol = {
            "uid": uid,
            "guid": guid_of(uid),
            "size": size_bytes,
            "thin": thin,
            "properties": values,
        }
        if key is None:
            self.facts.effect(f"zvol:{dataset}", zvol)
            return
        from zfsilod.host.fake.secrets import key_digest, loaded_fact

        encrypted = zvol | {"root": uid, "wrapped": key_digest(key)}
        self.facts.effect(f"zvol:{dataset}", encrypted, also={loaded_fact(uid): "loaded"})

    def destroy_zvol(self, dataset: str, *, uid: str, guid: str) -> None:
        if not self.has_zvol(dataset, uid=uid, guid=guid):
            return
        if self._exports(dataset):
            raise Busy(f"the dataset {dataset} is in use by an export", dataset=dataset)
        if users := self.users(dataset):
            raise Busy(f"the zvol {dataset} is in use by {', '.join(users)}", dataset=dataset)
        names = self.dependents(dataset)
        if names:
            raise FailedPrecondition(
                f"the zvol {dataset} has snapshots or clones: {', '.join(names)}",
                reason="DEPENDENTS",
                dataset=dataset,
            )
        origin = self._zvol(dataset).get("origin")
        bookmarks = [name for name in self.facts.names("bookmark") if name.startswith(f"{uid}/")]
        also = {f"key:{uid}": None, f"blocks:{uid}": None}
        also |= {f"bookmark:{name}": None for name in bookmarks}
        if not origin:
            self.facts.effect(f"zvol:{dataset}", None, also=also)
            return
        name = f"cut:{origin[0]}"  # a released snapshot is removed with its last clone
        left = remaining(self.facts, origin[0], self.facts.get(name), without=dataset)
        self.facts.effect(f"zvol:{dataset}", None, instead_of="" if left else name, also=also)
        if left and left != self.facts.get(name):
            self.facts.effect(name, left)

    def is_half_made(self, dataset: str, operation: str, planned: Pairs) -> bool:
        zvol = self.facts.get(f"zvol:{dataset}")
        return zvol is not None and zvol.get("half_made") == [operation, dict(planned)]

    def destroy_half_made(self, dataset: str, operation: str, planned: Pairs) -> None:
        if self.is_half_made(dataset, operation, planned):
            self.facts.effect(f"zvol:{dataset}", None)

    def users(self, dataset: str) -> list[str]:
        return [*self._exports(dataset), *self.facts.users(dataset, "process")]

    def _exports(self, dataset: str) -> list[str]:
        """Return the backstores and the subsystems that have the device of a zvol open."""
        kinds = ("backstore", "namespace")
        exports = [item for kind in kinds for item in self.facts.of_kind(kind).items()]
        return [name for name, export in exports if export["dataset"] == dataset]

    def find_epoch(self, dataset: str, *, uid: str = "", guid: str = "") -> tuple[int, str]:
        if uid:
            self.has_zvol(dataset, uid=uid, guid=guid)
        zvol = self.facts.get(f"zvol:{dataset}")
        mark = zvol["properties"].get(EPOCH) if zvol else None
        return parse_epoch(mark) if mark else (0, "")

    def why_keep(self, dataset: str, marks: Pairs) -> str:
        zvol = self._zvol(dataset)
        sign = find_sign_of_use(zvol["properties"], dict(marks))
        if not sign and (self._is_written(zvol) or self.dependents(dataset)):
            sign = "it has data"
        return f"zvol {dataset} was kept: {sign}" if sign else ""

    def _is_written(self, zvol: Any) -> bool:
        """Tell whether the content is another than that of the snapshot it was cloned from."""
        content, origin = self.facts.get(f"content:{zvol['uid']}"), zvol.get("origin")
        snapshot_set = self.facts.get(f"cut:{origin[0]}") if origin else None
        return bool(content) and (
            snapshot_set is None or content != snapshot_set["of"].get(origin[1])
        )

    def is_renamed(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        if self.has_zvol(target, uid=uid, guid=guid):
            return True
        if self.has_zvol(source, uid=uid, guid=guid):
            return False
        raise FailedPrecondition(f"the dataset {source} does not exist", dataset=source)

    def rename(self, source: str, target: str, *, uid: str, guid: str) -> None:
        if not self.is_renamed(source, target, uid=uid, guid=guid):
            zvol = self._zvol(source)
            if zvol.get("root", zvol["uid"]) != zvol["uid"]:  # dsl_dir_rename_crypt_check()
                raise CommandFailed(f"zfs cannot rename {source}: it has the key of its origin")
            self.facts.effect(f"zvol:{target}", zvol, instead_of=f"zvol:{source}")

    def dependents(self, dataset: str) -> tuple[str, ...]:
        volume = self._zvol(dataset)["uid"]
        snapshot_sets = self.facts.of_kind("cut").items()
        uids = [uid for uid, snapshot_set in snapshot_sets if volume in snapshot_set["of"]]
        received = self._zvol(dataset).get("replica_sets", {})
        return tuple(f"{dataset}@zfsilo-{uid}" for uid in (*uids, *received))

    def find_guid(self, dataset: str, *, uid: str) -> str:
        self.has_zvol(dataset, uid=uid, guid="")
        return str(self._zvol(dataset)["guid"])

    def has_size(self, dataset: str, size_bytes: int) -> bool:
        return bool(self._zvol(dataset)["size"] >= size_bytes)

    def set_size(self, dataset: str, size_bytes: int) -> None:
        zvol = self._zvol(dataset)
        if "root" in zvol:
            from zfsilod.host.fake.secrets import loaded_fact

            if self.facts.get(loaded_fact(zvol["root"])) is None:
                from zfsilod.host.zfs_output import no_key

                raise no_key(dataset, dataset)
        self.facts.effect(f"zvol:{dataset}", zvol | {"size": max(size_bytes, zvol["size"])})

    def has_property(self, dataset: str, name: str, value: str) -> bool:
        return bool(self._zvol(dataset)["properties"].get(name, "") == value)

    def find_mark(self, dataset: str, name: str) -> str:
        zvol = self._zvol(dataset)
        return str(zvol["properties"].get(name, "") or zvol.get("received", {}).get(name, ""))

    def set_property(self, dataset: str, name: str, value: str) -> None:
        zvol = self._zvol(dataset)
        kept = {n: v for n, v in zvol["properties"].items() if n != name}
        properties = kept | ({name: value} if value else {})
        uid = properties.get("zfsilo:uid", "")
        self.facts.effect(f"zvol:{dataset}", zvol | {"properties": properties, "uid": uid})

    def list_zvols(self, root: str) -> list[ListedZvol]:
        self._need_pool(root)
        zvols = self.facts.of_kind("zvol")
        datasets = {zvol["uid"]: name for name, zvol in zvols.items()}
        return [
            self._listed(name, zvol, datasets)
            for name, zvol in sorted(zvols.items())
            if name == root or name.startswith(f"{root}/")
        ]

    def _listed(self, dataset: str, zvol: Any, datasets: dict[str, str]) -> ListedZvol:
        values = zvol["properties"]
        marks = {n[7:]: v for n, v in values.items() if n.startswith("zfsilo:")}
        return ListedZvol(
            dataset=dataset,
            guid=zvol["guid"],
            size_bytes=zvol["size"],
            thin=zvol["thin"],
            volblocksize=int(values["volblocksize"]),
            marks=pairs(marks),
            origin=datasets[zvol["origin"][1]] if "origin" in zvol else "",
        )

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        zvols = self.facts.of_kind("zvol")
        datasets = [zvol.dataset for zvol in self.list_zvols(root)]
        return {dataset: dict(zvols[dataset]["properties"]) for dataset in datasets}

    def find_owner(self, root: str) -> str:
        self._need_pool(root)
        return str(self.facts.get(f"owner:{root}") or "")

    def set_owner(self, root: str, owner: str) -> None:
        self._need_pool(root)
        self.facts.effect(f"owner:{root}", owner)

    def _need_pool(self, root: str) -> None:
        """Raise Unavailable while a fact of a test says that the pool cannot be used."""
        pool = root.partition("/")[0]
        state = self.facts.get(f"pool:{pool}")
        if state is None:
            return
        from zfsilod.host.zfs_output import missing, no_pool, suspended

        match state:
            case "EXPORTED":
                raise no_pool(pool)
            case "SUSPENDED":
                raise suspended(pool)
            case "EMPTY":
                raise missing(root)

    def capacity(self, root: str) -> tuple[int, int]:
        self._need_pool(root)
        if root.split("/")[0] != SIMULATED_POOL:
            raise FailedPrecondition(f"the dataset {root} does not exist", dataset=root)
        zvols = self.facts.of_kind("zvol").values()
        used = sum(zvol["size"] for zvol in zvols if not zvol["thin"])
        return SIMULATED_BYTES - used, SIMULATED_BYTES

    def usage(self, dataset: str) -> dict[str, int]:
        size, used, referenced = _usage(self._zvol(dataset))
        return {"volsize": size, "used": used, "referenced": referenced}

    def usages(self, root: str) -> dict[str, tuple[int, int, int]]:
        self._need_pool(root)
        return {name: _usage(zvol) for name, zvol in self.facts.of_kind("zvol").items()}

    def is_receiving(self, dataset: str) -> bool:
        return "receiving" in self._zvol(dataset)

    def pool_problem(self, root: str) -> ZfsiloError | None:
        pool = root.split("/")[0]
        health = self.facts.get(f"pool:{pool}") or "ONLINE"
        if health == "DEGRADED":
            from zfsilod.host.zfs_output import not_online

            return not_online(pool, health)
        if health == "LOCKED":
            from zfsilod.host.zfs_output import no_key

            return no_key(pool, root)
        try:
            self._need_pool(root)
        except ZfsiloError as error:
            return error
        return None

    def zvol(self, dataset: str) -> Any:
        """Return the facts of a zvol. Raises FailedPrecondition (NO_DATASET)."""
        return self._zvol(dataset)

    def check_device(self, dataset: str) -> None:
        """Raise FailedPrecondition for a zvol that has no device: missing, or without its key."""
        zvol = self.facts.get(f"zvol:{dataset}")
        if zvol is None:
            raise FailedPrecondition(f"the dataset {dataset} does not exist", dataset=dataset)
        root = zvol.get("root")
        if root and self.facts.get(f"key:{root}") is None:
            from zfsilod.host.zfs_output import no_key

            raise no_key(dataset, dataset)

    def _zvol(self, dataset: str) -> Any:
        self._need_pool(dataset)
        zvol = self.facts.get(f"zvol:{dataset}")
        if zvol is None:
            raise FailedPrecondition(
                f"the dataset {dataset} does not exist", reason="NO_DATASET", dataset=dataset
            )
        return zvol


def _usage(zvol: dict[str, Any]) -> tuple[int, int, int]:
    """Return volsize, used and referenced: nothing was written, and a thick zvol is reserved."""
    return zvol["size"], 0 if zvol["thin"] else zvol["size"], 0
