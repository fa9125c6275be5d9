"""New secrets under a live mount with writes, and at the next login."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.lab import oracle

if TYPE_CHECKING:
    from tests.lab.machine import Machine, Result
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
SESSIONS = "cd /sys/class/iscsi_session && for each in *; do echo $each $(cat $each/state); done"
ACL = "cat /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/*/auth/password*"
NODE = "cat $(find /etc/iscsi/nodes /var/lib/iscsi/nodes -type f 2>/dev/null)"
DIGEST = "sha256sum | cut -d' ' -f1"
OF_ACL = "/sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/*/auth/{password,password_mutual}"
OF_SESSION = "/sys/class/iscsi_session/*/{password,password_in}"


def ctl(machine: Machine, *words: str) -> Result:
    """Run zfsiloctl there."""
    return machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def digest(machine: Machine, command: str) -> str:
    """Return a digest of what a command prints, which is not for logs."""
    return hashlib.sha256(machine.sh(command).stdout.encode()).hexdigest()


def passwords(machine: Machine, files: str) -> str:
    """Return a digest of the passwords in these files, one for each direction."""
    return digest(machine, f"bash -c 'cat {files}'")


def last_operation(machine: Machine) -> str:
    """Return the operation by which new secrets were taken last."""
    (*_older, newest) = json.loads(
        ctl(machine, "operation", "list", "--filter", 'kind="refresh-secrets"', "--json").stdout
    )["operations"]
    name: str = newest["name"].removeprefix("operations/")
    return name


def writes(take: Machine) -> None:
    """Check that the writer goes on."""
    before = int(take.sh(COUNT).stdout)
    more = f"until [ $(sed 's/^0*//' {PATH}/count) -gt {before + 1} ]; do sleep 0.2; done"
    take.sh(more, timeout_s=STEP_S)


@pytest.mark.timeout(TEST_S, func_only=True)
class TestRotation:
    """A volume that is at work gets new secrets."""

    def test_the_session_goes_on(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        take.put("/root/writer.py", WRITER.encode(), 0o600)
        take.sh("systemd-run -q --unit=writer python3 /root/writer.py")
        take.sh(f"until [ -s {PATH}/count ]; do sleep 0.1; done", timeout_s=STEP_S)
        session, known, asked = take.sh(SESSIONS).stdout, digest(take, NODE), digest(give, ACL)

        told = ctl(give, "rotate-secrets", NAME).stdout
        assert told == f"ask take to use new secrets for {NAME} within a minute: done\n"
        take.sh(f"until [ {known} != $({NODE} | {DIGEST}) ]; do sleep 0.5; done", timeout_s=STEP_S)
        ctl(take, "operation", "wait", last_operation(take))

        writes(take)
        assert take.sh(SESSIONS).stdout == session
        assert digest(give, ACL) != asked
        assert passwords(take, OF_SESSION) == passwords(give, OF_ACL)

    def test_a_connection_that_breaks_comes_back(self, pair: Pair) -> None:
        take = pair.take
        session = take.sh(SESSIONS).stdout
        take.link(up=False)
        take.sh(f"until {SESSIONS} | grep -q FAILED; do sleep 0.5; done", timeout_s=STEP_S)
        take.link(up=True)
        take.sh(f"until {SESSIONS} | grep -q LOGGED_IN; do sleep 0.5; done", timeout_s=STEP_S)
        writes(take)
        assert take.sh(SESSIONS).stdout == session
        assert "I/O error" not in take.sh("dmesg").stdout

    def test_a_session_follows_secrets_that_were_forced(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        known = digest(take, NODE)
        ctl(give, "rotate-secrets", NAME, "--force")
        writes(take)
        take.sh(f"until [ {known} != $({NODE} | {DIGEST}) ]; do sleep 0.5; done", timeout_s=STEP_S)
        ctl(take, "operation", "wait", last_operation(take))
        assert passwords(take, OF_SESSION) == passwords(give, OF_ACL)
        writes(take)

    def test_it_logs_in_with_the_new_ones(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("systemctl stop writer")
        known = digest(take, NODE)
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "rotate-secrets", NAME)
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        assert digest(take, NODE) != known
        assert int(take.sh(COUNT).stdout) > 0

    def test_nothing_is_left(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        assert oracle.secrets_shown(pair) == []
        for words in (("unmount", NAME, PATH), ("unstage", NAME), ("disconnect", NAME)):
            ctl(take, "volume", *words)
        ctl(give, "volume", "unpublish", NAME, "take")
        ctl(give, "volume", "delete", NAME, "--yes")
        assert oracle.leaks(pair) == []
