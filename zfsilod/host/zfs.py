"""zvols, through zfs(8): one process for each call, parsable output (-Hp), typed errors.

A zvol belongs to zfsilo when its user property `zfsilo:uid` has the source `local` and, once known,
its guid is the recorded one. User properties are inherited and are sent by `zfs send -p`, a guid is
neither: zfsprops(7). The output of zfs is parsed in zfs_output.py.
"""

from __future__ import annotations

import os

from zfsilod.host import zvol_device
from zfsilod.host.disks import open_exclusively, users, users_beside
from zfsilod.host.half_made import is_half_made, is_written
from zfsilod.host.zfs_output import (
    ENCRYPTION,
    PREFIX,
    Properties,
    asked,
    first_line,
    foreign,
    in_bytes,
    missing,
    no_key,
    no_pool,
    not_online,
    own_marks,
    pool_of,
    property_options,
    read_only,
    reason_of,
    refused,
    suspended,
    table,
)
from zfsilod.model.errors import Busy, FailedPrecondition, ZfsiloError
from zfsilod.model.host_facts import ListedZvol
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.marks import EPOCH, FILESYSTEM, OPERATION, find_sign_of_use, parse_epoch
from zfsilod.model.names import check_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.host.run import Completed, Runner
    from zfsilod.model.disk_key import DiskKey
    from zfsilod.model.record import Pairs

UID = f"{PREFIX}uid"
OWNER = f"{PREFIX}owner"  # of the dataset root
MARKS = (  # what adoption reads: all of plans.first_marks, and the epoch
    "uid",
    "epoch",
    "id",
    "filesystem",
    "mode",
    "access_modes",
    "hosts",
    "labels",
    "source_snapshot",
    "source_volume",
    "transport",
    "tls",
    "limits",
    "key",
    "replica",
)
PROOF = ("type", "guid", UID)  # properties that tell whose zvol it is
LISTED = ("guid", "volsize", "volblocksize", "refreservation", "origin")
READ_TIMEOUT_S = 30
LIST_TIMEOUT_S = 120  # for a pool with very many datasets
CHANGE_TIMEOUT_S = 120  # a change waits for a transaction group, which may be slow
DESTROY_ATTEMPTS = 4
SETTLE_S = 5
ANY = (0, 1, 2, 255)  # zfs(8): 1 an error, 2 invalid options; `zfs set` fails with 255


