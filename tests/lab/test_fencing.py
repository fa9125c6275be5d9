"""Fenced clients, unreachable and frozen servers, lost stores, and adopted zvols."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.lab.machine import GuestResult, Machine
    from tests.lab.pair import Pair

NAME = "data"
PATH = "/srv/data"
OTHER = "iqn.2024-01.lab.other:host"
STEP_S = 180
TEST_S = 1500

# Writes and syncs one block without end, and prints the error that stops it.
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
# FAILED, or gone: the client ends a lost session whose publication was withdrawn.
LOST = "while grep -qsx LOGGED_IN /sys/class/iscsi_session/*/state; do sleep 0.2; done"
MAKE_FOREIGN = """
zfs create -s -V 256M tank/vm-1
udevadm settle
mkfs.ext4 -q /dev/zvol/tank/vm-1
mount /dev/zvol/tank/vm-1 /mnt
echo kept > /mnt/kept
umount /mnt
"""
ADOPT_FROM = b'[server]\nadopt_from = ["tank/vm-1"]\n'
LOSE_STORE = """
systemctl stop zfsilod.socket
mv /var/lib/zfsilo/store /root/lost
systemctl start zfsilod.socket zfsilod.service
"""
ACLS = "ls /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls"


def ctl(machine: Machine, *words: str) -> GuestResult:
    """Run zfsiloctl on a machine."""
    return machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def attach(take: Machine) -> None:
    """Connect and mount the published volume."""
    ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
    ctl(take, "volume", "stage", NAME)
    ctl(take, "volume", "mount", NAME, PATH)


def up(pair: Pair) -> None:
    """Create a volume, mount it on take, and start the writer."""
    ctl(pair.give, "volume", "create", NAME, "1G", "--host", "take")
    ctl(pair.give, "volume", "publish", NAME, "take")
    attach(pair.take)
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
    return [orphan["name"] for orphan in listed]


def refusal(machine: Machine, *words: str) -> str:
    """Run zfsiloctl, assert that it fails, and return its error."""
    refused = machine.run("zfsiloctl", *words, timeout_s=STEP_S, check=False)
    assert refused.rc != 0, "the command did not fail"
    return refused.stderr


@pytest.mark.timeout(TEST_S, func_only=True)
class TestFenced:
    """A volume in use is fenced from its client and published to another."""

    def test_writes_fail_and_no_login_succeeds(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        ctl(give, "host", "add", "other", "--iqn", OTHER)
        assert "published to take" in refusal(give, "volume", "publish", NAME, "other")
        assert "still logged in" in refusal(give, "volume", "unpublish", NAME, "take")

        ctl(give, "volume", "publish", NAME, "other", "--force")

        assert give.sh(ACLS).stdout.split() == [OTHER]
        take.sh(LOST, timeout_s=STEP_S)
        waited = take.sh(FAILED, timeout_s=120)  # I/O waits without limit, but not after a fence
        print(f"the writer's next write failed after {waited.seconds:.1f} s")
        assert give.sh(ACLS).stdout.split() == [OTHER]

    def test_the_client_cannot_publish_to_itself(self, pair: Pair) -> None:
        words = ("volume", "connect", NAME, "--server", "give")
        assert "to this host was withdrawn" in refusal(pair.take, *words)

    def test_the_client_detaches_without_force(self, pair: Pair) -> None:
        take = pair.take
        ctl(take, "volume", "unmount", NAME, PATH)
        ctl(take, "volume", "unstage", NAME)
        ctl(take, "volume", "disconnect", NAME)
        assert sessions(take) == []

    def test_nothing_is_left(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "other")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        ctl(pair.give, "host", "delete", "other")
        assert leak_check.leaks(pair) == []
        assert leak_check.secrets_shown(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestServerIsUnreachable:
    """The server is disconnected from the network while a client writes."""

    def test_the_client_disconnects_with_force(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.link(up=False)
        take.sh(LOST, timeout_s=STEP_S)
        done = ctl(take, "volume", "disconnect", NAME, "--force")
        print(f"disconnected in {done.seconds:.1f} s")
        assert sessions(take) == []
        assert take.run("mountpoint", "-q", PATH, check=False).rc != 0
        give.link(up=True)

    def test_the_server_fences_and_deletes_the_volume(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestServerIsFrozen:
    """The server is stopped: the session stays logged in, but no I/O completes."""

    def test_the_client_detaches_without_force(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.freeze()
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            done = ctl(take, "volume", *words)
            print(f"{words[0]} in {done.seconds:.1f} s")
        assert sessions(take) == []
        assert take.run("mountpoint", "-q", PATH, check=False).rc != 0
        give.resume()

    def test_the_server_fences_and_deletes_the_volume(self, pair: Pair) -> None:
        ctl(pair.give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        ctl(pair.give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestStoreIsLost:
    """The store of the server is lost; its pool and its exports are intact."""

    def test_adoption_restores_the_records_without_interruption(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        up(pair)
        give.sh(LOSE_STORE)
        assert [name.partition("/")[0] for name in orphans(give)] == ["export", "zvol"]
        assert "adopted" in ctl(give, "adopt", "--all").stdout
        assert [name.partition("/")[0] for name in orphans(give)] == ["acl"]
        assert "no publication names" in refusal(give, "volume", "sync", NAME)
        assert sessions(take) == ["LOGGED_IN"], "the session was interrupted"
        shown = json.loads(ctl(give, "volume", "show", NAME, "--json").stdout)
        assert (shown["hosts"], shown["filesystem"]["type"]) == (["take"], "ext4")

    def test_remaining_orphans_are_removed_on_request(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop writer")
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "orphan", "remove", "--yes", *orphans(give))
        ctl(give, "volume", "sync", NAME)
        ctl(give, "volume", "delete", NAME, "--yes")
        assert orphans(give) == orphans(take) == []
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestForeignZvol:
    """A zvol that was created without zfsilo, with a filesystem and a file."""

    def test_it_is_adopted_with_its_data(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        give.sh(MAKE_FOREIGN, timeout_s=STEP_S)
        refused = give.run("zfsiloctl", "adopt", "tank/vm-1", "--id", NAME, check=False)
        assert "server.adopt_from" in refused.stderr
        give.put("/etc/zfsilo/zfsilod.toml.d/adopt.toml", ADOPT_FROM, 0o644)
        give.run("systemctl", "restart", "zfsilod.service")
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
        assert leak_check.leaks(pair) == []
