"""New secrets under a live mount with writes, and at the next login."""

from __future__ import annotations

import hashlib
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


def ctl(machine: Machine, *words: str) -> Result:
    """Run zfsiloctl there."""
    return machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def digest(machine: Machine, command: str) -> str:
    """Return a digest of what a command prints, which is not for logs."""
    return hashlib.sha256(machine.sh(command).stdout.encode()).hexdigest()


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

        refused = give.run("zfsiloctl", "rotate-secrets", NAME, timeout_s=STEP_S, check=False)
        assert "still logged in" in refused.stderr

        ctl(give, "rotate-secrets", NAME, "--force")

        writes(take)
        assert take.sh(SESSIONS).stdout == session
        assert digest(give, ACL) != asked
        assert digest(take, NODE) == known

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
