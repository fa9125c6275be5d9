"""Snapshots, clones, groups and the trash on real ZFS; data is compared on the client."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import LOSE_STORE

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

DEADLINE_S = 180
PURGE_DEADLINE_S = 120
# Not restored by an adoption; create_time of a snapshot is that of ZFS, which may differ by 1 s.
NOT_COMPARED = (
    "create_time",
    "update_time",
    "delete_time",
    "purge_time",
    "etag",
    "host",
    "operation",
)


class VolumeCommands:
    """Short forms of the commands on both machines."""

    def __init__(self, pair: Pair) -> None:
        self.give = pair.give
        self.take = pair.take

    def on_give(self, *words: str, check: bool = True) -> str:
        """Run zfsiloctl on give and return its output and errors."""
        return self._ctl(self.give, *words, check=check)

    def up(self, name: str, *options: str) -> None:
        """Mount a volume on /srv/NAME on take."""
        self._ctl(self.take, "volume", "connect", name)
        self._ctl(self.take, "volume", "stage", name, *options)
        self._ctl(self.take, "volume", "mount", name, f"/srv/{name}")

    def down(self, *names: str) -> None:
        """Detach volumes from take and unpublish them."""
        for name in names:
            self._ctl(self.take, "volume", "unmount", name, "--all")
            self._ctl(self.take, "volume", "unstage", name)
            self._ctl(self.take, "volume", "disconnect", name)
            self.on_give("volume", "unpublish", name, "--all")

    def write(self, name: str, file: str) -> str:
        """Write a file of 8 MiB to a mounted volume and return its checksum."""
        path = f"/srv/{name}/{file}"
        self.take.sh(f"dd if=/dev/urandom of={path} bs=1M count=8 conv=fsync status=none")
        return self.sum(name, file)

    def sum(self, name: str, file: str) -> str:
        """Return the checksum of a file, or "" if it does not exist."""
        done = self.take.run("sha256sum", f"/srv/{name}/{file}", check=False, timeout_s=60)
        return done.stdout.partition(" ")[0]

    def uuid(self, name: str) -> str:
        """Return the UUID of a mounted filesystem."""
        return self.take.run("findmnt", "-n", "-o", "UUID", f"/srv/{name}").stdout.strip()

    def size(self, name: str) -> int:
        """Return the size of a mounted filesystem."""
        return int(self.take.sh(f"df -B1 --output=size /srv/{name} | tail -1").stdout)

    def listed(self, *words: str) -> list[dict[str, Any]]:
        """Return a list of give: snapshots, volumes or groups."""
        listing: dict[str, list[dict[str, Any]]] = json.loads(self.on_give(*words, "--json"))
        return next(iter(listing.values()))

    def records(self) -> list[dict[str, Any]]:
        """Return all records of give, without the fields of NOT_COMPARED."""
        lists = (("volume", "list", "--deleted"), ("snapshot", "list"), ("snapshot-group", "list"))
        return [_comparable(item) for words in lists for item in self.listed(*words)]

    def zfs(self, *words: str) -> list[str]:
        """Return the output lines of zfs(8)."""
        return self.give.run("zfs", *words, timeout_s=60).stdout.splitlines()

    def _ctl(self, machine: Machine, *words: str, check: bool = True) -> str:
        done = machine.run("zfsiloctl", *words, timeout_s=DEADLINE_S, check=check)
        print(f"{machine.name}# zfsiloctl {' '.join(words)}  ({done.seconds:.1f} s)")
        return done.stdout + done.stderr


def _comparable(value: Any) -> Any:
    """Return a record, recursively, without the fields of NOT_COMPARED."""
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _comparable(item) for name, item in value.items() if name not in NOT_COMPARED}


@pytest.mark.long
@pytest.mark.timeout(1500, func_only=True)
def test_snapshots_clones_and_the_trash(pair: Pair) -> None:
    hosts = VolumeCommands(pair)
    for name, kind in (("data", "ext4"), ("log", "xfs")):
        hosts.on_give("volume", "create", name, "1G", "--host", "take")
        hosts.up(name, "--fs-type", kind)
    first = hosts.write("data", "first")
    hosts.on_give("snapshot", "create", "data", "monday")
    second = hosts.write("data", "second")
    _clones(hosts, first)
    _group(hosts)
    _trash(hosts, first, second)
    hosts.down("data", "log", "copy", "twin", "late")
    _lost(hosts)
    _end(hosts)
    assert leak_check.leaks(pair) == []


def _clones(hosts: VolumeCommands, first: str) -> None:
    """An ext4 clone of a snapshot and an xfs clone of a volume are larger than their origins."""
    hosts.on_give("volume", "create", "copy", "2G", "--from-snapshot", "monday", "--host", "take")
    hosts.up("copy")
    assert (hosts.sum("copy", "first"), hosts.sum("copy", "second")) == (first, "")
    written = hosts.write("log", "written")
    hosts.on_give("volume", "create", "twin", "2G", "--from-volume", "log", "--host", "take")
    hosts.up("twin")
    assert hosts.sum("twin", "written") == written
    for clone, origin in (("copy", "data"), ("twin", "log")):
        assert hosts.uuid(clone) != hosts.uuid(origin)
        assert hosts.size(clone) > 1.8 * (1 << 30)
    assert [item["id"] for item in hosts.listed("snapshot", "list")] == ["monday"]
    words = ("-H", "-o", "value", "-t", "snapshot", "-r", "defer_destroy", "tank/zfsilo/log")
    (deferred,) = hosts.zfs("get", *words)
    assert deferred == "on", "the snapshot must be destroyed with its clone"


def _group(hosts: VolumeCommands) -> None:
    """Snapshots of two volumes are created in one transaction group of ZFS."""
    hosts.on_give("snapshot-group", "create", "both", "data", "log")
    members = [item for item in hosts.listed("snapshot", "list") if item.get("group")]
    assert sorted(item["volume"] for item in members) == ["volumes/data", "volumes/log"]
    columns = "name,createtxg,zfsilo:snapshot"
    lines = hosts.zfs("list", "-H", "-t", "snapshot", "-o", columns, "-r", "tank/zfsilo")
    rows = [line.split("\t") for line in lines if line.endswith("\tboth")]
    assert len(rows) == 2
    assert len({txg for _name, txg, _mark in rows}) == 1
    refused = hosts.on_give("snapshot", "delete", members[0]["id"], check=False)
    assert "part of the group both" in refused


def _trash(hosts: VolumeCommands, first: str, second: str) -> None:
    """A deletion with dependents is refused or keeps them, and can be reverted."""
    hosts.down("data")
    refused = hosts.on_give("volume", "delete", "data", "--yes", check=False)
    assert "snapshots/monday" in refused
    assert "volumes/copy" in refused
    hosts.on_give("volume", "delete", "data", "--yes", "--keep-dependents")
    assert "data" not in [volume["id"] for volume in hosts.listed("volume", "list")]
    assert "data" in [volume["id"] for volume in hosts.listed("volume", "list", "--deleted")]
    hosts.on_give("volume", "create", "late", "1G", "--from-snapshot", "monday", "--host", "take")
    hosts.up("late")
    assert (hosts.sum("late", "first"), hosts.sum("late", "second")) == (first, "")
    hosts.on_give("volume", "undelete", "data")
    hosts.up("data")
    assert (hosts.sum("data", "first"), hosts.sum("data", "second")) == (first, second)


def _lost(hosts: VolumeCommands) -> None:
    """The store is lost; adoption restores the records from the pool."""
    hosts.on_give("volume", "delete", "log", "--yes", "--keep-dependents")
    before = hosts.records()
    hosts.give.sh(LOSE_STORE)
    assert "snapshots/monday" not in json.dumps(hosts.records())
    output = hosts.on_give("adopt", "--all")
    assert hosts.records() == before
    for expected in (
        "snapshotGroups/both: adopted",
        "volumes/log: adopted, in the trash",
        "note: the times of deletions are not stored in the pool",
    ):
        assert expected in output
    hosts.on_give("volume", "undelete", "log")


def _end(hosts: VolumeCommands) -> None:
    """Deletes all, origins first: ZFS destroys each once it has no dependents."""
    hosts.on_give("snapshot", "delete", "monday")
    hosts.on_give("snapshot-group", "delete", "both")
    for name in ("data", "log"):
        hosts.on_give("volume", "delete", name, "--yes", "--keep-dependents")
    assert len([name for name in hosts.zfs("list", "-H", "-o", "name") if ".trash/" in name]) == 2
    for name in ("copy", "twin", "late"):
        hosts.on_give("volume", "delete", name, "--yes")
    until = time.monotonic() + PURGE_DEADLINE_S
    while hosts.zfs("list", "-H", "-t", "volume,snapshot", "-o", "name"):
        assert time.monotonic() < until, "the trash was not purged in time"
        time.sleep(1)
