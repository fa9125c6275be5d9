"""A host that is only a set of facts: for `--simulate`, for trying things out, and for tests.

Facts lie in a file when a path is given (daemon and workers share it) and in memory otherwise. Each
change of one fact is one effect, as each system call or tool is on a real host; what takes two
effects there takes two here, so half-made states exist. A fuse fails or kills at the n-th effect.
The contract tests run the same examples here and on a real host, which keeps this file honest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zfsilod.errors import (
    Busy,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    PermissionDenied,
    Unavailable,
)
from zfsilod.host.fake_snapshots import FakeSnapshots, left_of
from zfsilod.model import Disk, Filesystem, Listed
from zfsilod.record import pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zfsilod.record import Pairs
    from zfsilod.secret import Chap

VOLATILE = ("backstore", "target", "lun", "portals", "enabled", "acl", "mapped", "session", "mount")
SIMULATED_POOL = "tank"
SIMULATED_BYTES = 1 << 40


class Facts:
    """The facts of a machine by name, and the fuse."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.memory: dict[str, Any] = {}
        self._seen: tuple[int, int] = (0, 0)  # which file the memory is of

    def get(self, name: str) -> Any:
        """Return a fact, or None."""
        with self._open(write=False) as facts:
            return facts.get(name)

    def names(self, kind: str) -> list[str]:
        """Return what follows the colon in the names of all facts of a kind."""
        with self._open(write=False) as facts:
            return [name.partition(":")[2] for name in list(facts) if name.startswith(f"{kind}:")]

    def effect(self, name: str, value: Any, *, instead_of: str = "") -> None:
        """Change one fact (None: remove it), unless the fuse blows first.

        `instead_of`: another name that it had; a thing is renamed in one effect.
        """
        with self._open(write=True) as facts:
            blown = _burn(facts)
            if blown != "before":
                facts.pop(instead_of, None)
                facts.pop(name, None)
                if value is not None:
                    facts[name] = value
        if blown:
            self._blow(facts["blown"])

    def light_fuse(self, effects: int, *, when: str, how: str, then: int = 0) -> None:
        """Fail at the n-th effect from now: when is before or after it, how is error or kill.

        `then`: and once more, so many effects later.
        """
        with self._open(write=True) as facts:
            facts["fuse"] = {"in": effects, "when": when, "how": how, "then": then}

    def reboot(self) -> None:
        """Forget what a kernel forgets."""
        with self._open(write=True) as facts:
            for name in [n for n in facts if n.partition(":")[0] in VOLATILE]:
                del facts[name]

    def snapshot(self) -> dict[str, Any]:
        """Return all facts, without the fuse."""
        with self._open(write=False) as facts:
            return {n: v for n, v in list(facts.items()) if n not in ("fuse", "blown")}

    def _blow(self, how: str) -> None:
        if how == "kill":
            self.kill()
        raise CommandFailed("the fuse of the simulated host blew")

    def kill(self) -> None:
        """Die as by SIGKILL; in-process tests put an exception here."""
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[dict[str, Any]]:
        if self.path is None:
            yield self.memory
            return
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            self._refresh(self.path)
            yield self.memory
            if write:
                new = self.path.with_suffix(".new")
                new.write_text(json.dumps(self.memory))
                new.replace(self.path)
                self._seen = _identity(self.path)
        except BaseException:
            self._seen = (0, 0)
            raise
        finally:
            os.close(lock)

    def _refresh(self, path: Path) -> None:
        """Read the file again when somebody else has written it."""
        identity = _identity(path)
        if identity != self._seen:
            self.memory = json.loads(path.read_text()) if path.exists() else {}
            self._seen = identity


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells one writing of the file from the next: each makes a new file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _burn(facts: dict[str, Any]) -> str | None:
    fuse = facts.get("fuse")
    if not fuse:
        return None
    if fuse["in"] > 1:
        fuse["in"] -= 1
        return None
    del facts["fuse"]
    if fuse["then"]:
        facts["fuse"] = fuse | {"in": fuse["then"], "then": 0}
    facts["blown"] = fuse["how"]
    return str(fuse["when"])


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
        cuts = {name: self.facts.get(f"cut:{name}") for name in self.facts.names("cut")}
        return tuple(f"{dataset}@{name}" for name, cut in cuts.items() if found["uid"] in cut["of"])

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

    def list_zvols(self, root: str) -> list[Listed]:
        names = [n for n in self.facts.names("zvol") if n == root or n.startswith(f"{root}/")]
        return [self._listed(name, self._zvol(name)) for name in sorted(names)]

    def _listed(self, dataset: str, zvol: Any) -> Listed:
        values = zvol["properties"]
        marks = {n[7:]: v for n, v in values.items() if n.startswith("zfsilo:")}
        return Listed(
            dataset=dataset, guid=zvol["guid"], size_bytes=zvol["size"], thin=zvol["thin"],
            volblocksize=int(values["volblocksize"]), marks=pairs(marks),
        )  # fmt: skip

    def own_properties(self, root: str) -> dict[str, dict[str, str]]:
        found = [each.dataset for each in self.list_zvols(root)]
        return {name: dict(self._zvol(name)["properties"]) for name in found}

    def capacity(self, root: str) -> tuple[int, int]:
        if root.split("/")[0] != SIMULATED_POOL:
            raise FailedPrecondition(f"the dataset {root} does not exist", dataset=root)
        zvols = (self.facts.get(f"zvol:{name}") for name in self.facts.names("zvol"))
        used = sum(each["size"] for each in zvols if not each["thin"])
        return SIMULATED_BYTES - used, SIMULATED_BYTES

    def usage(self, dataset: str) -> dict[str, int]:
        zvol = self._zvol(dataset)
        return {"volsize": zvol["size"], "used": 0, "referenced": 0}

    def usages(self, _root: str) -> dict[str, tuple[int, int, int]]:
        zvols = {name: self.facts.get(f"zvol:{name}") for name in self.facts.names("zvol")}
        return {name: (found["size"], 0, 0) for name, found in zvols.items()}

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


