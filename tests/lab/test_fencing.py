"""Volumes that are taken away, servers that are gone, and stores that are lost; all for real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import oracle

if TYPE_CHECKING:
    from tests.lab.machine import Machine, Result
    from tests.lab.pair import Pair

NAME = "data"
PATH = "/srv/data"
OTHER = "iqn.2024-01.lab.other:host"
STEP_S = 180
TEST_S = 1500

# A writer that syncs each block, and says how it ended.
WRITER = f"""
import os
descriptor = os.open("{PATH}/written", os.O_CREAT | os.O_WRONLY, 0o600)
try:
    while True:
        os.pwrite(descriptor, os.urandom(4096), 0)
        os.fsync(descriptor)
except OSError as error:
    print(f"write failed: {{error.strerror}}", flush=True)
"""
FAILED = "until journalctl -u writer -o cat | grep -q 'write failed'; do sleep 0.2; done"
LOST = "until grep -qx FAILED /sys/class/iscsi_session/*/state; do sleep 0.2; done"
MAKE_FOREIGN = """
zfs create -s -V 256M tank/vm-1
udevadm settle
mkfs.ext4 -q /dev/zvol/tank/vm-1
mount /dev/zvol/tank/vm-1 /mnt
echo kept > /mnt/kept
umount /mnt
"""
LOSE_STORE = """
systemctl stop zfsilod.socket zfsilod-tcp.socket zfsilod.service
mv /var/lib/zfsilo/store /root/lost
systemctl start zfsilod.socket zfsilod.service
"""
# Pending I/O fails after 120 s otherwise; the kernel takes no other time once a session is lost.
HURRY = "echo 10 > /sys/class/iscsi_session/$(ls /sys/class/iscsi_session)/recovery_tmo"
ACLS = "ls /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls"


def ctl(machine: Machine, *words: str) -> Result:
    """Run zfsiloctl there."""
    return machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def up(pair: Pair) -> None:
    """Bring a volume all the way up, and let somebody write to it without end."""
    ctl(pair.give, "volume", "create", NAME, "1G", "--host", "take")
    ctl(pair.give, "volume", "publish", NAME, "take")
    ctl(pair.take, "volume", "connect", NAME, "--server", "give", "--no-publish")
    ctl(pair.take, "volume", "stage", NAME)
    ctl(pair.take, "volume", "mount", NAME, PATH)
    pair.take.sh(HURRY)
    pair.take.put("/root/writer.py", WRITER.encode(), 0o600)
    pair.take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
    pair.take.sh(f"until [ -s {PATH}/written ]; do sleep 0.1; done", timeout_s=STEP_S)


def sessions(machine: Machine) -> list[str]:
    """Return the states of the iSCSI sessions of a machine."""
    return machine.sh("cat /sys/class/iscsi_session/*/state 2>/dev/null || true").stdout.split()


def orphans(machine: Machine) -> list[str]:
    """Return the names of the orphans on a machine."""
    listed: list[dict[str, Any]] = json.loads(ctl(machine, "orphan", "list", "--json").stdout)[
        "orphans"
    ]
    return [each["name"] for each in listed]


def refusal(machine: Machine, *words: str) -> str:
    """Return the sentence with which zfsiloctl refuses."""
    refused = machine.run("zfsiloctl", *words, timeout_s=STEP_S, check=False)
    assert refused.rc != 0, "it should have been refused"
    return refused.stderr


@pytest.mark.timeout(TEST_S, func_only=True)
class TestFenced:
    """A host that is at work loses its volume to another."""

    def test_its_writes_fail_and_it_never_comes_back(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        ctl(give, "host", "add", "other", "--iqn", OTHER)
        assert "published to take" in refusal(give, "volume", "publish", NAME, "other")
        assert "still logged in" in refusal(give, "volume", "unpublish", NAME, "take")

        ctl(give, "volume", "publish", NAME, "other", "--force")

        assert give.sh(ACLS).stdout.split() == [OTHER]
        take.sh(LOST, timeout_s=STEP_S)  # iscsid tries to log in again, all the time
        waited = take.sh(FAILED, timeout_s=400)
        print(f"the writer's next write failed after {waited.seconds:.1f} s")
        assert give.sh(ACLS).stdout.split() == [OTHER]

    def test_it_does_not_publish_to_itself_again(self, pair: Pair) -> None:
        words = ("volume", "connect", NAME, "--server", "give")
        assert "taken from this host" in refusal(pair.take, *words)

    def test_it_lets_go_without_force(self, pair: Pair) -> None:
        take = pair.take
        ctl(take, "volume", "unmount", NAME, PATH)
        ctl(take, "volume", "unstage", NAME)
        ctl(take, "volume", "disconnect", NAME)
        assert sessions(take) == []

    def test_nothing_is_left(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "other")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        ctl(pair.give, "host", "delete", "other")
        assert oracle.leaks(pair) == []
        assert oracle.secrets_shown(pair) == []


@pytest.mark.timeout(TEST_S, func_only=True)
class TestServerIsDead:
    """The storage host is cut off while a consumer is at work."""

    def test_the_consumer_drains_by_force(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.link(up=False)
        take.sh(LOST, timeout_s=STEP_S)
        done = ctl(take, "volume", "disconnect", NAME, "--force")
        print(f"drained in {done.seconds:.1f} s")
        assert sessions(take) == []
        assert take.run("mountpoint", "-q", PATH, check=False).rc != 0
        give.link(up=True)

    def test_the_server_takes_its_volume_back(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert oracle.leaks(pair) == []


@pytest.mark.timeout(TEST_S, func_only=True)
class TestServerIsFrozen:
    """The storage host stops in mid-sentence: its session stands, and nothing answers."""

    def test_the_consumer_lets_go_without_force(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.freeze()
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            done = ctl(take, "volume", *words)
            print(f"{words[0]} in {done.seconds:.1f} s")
        assert sessions(take) == []
        assert take.run("mountpoint", "-q", PATH, check=False).rc != 0
        give.resume()

    def test_the_server_takes_its_volume_back(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert oracle.leaks(pair) == []


@pytest.mark.timeout(TEST_S, func_only=True)
class TestStoreIsLost:
    """The state directory of the storage host is gone, its pool and its exports are not."""

    def test_nobody_is_cut_off_and_the_pool_tells_all(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.sh(LOSE_STORE)
        found = orphans(give)
        assert [each.partition("/")[0] for each in found] == ["export", "zvol"]
        assert "adopted" in ctl(give, "adopt", "--all").stdout
        assert [each.partition("/")[0] for each in orphans(give)] == ["acl"]
        assert "no publication names" in refusal(give, "volume", "sync", NAME)
        assert sessions(take) == ["LOGGED_IN"], "the consumer is at work all the time"
        shown = json.loads(ctl(give, "volume", "show", NAME, "--json").stdout)
        assert (shown["hosts"], shown["filesystem"]["type"]) == (["take"], "ext4")

    def test_what_is_left_is_removed_when_asked(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop writer")
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "orphan", "remove", "--yes", *orphans(give))
        ctl(give, "volume", "sync", NAME)
        ctl(give, "volume", "delete", NAME, "--yes")
        assert orphans(give) == orphans(take) == []
        assert oracle.leaks(pair) == []


@pytest.mark.timeout(TEST_S, func_only=True)
class TestForeignZvol:
    """A zvol that somebody made by hand, with a filesystem and a file on it."""

    def test_it_becomes_a_volume_and_keeps_its_data(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(MAKE_FOREIGN, timeout_s=STEP_S)
        ctl(give, "adopt", "tank/vm-1", "--id", NAME)
        ctl(give, "volume", "update", NAME, "--host", "take")
        ctl(take, "volume", "connect", NAME, "--server", "give")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        assert take.sh(f"cat {PATH}/kept").stdout == "kept\n"
        ctl(take, "volume", "disconnect", NAME, "--force")
        ctl(give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        ctl(give, "volume", "delete", NAME, "--yes")
        assert "vm-1" not in give.sh("zfs list -H -o name -r tank").stdout
        assert oracle.leaks(pair) == []