class RealZfs:
    """The zvols in the pools of this host; see ZfsAdapter."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    # zvols

    def has_zvol(self, dataset: str, *, uid: str, guid: str) -> bool:
        return self._own_guid(dataset, uid, guid) != ""

    def _own_guid(self, dataset: str, uid: str, guid: str = "") -> str:
        """Return the guid of the zvol of a volume; "" when the dataset does not exist.

        Raises Conflict (NOT_OURS) when it is not a zvol, or has another uid or another guid.
        """
        properties = self._get(dataset, *PROOF)
        return _checked_guid(dataset, properties, uid, guid) if properties else ""

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
        encryption = ENCRYPTION if key is not None else ()
        settings = (("volblocksize", str(volblocksize)), *encryption, *properties, *marks)
        options = property_options(settings)
        sparse = ["-s"] if thin else []
        raw = key.reveal() if key is not None else b""
        args = ("create", *sparse, "-V", str(size_bytes), *options, "--", dataset)
        done = self._change(*args, content=raw)
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
        self._destroy(dataset, lambda: self.has_zvol(dataset, uid=uid, guid=guid))

    def is_half_made(self, dataset: str, operation: str, planned: Pairs) -> bool:
        self._sync(dataset)
        properties = self.listing(dataset, "all").get(dataset, {})
        half_made = bool(properties) and is_half_made(properties, operation, planned)
        return half_made and not self.dependents(dataset)

    def destroy_half_made(self, dataset: str, operation: str, planned: Pairs) -> None:
        self._destroy(dataset, lambda: self.is_half_made(dataset, operation, planned))

    def _destroy(self, dataset: str, is_ours: Callable[[], bool]) -> None:
        """Destroy a zvol as long as it is ours. Raises Busy when it is in use."""
        for _attempt in range(DESTROY_ATTEMPTS):
            if not is_ours():
                return
            done = self._change("destroy", dataset)
            if done.rc == 0:
                return
            if reason_of(done, "destroy", dataset) != "dataset is busy":
                raise self._not_destroyed(done, dataset)
            # Most often udev has the device open: wait until it has processed its events.
            settle = ["udevadm", "settle", f"--timeout={SETTLE_S}"]
            self._run(settle, timeout_s=SETTLE_S + 5, ok=(0, 1))
        names = users(zvol_device.link(dataset))
        by = f" by {', '.join(names)}" if names else ""
        raise Busy(
            f"the zvol {dataset} is in use{by}",
            reason="DATASET_BUSY",
            dataset=dataset,
            users=" ".join(names),
        )

    def users(self, dataset: str) -> list[str]:
        try:
            device = self.device(dataset)
        except FailedPrecondition as error:
            if error.reason == "KEY_NOT_LOADED":  # so it has no device
                return []
            raise
        try:
            os.close(open_exclusively(device, dataset, os.O_RDONLY))
        except Busy:
            return users(device) or ["the kernel, as an export does"]
        return users_beside(device)

    def find_epoch(self, dataset: str, *, uid: str = "", guid: str = "") -> tuple[int, str]:
        properties = self._get(dataset, *PROOF, EPOCH)
        if uid and properties:
            _checked_guid(dataset, properties, uid, guid)
        value, source = properties.get(EPOCH, ("", ""))
        if source != "local":
            return 0, ""
        try:
            return parse_epoch(value)
        except ValueError:
            raise foreign(dataset, f"its {EPOCH} is not a number") from None

    def why_keep(self, dataset: str, marks: Pairs) -> str:
        self._sync(dataset)
        names = (OPERATION, EPOCH, FILESYSTEM, "origin", "logicalreferenced", "logicalused")
        properties = self.properties(dataset, names)
        local = {name: value for name, (value, source) in properties.items() if source == "local"}
        sign = find_sign_of_use(local, dict(marks))
        if not sign and (is_written(properties) or self.dependents(dataset)):
            sign = "it has data"
        return f"zvol {dataset} was kept: {sign}" if sign else ""

    def _sync(self, dataset: str) -> None:
        """Write what is in the intent log only, and so is not counted yet: zpool-sync(8)."""
        pool = pool_of(check_dataset(dataset))
        self._run(["zpool", "sync", pool], timeout_s=CHANGE_TIMEOUT_S)

    # Moving to the trash and back

    def is_renamed(self, source: str, target: str, *, uid: str, guid: str) -> bool:
        if self._own_guid(target, uid, guid):
            return True
        if self._own_guid(source, uid, guid):
            return False
        raise missing(source)

    def rename(self, source: str, target: str, *, uid: str, guid: str) -> None:
        if self.is_renamed(source, target, uid=uid, guid=guid):
            return
        parent = target.rpartition("/")[0]
        if not self.exists(parent):  # it is made without a mount point, for zvols only
            done = self._change("create", "-o", "canmount=off", "-o", "mountpoint=none", parent)
            reason = reason_of(done, "create", parent)
            if done.rc != 0 and reason != "dataset already exists":
                raise refused(done, reason, parent)
        done = self._change("rename", source, target)
        if done.rc != 0:
            raise refused(done, reason_of(done, "rename", source), source)

    def dependents(self, dataset: str) -> tuple[str, ...]:
        argv = ["zfs", "get", "-Hp", "-r", "-d", "1", "-t", "volume,snapshot"]
        argv += ["-o", "name,property,value,source", "clones", check_dataset(dataset)]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            raise self._not_listed(done, dataset)
        datasets = table(done.stdout)
        complete = done.stdout.endswith("\n") and all("clones" in row for row in datasets.values())
        if dataset not in datasets or not complete:
            raise done.failed(f"zfs did not list all snapshots and clones of {dataset}")
        names: list[str] = []
        for snapshot, properties in datasets.items():
            clones = properties["clones"][0]
            if "@" in snapshot:
                # "-": a snapshot that zfs is still receiving, or whose clones it does not list.
                names += [snapshot, *(name for name in clones.split(",") if name not in ("", "-"))]
        return tuple(names)

    def is_receiving(self, dataset: str) -> bool:
        token = self._get(dataset, "receive_resume_token")
        return token.get("receive_resume_token", ("-", ""))[0] != "-"

    def find_guid(self, dataset: str, *, uid: str) -> str:
        guid = self._own_guid(dataset, uid)
        if not guid:
            raise missing(dataset)
        return guid

    def _not_destroyed(self, done: Completed, dataset: str) -> ZfsiloError:
        first, _, rest = done.stderr.strip().partition("\n")
        if first == f"cannot destroy '{dataset}': volume has children":
            names = rest.splitlines()[1:]  # the first line is advice: "use '-r' to destroy ..."
            return FailedPrecondition(
                f"the zvol {dataset} has snapshots or clones: {', '.join(names)}",
                reason="DEPENDENTS",
                dataset=dataset,
                dependents=" ".join(names),
            )
        return refused(done, reason_of(done, "destroy", dataset), dataset)

    # Size and properties

    def has_size(self, dataset: str, size_bytes: int) -> bool:
        return int(self._value(dataset, "volsize")) >= size_bytes

    def set_size(self, dataset: str, size_bytes: int) -> None:
        present_bytes = int(self._value(dataset, "volsize"))
        if size_bytes < present_bytes:
            raise FailedPrecondition(
                f"the zvol {dataset} has {present_bytes} bytes and cannot be shrunk "
                f"to {size_bytes}",
                reason="SHRINK",
                dataset=dataset,
            )
        if size_bytes > present_bytes:
            self._set(dataset, f"volsize={size_bytes}")

    def has_property(self, dataset: str, name: str, value: str) -> bool:
        present, source = self.properties(dataset, (name,))[name]
        if value == "":
            return source != "local"
        # The source "-" is of properties that are set at creation only, such as volblocksize.
        return source in ("local", "-") and present in (value, in_bytes(value))

    def find_mark(self, dataset: str, name: str) -> str:
        value, source = self.properties(dataset, (name,))[name]
        return value if source in ("local", "received") else ""

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

    # The dataset root

    def find_owner(self, root: str) -> str:
        value, source = self.properties(root, (OWNER,))[OWNER]
        return value if source == "local" else ""

    def set_owner(self, root: str, owner: str) -> None:
        self._set(root, f"{OWNER}={owner}")

    # For the daemon

    def exists(self, dataset: str) -> bool:
        """Tell whether a dataset exists. Raises Unavailable when its pool is not imported."""
        return bool(self._get(dataset, "type"))

    def properties(self, dataset: str, names: tuple[str, ...]) -> Properties:
        """Return properties as (value, source). Raises FailedPrecondition without the dataset."""
        properties = self._get(dataset, *names)
        if not properties:
            raise missing(dataset)
        return properties

    def capacity(self, root: str) -> tuple[int, int]:
        properties = self.properties(root, ("available", "used"))
        available, used = int(properties["available"][0]), int(properties["used"][0])
        return available, available + used

    def usage(self, dataset: str) -> dict[str, int]:
        names = ("volsize", "used", "referenced")
        properties = self.properties(dataset, names)
        return {name: int(properties[name][0]) for name in names}

    def usages(self, root: str) -> dict[str, tuple[int, int, int]]:
        argv = ["zfs", "list", "-Hp", "-r", "-t", "volume", "-o", "name,volsize,used,referenced"]
        lines = self._run(
            [*argv, check_dataset(root)], timeout_s=LIST_TIMEOUT_S
        ).stdout.splitlines()
        rows = (line.split("\t") for line in lines)
        return {name: (int(size), int(used), int(ref)) for name, size, used, ref in rows}

    def pool_problem(self, root: str) -> ZfsiloError | None:
        pool = pool_of(check_dataset(root))
        argv = ["zpool", "list", "-H", "-o", "health,readonly", pool]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        health, _, readonly = done.stdout.strip().partition("\t")
        if done.rc != 0:
            return no_pool(pool)
        if health == "SUSPENDED":
            return suspended(pool)
        if health != "ONLINE":
            return not_online(pool, health)
        if readonly == "on":
            return read_only(pool)
        return self._key_problem(root)

    def list_zvols(self, root: str) -> list[ListedZvol]:
        names = asked((*LISTED, *(f"{PREFIX}{mark}" for mark in MARKS)))
        return [_listed(name, properties) for name, properties in self.listing(root, names).items()]

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        from zfsilod.model.zfs_properties import CHOICES  # for an adoption only

        return {
            dataset: {name: value for name, (value, _source) in properties.items()}
            for dataset, properties in self.listing(root, asked(CHOICES), "-s", "local").items()
        }

    def listing(
        self, root: str, names: str, *options: str, kind: str = "volume"
    ) -> dict[str, Properties]:
        """Return the properties `names` of all datasets of a kind at or below a dataset."""
        argv = ["zfs", "get", "-Hp", "-r", "-t", kind, *options]
        argv += ["-o", "name,property,value,source", names, check_dataset(root)]
        done = self._run(argv, timeout_s=LIST_TIMEOUT_S, ok=ANY)
        if done.rc != 0:
            raise self._not_listed(done, root)
        return table(done.stdout)

    def _not_listed(self, done: Completed, dataset: str) -> ZfsiloError:
        """Return the error for a failed listing. Raises Unavailable without the pool."""
        reason = reason_of(done, "open", dataset)
        if reason == "dataset does not exist":
            self.exists(dataset)
        return refused(done, reason, dataset)

    def device(self, dataset: str) -> str:
        """Wait for the device of a zvol and return its path."""
        path = zvol_device.link(check_dataset(dataset))
        if zvol_device.dataset_of(path) != dataset and (problem := self._key_problem(dataset)):
            raise problem
        return zvol_device.device(self._run, dataset)

    def _key_problem(self, dataset: str) -> ZfsiloError | None:
        """Return the error of a dataset whose key is not loaded: zfs-load-key(8)."""
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source"]
        argv += ["keystatus,encryptionroot", check_dataset(dataset)]
        done = self._run(argv, timeout_s=READ_TIMEOUT_S, ok=ANY)
        properties = table(done.stdout).get(dataset, {})
        if properties.get("keystatus", ("", ""))[0] != "unavailable":
            return None
        return no_key(properties.get("encryptionroot", (dataset, ""))[0], dataset)

    def _value(self, dataset: str, name: str) -> str:
        return self.properties(dataset, (name,))[name][0]

    def _get(self, dataset: str, *names: str) -> Properties:
        """Return properties of a dataset as (value, source); none when it does not exist.

        zfs reports a missing dataset and a pool that is not imported with the same message, so the
        pool is in the same call: the dataset is missing only when the pool is listed.
        """
        pool = pool_of(check_dataset(dataset))
        argv = ["zfs", "get", "-Hp", "-o", "name,property,value,source", asked(names)]
        done = self._run([*argv, *dict.fromkeys((dataset, pool))], timeout_s=READ_TIMEOUT_S, ok=ANY)
        datasets = table(done.stdout)
        properties = datasets.get(dataset, {})
        if set(names) <= properties.keys():
            return {name: properties[name] for name in names}
        if reason_of(done, "open", dataset) != "dataset does not exist":
            raise refused(done, reason_of(done, "open", dataset), dataset)
        if pool not in datasets:
            raise no_pool(pool)
        return {}

    def _change(self, command: str, *args: str, content: bytes = b"") -> Completed:
        """Run a command of zfs(8) whose last argument is a dataset; `content`: its input."""
        check_dataset(args[-1])
        argv = ["zfs", command, *args]
        return self._run(argv, timeout_s=CHANGE_TIMEOUT_S, ok=ANY, input=content)


def _checked_guid(dataset: str, properties: Properties, uid: str, guid: str) -> str:
    """Return the guid of a zvol with these properties. Raises Conflict (NOT_OURS) for another."""
    (kind, _), (present_guid, _), (present_uid, source) = (properties[name] for name in PROOF)
    if kind != "volume":
        raise foreign(dataset, f"it is a {kind}")
    if source != "local":
        raise foreign(dataset, f"it has no local property {UID}")
    if present_uid != uid:
        raise foreign(dataset, f"it belongs to volume {present_uid}")
    if guid and present_guid != guid:
        raise foreign(dataset, f"its guid is {present_guid}, not {guid}")
    return present_guid


def _listed(dataset: str, properties: Properties) -> ListedZvol:
    origin = properties["origin"][0]
    return ListedZvol(
        dataset=dataset,
        guid=properties["guid"][0],
        size_bytes=int(properties["volsize"][0]),
        volblocksize=int(properties["volblocksize"][0]),
        thin=properties["refreservation"][0] == "0",
        marks=own_marks(properties),
        origin="" if origin == "-" else origin.partition("@")[0],
    )