class FakeLio:
    """The iSCSI target as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_backstore(self, name: str, *, dataset: str, serial: str) -> bool:
        found = self.facts.get(f"backstore:{name}")
        if found and found["dataset"] != dataset:
            raise Conflict(f"the backstore {name} has another device", backstore=name)
        return bool(found == {"dataset": dataset, "serial": serial, "enabled": True})

    def add_backstore(self, name: str, *, dataset: str, serial: str) -> None:
        if self.facts.get(f"zvol:{dataset}") is None:
            raise FailedPrecondition(f"the dataset {dataset} does not exist", dataset=dataset)
        made = {"dataset": dataset, "serial": serial}
        self.facts.effect(f"backstore:{name}", made | {"enabled": False})
        self.facts.effect(f"backstore:{name}", made | {"enabled": True})

    def remove_backstore(self, name: str) -> None:
        if any(self.facts.get(f"lun:{target}") == name for target in self.facts.names("lun")):
            raise Busy(f"the backstore {name} is still a LUN", backstore=name)
        self._remove(f"backstore:{name}")

    def list_backstores(self) -> list[str]:
        return sorted(self.facts.names("backstore"))

    def list_targets(self) -> list[str]:
        return sorted(self.facts.names("target"))

    def list_acls(self, target: str) -> list[str]:
        names = self.facts.names("acl")
        return sorted(n.removeprefix(f"{target}/") for n in names if n.startswith(f"{target}/"))

    def purge(self, target: str, backstore: str) -> None:
        self.disable(target)
        self.remove_portals(target)
        for initiator in self.list_acls(target):
            self.unmap_lun(target, initiator)
            self.remove_acl(target, initiator)
        self.remove_lun(target)
        self.remove_target(target)
        self.remove_backstore(backstore)

    def has_target(self, target: str) -> bool:
        return bool(self.facts.get(f"target:{target}") == "ready")

    def add_target(self, target: str) -> None:
        self.facts.effect(f"target:{target}", "bare")
        self.facts.effect(f"target:{target}", "ready")

    def remove_target(self, target: str) -> None:
        inner = (f"lun:{target}", f"portals:{target}", f"enabled:{target}")
        admits = any(name.startswith(f"{target}/") for name in self.facts.names("acl"))
        if admits or any(self.facts.get(name) for name in inner):
            raise Busy(f"the target {target} is not empty", target=target)
        self._remove(f"target:{target}")

    def has_lun(self, target: str, backstore: str) -> bool:
        found = self.facts.get(f"lun:{target}")
        if found not in (None, "unlinked", backstore):
            raise Conflict(f"LUN 0 of {target} is another backstore: {found}", target=target)
        return bool(found == backstore)

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
        return bool(self.facts.get(f"portals:{target}") == sorted(portals))

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

    def has_acl(
        self, target: str, initiator: str, *, chap: Chap, admitted: tuple[str, ...]
    ) -> bool:
        ours = {f"{target}/{each}" for each in (initiator, *admitted)}
        for name in self.facts.names("acl"):
            if name.startswith(f"{target}/") and name not in ours:
                raise Conflict(f"the target {target} admits a stranger: {name}", target=target)
        return bool(self.facts.get(f"acl:{target}/{initiator}") == _digest(chap))

    def add_acl(self, target: str, initiator: str, *, chap: Chap) -> None:
        self._need(f"target:{target}")
        self.facts.effect(f"acl:{target}/{initiator}", "no secrets")
        self.facts.effect(f"acl:{target}/{initiator}", _digest(chap))

    def remove_acl(self, target: str, initiator: str) -> None:
        session = self.facts.get(f"session:{target}")
        if session and session["initiator"] == initiator:  # it goes with the ACL
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
        found = self.facts.get(f"session:{target}")
        return bool(
            found
            and found["initiator"] == initiator
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


class FakeIscsi:
    """Node records and sessions as facts; a login to a target of this very host is checked."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> bool:
        found = self.facts.get(f"node:{target}")
        made = {"portals": list(portals), "initiator": chap.username}
        return bool(found == made | {"chap": _digest(chap)})

    def add_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> None:
        made = {"portals": list(portals), "initiator": chap.username}
        self.facts.effect(f"node:{target}", made | {"chap": "no secrets"})
        self.facts.effect(f"node:{target}", made | {"chap": _digest(chap)})

    def remove_node(self, target: str) -> None:
        if self.facts.get(f"node:{target}") is not None:
            self.facts.effect(f"node:{target}", None)

    def has_session(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"the disk of {disk.target} has another serial", target=disk.target)
        if found:
            _need_session(self.facts, disk)
        return bool(found)

    def login(self, disk: Disk) -> None:
        node = self.facts.get(f"node:{disk.target}")
        if node is None:
            raise FailedPrecondition(f"there is no node record of {disk.target}")
        acls = [n for n in self.facts.names("acl") if n.startswith(f"{disk.target}/")]
        if acls and all(self.facts.get(f"acl:{name}") != node["chap"] for name in acls):
            raise PermissionDenied(f"the target {disk.target} refused the CHAP secrets")
        session = {"serial": disk.serial, "size": disk.size_bytes}
        session["initiator"] = node["initiator"]
        self.facts.effect(f"session:{disk.target}", session)

    def logout(self, disk: Disk) -> None:
        for path in self.facts.names("mount"):
            if self.facts.get(f"mount:{path}")["serial"] == disk.serial:
                raise Busy(f"the disk of {disk.target} is mounted at {path}", path=path)
        if self.facts.get(f"session:{disk.target}") is not None:
            self.facts.effect(f"session:{disk.target}", None)

    def is_known(self, disk: Disk) -> bool:
        return self.facts.get(f"session:{disk.target}") is not None

    def is_lost(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        return found is None or "lost" in found

    def users(self, disk: Disk) -> list[str]:
        paths = sorted(self.facts.names("mount"))
        return [path for path in paths if self.facts.get(f"mount:{path}")["serial"] == disk.serial]

    def sessions(self, prefix: str = "") -> list[str]:
        return sorted(each for each in self.facts.names("session") if each.startswith(prefix))

    def nodes(self, prefix: str = "") -> list[str]:
        return sorted(each for each in self.facts.names("node") if each.startswith(prefix))

    def drop(self, disk: Disk) -> None:
        if self.is_known(disk):
            self.facts.effect(f"session:{disk.target}", None)

    def has_size(self, disk: Disk) -> bool:
        found = self.facts.get(f"session:{disk.target}")
        return bool(found and found["size"] == disk.size_bytes)

    def initiator(self) -> str:
        """Return a name that no other simulation has: two of them are two machines."""
        place = hashlib.sha256(str(self.facts.path).encode()).hexdigest()[:12]
        return f"iqn.2026-01.org.zfsilo:simulated.{place}"

    def problem(self, disk: Disk) -> str:
        if self.facts.get(f"session:{disk.target}") is None:
            return f"there is no session with {disk.target}"
        return ""

    def rescan(self, disk: Disk) -> None:
        session = self.facts.get(f"session:{disk.target}")
        self.facts.effect(f"session:{disk.target}", session | {"size": disk.size_bytes})


class FakeBlock:
    """Filesystems as facts of a disk's serial: they outlive sessions."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_filesystem(self, disk: Disk, filesystem: Filesystem) -> bool:
        _need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        if filesystem.state == "READY":
            if found is None or found["uuid"] != filesystem.uuid:
                raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
            return True
        if found and found["uuid"] != filesystem.uuid and found["type"] != filesystem.type:
            raise Conflict(f"the disk {disk.serial} carries {found['type']}", disk=disk.serial)
        return bool(found and found["whole"])

    def make_filesystem(self, disk: Disk, filesystem: Filesystem) -> None:
        _need_session(self.facts, disk)
        made = {"type": filesystem.type, "uuid": filesystem.uuid, "size": disk.size_bytes}
        found = self.facts.get(f"content:{disk.serial}")
        assert found is None or found["uuid"] == filesystem.uuid, "mkfs over somebody's data"
        self.facts.effect(f"content:{disk.serial}", made | {"whole": False})
        self.facts.effect(f"content:{disk.serial}", made | {"whole": True})

    def is_renewed(self, disk: Disk, filesystem: Filesystem) -> bool:
        _need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        if found is None or found["uuid"] not in (filesystem.uuid, filesystem.origin):
            raise Conflict(f"the disk {disk.serial} lost its filesystem", disk=disk.serial)
        return bool(found["uuid"] == filesystem.uuid)

    def renew(self, disk: Disk, filesystem: Filesystem) -> None:
        if not self.is_renewed(disk, filesystem):
            found = self.facts.get(f"content:{disk.serial}")
            self.facts.effect(f"content:{disk.serial}", found | {"uuid": filesystem.uuid})

    def find_filesystem(self, disk: Disk) -> Filesystem:
        found = self.facts.get(f"content:{disk.serial}")
        return Filesystem(state="READY", type=found["type"], uuid=found["uuid"])

    def fills(self, disk: Disk, _path: str) -> bool:
        return bool(self.facts.get(f"content:{disk.serial}")["size"] == disk.size_bytes)

    def grow(self, disk: Disk, path: str) -> None:
        assert self.facts.get(f"mount:{path}"), "only a mounted filesystem is grown"
        found = self.facts.get(f"content:{disk.serial}")
        self.facts.effect(f"content:{disk.serial}", found | {"size": disk.size_bytes})


class FakeMounts:
    """Mount points and mounts as facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def has_point(self, path: str, *, file: bool) -> bool:
        if self.facts.get(f"mount:{path}"):
            return True
        found = self.facts.get(f"point:{path}")
        if found and found != _kind(file=file):
            raise Conflict(f"{path} is not an empty {_kind(file=file)}", path=path)
        return bool(found)

    def make_point(self, path: str, *, file: bool) -> None:
        self.facts.effect(f"point:{path}", _kind(file=file))

    def remove_point(self, path: str, *, file: bool) -> None:
        if self.facts.get(f"mount:{path}"):
            raise Busy(f"{path} is a mount point", path=path)
        if self.facts.get(f"point:{path}") == _kind(file=file):
            self.facts.effect(f"point:{path}", None)

    def is_staged(self, disk: Disk, path: str, *, options: tuple[str, ...], readonly: bool) -> bool:
        return self._is(path, disk, kind="staged", readonly=readonly)

    def stage(
        self, disk: Disk, path: str, *, fs_type: str, options: tuple[str, ...], readonly: bool,
        untouched: bool,
    ) -> None:  # fmt: skip
        _need_session(self.facts, disk)
        found = self.facts.get(f"content:{disk.serial}")
        assert found["type"] == fs_type, "mounted as another type than it is"
        self._mount(path, disk, kind="staged", readonly=readonly)

    def is_bound(self, disk: Disk, path: str, *, readonly: bool) -> bool:
        return self._is(path, disk, kind="bound", readonly=readonly)

    def bind(self, disk: Disk, source: str, path: str, *, readonly: bool) -> None:
        if self.facts.get(f"mount:{source}") is None:
            raise FailedPrecondition(f"{source} is not mounted", path=source)
        self._mount(path, disk, kind="bound", readonly=False)
        if readonly:
            self._mount(path, disk, kind="bound", readonly=True)

    def is_device_bound(self, disk: Disk, path: str) -> bool:
        return self._is(path, disk, kind="device", readonly=False)

    def bind_device(self, disk: Disk, path: str) -> None:
        _need_session(self.facts, disk)
        self._mount(path, disk, kind="device", readonly=False)

    def unmount(self, disk: Disk, path: str) -> None:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        if found:
            self.facts.effect(f"mount:{path}", None)

    def unbind_device(self, disk: Disk, path: str) -> None:
        self.unmount(disk, path)

    def is_attached(self, disk: Disk, path: str) -> bool:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        return bool(found)

    def detach(self, disk: Disk, path: str) -> None:
        self.unmount(disk, path)

    def _is(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> bool:
        found = self.facts.get(f"mount:{path}")
        if found and found["serial"] != disk.serial:
            raise Conflict(f"something else is mounted at {path}", path=path)
        return bool(found and found["kind"] == kind and found["readonly"] == readonly)

    def _mount(self, path: str, disk: Disk, *, kind: str, readonly: bool) -> None:
        if self.facts.get(f"point:{path}") is None:
            raise FailedPrecondition(f"the mount point {path} does not exist", path=path)
        mount = {"serial": disk.serial, "kind": kind, "readonly": readonly}
        self.facts.effect(f"mount:{path}", mount)

    def problem(self, path: str, *, readonly: bool) -> str:
        found = self.facts.get(f"mount:{path}")
        if found is None:
            return f"nothing is mounted at {path}"
        if found["readonly"] and not readonly:
            return f"the filesystem at {path} turned read-only after an error"
        return ""

    def stats(self, path: str) -> dict[str, int]:
        found = self.facts.get(f"mount:{path}")
        if found is None:
            raise FailedPrecondition(f"{path} is not mounted", path=path)
        size = self.facts.get(f"content:{found['serial']}")["size"]
        return {
            "bytes_total": size, "bytes_used": 0, "bytes_available": size,
            "inodes_total": 65536, "inodes_used": 11, "inodes_available": 65525,
        }  # fmt: skip


class FakeHost:
    """A whole simulated machine, storage host and consumer at once."""

    def __init__(self, path: Path | None = None, *, chap: Callable[[str], Chap]) -> None:
        self.facts = Facts(path)
        self.zfs = FakeZfs(self.facts)
        self.snapshots = FakeSnapshots(self.zfs)
        self.lio = FakeLio(self.facts)
        self.iscsi = FakeIscsi(self.facts)
        self.block = FakeBlock(self.facts)
        self.mounts = FakeMounts(self.facts)
        self.chap = chap

    def surveyed(self, _datasets: tuple[str, ...]) -> FakeHost:
        """Return this host: its facts are looked at without a process anyway."""
        return self


def _need_session(facts: Facts, disk: Disk) -> None:
    found = facts.get(f"session:{disk.target}")
    if found is None:
        raise FailedPrecondition(f"there is no session of {disk.target}", target=disk.target)
    if "lost" in found:
        raise Unavailable(f"the session with {disk.target} was lost and is being recovered")


def _digest(chap: Chap) -> str:
    return hashlib.sha256(repr(sorted(chap.values().items())).encode()).hexdigest()


def _access(*, readonly: bool) -> str:
    return "readonly" if readonly else "read-write"


def _kind(*, file: bool) -> str:
    return "file" if file else "directory"
