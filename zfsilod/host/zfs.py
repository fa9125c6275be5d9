"""zvols, through zfs(8): one process a call, machine output, typed errors from what it says.

Ownership is a user property with the source `local` and, once known, the dataset's guid: user
properties are inherited and travel with `zfs send`, a guid does neither (zfsprops(7)).
What zfs says is taken apart in zfs_words.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import zvol_device
from zfsilod.host.disks import users
from zfsilod.host.zfs_output import (
    first_line,
    foreign,
    in_bytes,
    missing,
    pool_of,
    reason_of,
    refused,
    table,
)
from zfsilod.model.errors import Busy, FailedPrecondition, Unavailable, ZfsiloError
from zfsilod.model.host_facts import ListedZvol
from zfsilod.model.names import check_dataset
from zfsilod.model.record import pairs

if TYPE_CHECKING:
    from zfsilod.host.run import Completed, Runner
    from zfsilod.model.record import Pairs

PREFIX = "zfsilo:"
UID = f"{PREFIX}uid"
MARKS = ("uid", "id", "filesystem", "mode", "access_modes", "hosts", "labels", "source_snapshot",
         "source_volume")  # fmt: skip
LISTED = ("guid", "volsize", "volblocksize", "refreservation", "origin")
READ_TIMEOUT_S = 30
LIST_TIMEOUT_S = 120  # of a pool that holds very many
CHANGE_TIMEOUT_S = 120  # a busy pool takes its time for a transaction group
DESTROY_ATTEMPTS = 4
SETTLE_S = 5
ANY = (0, 1, 2, 255)  # zfs set fails with 255, the others with 1, a wrong usage with 2


class RealZfs:
    """The pools of this host."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    # The zvol

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool:
        return self._own_guid(dataset, uid, guid) != ""

    def _own_guid(self, dataset: str, uid: str, guid: str = "") -> str:
        """Return our zvol's guid; "" when there is no such dataset. Raises Conflict: not ours."""
        found = self._look(dataset, "type", "guid", UID)
        if not found:
            return ""
        kind, its_guid, (its_uid, source) = found["type"][0], found["guid"][0], found[UID]
        if kind != "volume":
            raise foreign(dataset, f"it is a {kind}")
        if source != "local" or its_uid != uid:
            mark = "no mark of zfsilo" if source != "local" else f"the mark of volume {its_uid}"
            raise foreign(dataset, f"it has {mark}")
        if guid and its_guid != guid:
            raise foreign(dataset, f"its guid is {its_guid}, not {guid}")
        return its_guid

    def create_zvol(
        self, dataset: str, *, size_bytes: int, thin: bool, volblocksize: int,
        properties: Pairs, marks: Pairs,
    ) -> None:  # fmt: skip
        settings = (("volblocksize", str(volblocksize)), *properties, *marks)
        options = [word for name, value in settings for word in ("-o", f"{name}={value}")]
        sparse = ["-s"] if thin else []
        done = self._change("create", *sparse, "-V", str(size_bytes), *options, "--", dataset)
        if done.rc == 0:
            return
        reason = reason_of(done, "create", dataset)
        if reason == "dataset already exists" and self.has_zvol(
            dataset, uid=dict(marks)[UID], guid=""
        ):
            return
        if reason == "parent does not exist":
            parent = dataset.rpartition("/")[0]
            raise missing(parent)
        raise refused(done, reason, dataset)

    def destroy_zvol(self, dataset: str, *, uid: str, guid: str) -> None:
        for _attempt in range(DESTROY_ATTEMPTS):
            if not self.has_zvol(dataset, uid=uid, guid=guid):
                return
            done = self._change("destroy", dataset)
            if done.rc == 0:
                return
            if reason_of(done, "destroy", dataset) != "dataset is busy":
                raise self._not_destroyed(done, dataset)
            # Most often it is udev that looks at the device: wait until it has looked.
            settle = ["udevadm", "settle", f"--timeout={SETTLE_S}"]
            self._run(settle, timeout_s=SETTLE_S + 5, ok=(0, 1))
        names = users(Path(zvol_device.link(dataset)))
        by = f" by {', '.join(names)}" if names else ""
        raise Busy(
            f"the zvol {dataset} is in use{by}", reason="DATASET_BUSY",
            dataset=dataset, users=" ".join(names),
        )  # fmt: skip

    # The trash

    def is_moved(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        if self._own_guid(target, uid, guid):
            return True
        if self._own_guid(source, uid, guid):
            return False
        raise missing(source)

    def move(self, source: str, target: str, *, uid: str, guid: str) -> None:
        if self.is_moved(source, target, uid=uid, guid=guid):
            return
        self._make_parent(target)
        done = self._change("rename", source, target)
        if done.rc != 0:
            raise refused(done, reason_of(done, "rename", source), source)

    def _make_parent(self, dataset: str) -> None:
        """Make the dataset above, to hold zvols only; who else needs it may have made it."""
        parent = dataset.rpartition("/")[0]
        if self.exists(parent):
            return
        done = self._change("create", "-o", "canmount=off", "-o", "mountpoint=none", parent)
        reason = reason_of(done, "create", parent)
        if done.rc != 0 and reason != "dataset already exists":
            raise refused(done, reason, parent)

    def dependents(self, dataset: str) -> tuple[str, ...]:
        argv = ["zfs", "get", "-Hp", "-r", "-d", "1", "-t", "volume,snapshot"]
        argv += ["-o", "name,property,value,source", "clones", check_dataset(dataset)]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            raise self._not_listed(done, dataset)
        found = table(done.stdout)
        whole = done.stdout.endswith("\n") and all("clones" in each for each in found.values())
        if dataset not in found or not whole:
            raise done.failed(f"zfs did not tell all that depends on {dataset}")
        names: list[str] = []
        for snapshot, properties in found.items():
            clones = properties["clones"][0]
            if "@" in snapshot:
                names += [snapshot, *filter(None, clones.split(","))]
        return tuple(names)

    def find_guid(self, dataset: str, *, uid: str) -> str:
        guid = self._own_guid(dataset, uid)
        if not guid:
            raise missing(dataset)
        return guid

    def _not_destroyed(self, done: Completed, dataset: str) -> ZfsiloError:
        first, _, rest = done.stderr.strip().partition("\n")
        if first == f"cannot destroy '{dataset}': volume has children":
            names = rest.splitlines()[1:]  # the first line is advice that we never follow
            return FailedPrecondition(
                f"the zvol {dataset} has snapshots or clones: {', '.join(names)}",
                reason="DEPENDENTS", dataset=dataset, dependents=" ".join(names),
            )  # fmt: skip
        return refused(done, reason_of(done, "destroy", dataset), dataset)

    # Size and properties

    def has_size(self, dataset: str, size_bytes: int) -> bool:
        return int(self._value(dataset, "volsize")) >= size_bytes

    def set_size(self, dataset: str, size_bytes: int) -> None:
        now = int(self._value(dataset, "volsize"))
        if size_bytes < now:
            raise FailedPrecondition(
                f"the zvol {dataset} has {now} bytes and is never shrunk to {size_bytes}",
                reason="SHRINK", dataset=dataset,
            )  # fmt: skip
        if size_bytes > now:
            self._set(dataset, f"volsize={size_bytes}")

    def has_property(self, dataset: str, name: str, value: str) -> bool:
        shown, source = self.properties(dataset, (name,))[name]
        if value == "":
            return source != "local"
        # "-": set when the zvol was made and never changed since, as volblocksize is
        return source in ("local", "-") and shown in (value, in_bytes(value))

    def set_property(self, dataset: str, name: str, value: str) -> None:
        if value:
            self._set(dataset, f"{name}={value}")
            return
        done = self._change("inherit", name, dataset)
        if done.rc != 0:
            raise refused(done, reason_of(done, "inherit", dataset), dataset)

    def _set(self, dataset: str, setting: str) -> None:
        done = self._change("set", setting, dataset)
        if done.rc != 0:
            prefix = f"cannot set property for '{dataset}': "
            raise refused(done, first_line(done).removeprefix(prefix), dataset)

    # Reading, for the daemon

    def exists(self, dataset: str) -> bool:
        """Tell whether a dataset exists. Raises Unavailable when its pool is not imported."""
        return bool(self._look(dataset, "type"))

    def properties(self, dataset: str, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        """Return properties as (value, source). Raises FailedPrecondition: no such dataset."""
        found = self._look(dataset, *names)
        if not found:
            raise missing(dataset)
        return found

    def capacity(self, root: str) -> tuple[int, int]:
        """Return the bytes available below a dataset, and its size in all; quotas count."""
        found = self.properties(root, ("available", "used"))
        available, used = int(found["available"][0]), int(found["used"][0])
        return available, available + used

    def usage(self, dataset: str) -> dict[str, int]:
        """Return volsize, used and referenced in bytes."""
        names = ("volsize", "used", "referenced")
        found = self.properties(dataset, names)
        return {name: int(found[name][0]) for name in names}

    def usages(self, root: str) -> dict[str, tuple[int, int, int]]:
        """Return volsize, used and referenced of every zvol below a dataset, in one process."""
        argv = ["zfs", "list", "-Hp", "-r", "-t", "volume", "-o", "name,volsize,used,referenced"]
        lines = self._run(
            [*argv, check_dataset(root)], timeout_s=LIST_TIMEOUT_S
        ).stdout.splitlines()
        found = (line.split("\t") for line in lines)
        return {each[0]: (int(each[1]), int(each[2]), int(each[3])) for each in found}

    def pool_problem(self, root: str) -> str:
        """Return what `zpool list` has to say of a pool that is not ONLINE."""
        pool = pool_of(check_dataset(root))
        argv = ["zpool", "list", "-H", "-o", "health", pool]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        health = done.stdout.strip()
        if done.rc != 0:
            return f"the pool {pool} is not imported on this host"
        return "" if health == "ONLINE" else f"the pool {pool} is {health}: see zpool status"

    def list_zvols(self, root: str) -> list[ListedZvol]:
        """Return every zvol below a dataset, ours and others, in one process."""
        names = (*LISTED, *(f"{PREFIX}{mark}" for mark in MARKS))
        return [_listed(name, found) for name, found in self.listing(root, ",".join(names)).items()]

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        """Return what is set on each zvol below a dataset itself, in one process."""
        found = self.listing(root, "all", "-s", "local")
        return {
            dataset: {name: value for name, (value, _source) in properties.items()}
            for dataset, properties in found.items()
        }

    def listing(
        self, root: str, names: str, *options: str, kind: str = "volume"
    ) -> dict[str, dict[str, tuple[str, str]]]:
        """Return properties of everything of a kind below a dataset, in one process."""
        argv = ["zfs", "get", "-Hp", "-r", "-t", kind, *options]
        argv += ["-o", "name,property,value,source", names, check_dataset(root)]
        done = self._run(argv, timeout_s=LIST_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            raise self._not_listed(done, root)
        return table(done.stdout)

    def _not_listed(self, done: Completed, dataset: str) -> ZfsiloError:
        """Return why a listing failed. Raises Unavailable when it is the pool that is missing."""
        reason = reason_of(done, "open", dataset)
        if reason == "dataset does not exist":
            self.exists(dataset)
        return refused(done, reason, dataset)

    def device(self, dataset: str) -> str:
        """Return the path of a zvol's device, which may take a moment to appear."""
        return zvol_device.device(self._run, check_dataset(dataset))

    def _value(self, dataset: str, name: str) -> str:
        return self.properties(dataset, (name,))[name][0]

    def _look(self, dataset: str, *names: str) -> dict[str, tuple[str, str]]:
        """Return properties as (value, source); nothing for a dataset that does not exist.

        zfs says the same of a missing dataset and of one whose pool is not imported, so the pool
        is asked for in the same call: only with its answer does "does not exist" mean that.
        """
        pool = pool_of(check_dataset(dataset))
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source", ",".join(names)]
        asked = list(dict.fromkeys((dataset, pool)))
        done = self._run([*argv, *asked], timeout_s=READ_TIMEOUT_S, ok=ANY)
        found = table(done.stdout)
        if set(names) <= found.get(dataset, {}).keys():
            return found[dataset]
        if reason_of(done, "open", dataset) != "dataset does not exist":
            raise refused(done, reason_of(done, "open", dataset), dataset)
        if pool not in found:
            raise Unavailable(
                f"the pool {pool} is not imported on this host", reason="NO_POOL", pool=pool
            )
        return {}

    def _change(self, request: str, *words: str) -> Completed:
        check_dataset(words[-1])
        return self._run(["zfs", request, *words], timeout_s=CHANGE_TIMEOUT_S, ok=ANY)


def own_marks(found: dict[str, tuple[str, str]]) -> Pairs:
    """Return the user properties of ours that are set on a thing itself, without their prefix."""
    return pairs({
        name.removeprefix(PREFIX): value
        for name, (value, source) in found.items()
        if source == "local" and name.startswith(PREFIX)
    })  # fmt: skip


def _listed(dataset: str, found: dict[str, tuple[str, str]]) -> ListedZvol:
    origin = found["origin"][0]
    return ListedZvol(
        dataset=dataset, guid=found["guid"][0], size_bytes=int(found["volsize"][0]),
        volblocksize=int(found["volblocksize"][0]), thin=found["refreservation"][0] == "0",
        marks=own_marks(found), origin="" if origin == "-" else origin.partition("@")[0],
    )  # fmt: skip
