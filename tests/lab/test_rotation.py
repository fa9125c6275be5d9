"""Rotation of secrets with a mounted volume under writes, and at the next login."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.lab.machine import GuestResult, Machine
    from tests.lab.pair import Pair

NAME = "data"
PATH = "/srv/data"
STEP_S = 180
TEST_S = 900

WRITER = f"""
import os
descriptor = os.open("{PATH}/count", os.O_CREAT | os.O_WRONLY, 0o600)
count = 0
while True:
    count += 1
    os.pwrite(descriptor, b"%020d" % count, 0)
    os.fsync(descriptor)
"""
COUNT = f"cat {PATH}/count"
SESSIONS = "cd /sys/class/iscsi_session && for name in *; do echo $name $(cat $name/state); done"
ACL = "cat /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/*/auth/password*"
NODE = "cat $(find /etc/iscsi/nodes /var/lib/iscsi/nodes -type f 2>/dev/null)"
DIGEST = "sha256sum | cut -d' ' -f1"
OF_ACL = "/sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/*/auth/{password,password_mutual}"
OF_SESSION = "/sys/class/iscsi_session/*/{password,password_in}"


def ctl(machine: Machine, *words: str) -> GuestResult:
    """Run zfsiloctl on a machine."""
    return machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def digest(machine: Machine, command: str) -> str:
    """Return a digest of the output of a command, which must not be logged."""
    return hashlib.sha256(machine.sh(command).stdout.encode()).hexdigest()


def passwords(machine: Machine, files: str) -> str:
    """Return a digest of the passwords in files, one for each direction."""
    return digest(machine, f"bash -c 'cat {files}'")


def last_refresh(machine: Machine) -> str:
    """Return the id of the latest operation that refreshed secrets."""
    (*_older, newest) = json.loads(
        ctl(machine, "operation", "list", "--filter", 'kind="refresh-secrets"', "--json").stdout
    )["operations"]
    name: str = newest["name"].removeprefix("operations/")
    return name


def wait_for_new_secrets(take: Machine, node: str) -> None:
    """Wait until the digest of the node record has changed and the operation has ended."""
    take.sh(f"until [ {node} != $({NODE} | {DIGEST}) ]; do sleep 0.5; done", timeout_s=STEP_S)
    ctl(take, "operation", "wait", last_refresh(take))


def assert_writing(take: Machine) -> None:
    """Wait until the writer has written two more numbers."""
    before = int(take.sh(COUNT).stdout)
    more = f"until [ $(sed 's/^0*//' {PATH}/count) -gt {before + 1} ]; do sleep 0.2; done"
    take.sh(more, timeout_s=STEP_S)


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestRotation:
    """A volume in use gets new secrets."""

    def test_the_session_continues(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        take.put("/root/writer.py", WRITER.encode(), 0o600)
        take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
        take.sh(f"until [ -s {PATH}/count ]; do sleep 0.1; done", timeout_s=STEP_S)
        session, node, acl = take.sh(SESSIONS).stdout, digest(take, NODE), digest(give, ACL)

        output = ctl(give, "rotate-secrets", NAME).stdout
        assert output == f"ask take to use new secrets for {NAME} within a minute: done\n"
        wait_for_new_secrets(take, node)

        assert_writing(take)
        assert take.sh(SESSIONS).stdout == session
        assert digest(give, ACL) != acl
        assert passwords(take, OF_SESSION) == passwords(give, OF_ACL)

    def test_a_broken_connection_is_restored(self, pair: Pair) -> None:
        take = pair.take
        session = take.sh(SESSIONS).stdout
        take.link(up=False)
        take.sh(f"until {SESSIONS} | grep -q FAILED; do sleep 0.5; done", timeout_s=STEP_S)
        take.link(up=True)
        take.sh(f"until {SESSIONS} | grep -q LOGGED_IN; do sleep 0.5; done", timeout_s=STEP_S)
        assert_writing(take)
        assert take.sh(SESSIONS).stdout == session
        assert "I/O error" not in take.sh("dmesg").stdout

    def test_a_session_gets_the_secrets_of_a_forced_rotation(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        node = digest(take, NODE)
        ctl(give, "rotate-secrets", NAME, "--force")
        assert_writing(take)
        wait_for_new_secrets(take, node)
        assert passwords(take, OF_SESSION) == passwords(give, OF_ACL)
        assert_writing(take)

    def test_the_next_login_uses_the_new_secrets(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop writer")
        node = digest(take, NODE)
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "rotate-secrets", NAME)
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        assert digest(take, NODE) != node
        assert int(take.sh(COUNT).stdout) > 0

    def test_nothing_is_left(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        assert leak_check.secrets_shown(pair) == []
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "volume", "unpublish", NAME, "take")
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []
