"""Snapshots, clones, groups and the trash on real ZFS, with the data compared on the consumer."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import oracle
from tests.lab.test_fencing import LOSE_STORE

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

DEADLINE_S = 180
PURGE_DEADLINE_S = 120
# create_time of a snapshot is ZFS's own, which may be a second off.
FLEETING = ("create_time", "update_time", "delete_time", "purge_time", "etag", "host", "operation")


class Silo:
    """Short words for what the story does on the two machines."""

    def __init__(self, pair: Pair) -> None:
        self.give = pair.give
        self.take = pair.take

    def on_give(self, *words: str, check: bool = True) -> str:
        """Run zfsiloctl on give; a refusal is returned as what it said."""
        return self._ctl(self.give, *words, check=check)

    def up(self, name: str, *options: str) -> None:
        """Bring a volume to /srv/NAME on take."""
        self._ctl(self.take, "volume", "connect", name)
        self._ctl(self.take, "volume", "stage", name, *options)
        self._ctl(self.take, "volume", "mount", name, f"/srv/{name}")

    def down(self, *names: str) -> None:
        """Take volumes away from take, and from all hosts."""
        for name in names:
            self._ctl(self.take, "volume", "unmount", name, "--all")
            self._ctl(self.take, "volume", "unstage", name)
            self._ctl(self.take, "volume", "disconnect", name)
            self.on_give("volume", "unpublish", name, "--all")

    def write(self, name: str, file: str) -> str:
        """Write 8 MiB into a mounted volume, and return its checksum."""
        path = f"/srv/{name}/{file}"
        self.take.sh(f"dd if=/dev/urandom of={path} bs=1M count=8 conv=fsync status=none")
        return self.sum(name, file)

    def sum(self, name: str, file: str) -> str:
        """Return the checksum of a file; "" when it is not there."""
        done = self.take.run("sha256sum", f"/srv/{name}/{file}", check=False, timeout_s=60)
        return done.stdout.partition(" ")[0]

    def uuid(self, name: str) -> str:
        """Return the UUID of a mounted filesystem."""
        return self.take.run("findmnt", "-n", "-o", "UUID", f"/srv/{name}").stdout.strip()

    def size(self, name: str) -> int:
        """Return the size of a mounted filesystem."""
        return int(self.take.sh(f"df -B1 --output=size /srv/{name} | tail -1").stdout)

    def listed(self, *words: str) -> list[dict[str, Any]]:
        """Return what give lists: snapshots, volumes."""
        found: dict[str, list[dict[str, Any]]] = json.loads(self.on_give(*words, "--json"))
        return next(iter(found.values()))

    def known(self) -> list[dict[str, Any]]:
        """Return what give lists, without what only its store tells."""
        lists = (
            ("volume", "list", "--deleted"), ("snapshot", "list"), ("snapshot-group", "list")
        )  # fmt: skip
        return [_lasting(each) for words in lists for each in self.listed(*words)]

    def zfs(self, *words: str) -> list[str]:
        """Return lines of zfs(8)."""
        return self.give.run("zfs", *words, timeout_s=60).stdout.splitlines()

    def _ctl(self, machine: Machine, *words: str, check: bool = True) -> str:
        done = machine.run("zfsiloctl", *words, timeout_s=DEADLINE_S, check=check)
        print(f"{machine.name}# zfsiloctl {' '.join(words)}  ({done.seconds:.1f} s)")
        return done.stdout + done.stderr


def _lasting(told: Any) -> Any:
    """Return what is told without times, etags, and who formatted; lists inside are told alike."""
    if isinstance(told, list):
        return [_lasting(each) for each in told]
    if not isinstance(told, dict):
        return told
    return {name: _lasting(value) for name, value in told.items() if name not in FLEETING}


@pytest.mark.timeout(1500, func_only=True)
def test_snapshots_clones_and_the_trash(pair: Pair) -> None:
    silo = Silo(pair)
    for name, kind in (("data", "ext4"), ("log", "xfs")):
        silo.on_give("volume", "create", name, "1G", "--host", "take")
        silo.up(name, "--fs-type", kind)
    first = silo.write("data", "first")
    silo.on_give("snapshot", "create", "data", "monday")
    second = silo.write("data", "second")
    _clones(silo, first)
    _group(silo)
    _trash(silo, first, second)
    silo.down("data", "log", "copy", "twin", "late")
    _lost(silo)
    _end(silo)
    assert oracle.leaks(pair) == []


def _clones(silo: Silo, first: str) -> None:
    """An ext4 clone of a snapshot and an xfs clone of a volume, larger, beside their origins."""
    silo.on_give("volume", "create", "copy", "2G", "--from-snapshot", "monday", "--host", "take")
    silo.up("copy")
    assert (silo.sum("copy", "first"), silo.sum("copy", "second")) == (first, "")
    written = silo.write("log", "written")
    silo.on_give("volume", "create", "twin", "2G", "--from-volume", "log", "--host", "take")
    silo.up("twin")
    assert silo.sum("twin", "written") == written
    for clone, origin in (("copy", "data"), ("twin", "log")):
        assert silo.uuid(clone) != silo.uuid(origin)
        assert silo.size(clone) > 1.8 * (1 << 30)
    assert [each["id"] for each in silo.listed("snapshot", "list")] == ["monday"]
    (deferred,) = silo.zfs("get", "-H", "-o", "value", "-t", "snapshot", "-r", "defer_destroy",
                           "tank/zfsilo/log")  # fmt: skip
    assert deferred == "on", "the clone's own snapshot is to go with it"


def _group(silo: Silo) -> None:
    """Two volumes at one moment: ZFS took both snapshots in one transaction group."""
    silo.on_give("snapshot-group", "create", "both", "data", "log")
    members = [each for each in silo.listed("snapshot", "list") if each.get("group")]
    assert sorted(each["volume"] for each in members) == ["volumes/data", "volumes/log"]
    said = silo.zfs("list", "-H", "-t", "snapshot", "-o", "name,createtxg,zfsilo:snapshot",
                    "-r", "tank/zfsilo")  # fmt: skip
    rows = [line.split("\t") for line in said if line.endswith("\tboth")]
    assert len(rows) == 2
    assert len({txg for _name, txg, _mark in rows}) == 1
    refused = silo.on_give("snapshot", "delete", members[0]["id"], check=False)
    assert "part of the group both" in refused


def _trash(silo: Silo, first: str, second: str) -> None:
    """A deletion is refused or keeps what depends on it, and can be taken back."""
    silo.down("data")
    refused = silo.on_give("volume", "delete", "data", "--yes", check=False)
    assert "snapshots/monday" in refused
    assert "volumes/copy" in refused
    silo.on_give("volume", "delete", "data", "--yes", "--keep-dependents")
    assert "data" not in [each["id"] for each in silo.listed("volume", "list")]
    assert "data" in [each["id"] for each in silo.listed("volume", "list", "--deleted")]
    silo.on_give("volume", "create", "late", "1G", "--from-snapshot", "monday", "--host", "take")
    silo.up("late")
    assert (silo.sum("late", "first"), silo.sum("late", "second")) == (first, "")
    silo.on_give("volume", "undelete", "data")
    silo.up("data")
    assert (silo.sum("data", "first"), silo.sum("data", "second")) == (first, second)


def _lost(silo: Silo) -> None:
    """The store is lost, and the pool tells all but who held what, and times."""
    silo.on_give("volume", "delete", "log", "--yes", "--keep-dependents")
    before = silo.known()
    silo.give.sh(LOSE_STORE)
    assert "snapshots/monday" not in json.dumps(silo.known())
    said = silo.on_give("adopt", "--all")
    assert silo.known() == before
    for told in (
        "snapshotGroups/both: adopted",
        "volumes/log: adopted, in the trash",
        "not known:",
    ):
        assert told in said
    silo.on_give("volume", "undelete", "log")


def _end(silo: Silo) -> None:
    """Everything goes, origins first: ZFS destroys each as soon as nothing needs it."""
    silo.on_give("snapshot", "delete", "monday")
    silo.on_give("snapshot-group", "delete", "both")
    for name in ("data", "log"):
        silo.on_give("volume", "delete", name, "--yes", "--keep-dependents")
    assert len([name for name in silo.zfs("list", "-H", "-o", "name") if ".trash/" in name]) == 2
    for name in ("copy", "twin", "late"):
        silo.on_give("volume", "delete", name, "--yes")
    until = time.monotonic() + PURGE_DEADLINE_S
    while silo.zfs("list", "-H", "-t", "volume,snapshot", "-o", "name"):
        assert time.monotonic() < until, "the trash was not purged"
        time.sleep(1)
