"""Snapshot policies on real ZFS and systemd: calendar, timer, marks, and what uses a snapshot."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.install import PACKAGES

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

TIMER = "zfsilo-snapshot@often.timer"
DEADLINE_S = 180
# Prints what uses the snapshot of a volume, as the guard of a deletion asks.
USERS = f"""
import sys
sys.path.insert(0, {PACKAGES!r})
from zfsilod.host.real import real_host
from zfsilod.model.host_facts import SnapshotRef
dataset, uid, set_uid = sys.argv[1:]
ref = SnapshotRef(dataset=dataset, uid=uid)
print(*real_host(None, None).snapshots.users((ref,), set_uid), sep="\\n")
"""


def ctl(give: Machine, *words: str) -> str:
    return give.run("zfsiloctl", *words, timeout_s=DEADLINE_S).stdout


def names(give: Machine) -> list[str]:
    return ctl(give, "snapshot", "list", "-q").split()


@pytest.mark.long
class TestSchedules:
    def test_a_timer_takes_snapshots_that_users_keep(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "create", "data", "64M", "-l", "app=db")
        give.run("udevadm", "settle")
        give.sh("dd if=/dev/urandom of=/dev/zvol/tank/zfsilo/data bs=1M count=8 status=none")
        refused = give.run(
            *("zfsiloctl", "schedule", "create", "often", "--keep", "7x1d", "--calendar", "often"),
            check=False,
            timeout_s=DEADLINE_S,
        )
        assert "systemd cannot parse it" in refused.stderr
        create = ("schedule", "create", "often", "--keep", "7x1d", "-l", "app=db")
        ctl(give, *create, "--calendar", "*:*:0/20")
        end = time.monotonic() + DEADLINE_S
        while not names(give):
            assert time.monotonic() < end, "the timer did not run the policy"
            time.sleep(1)
        assert TIMER in give.run("systemctl", "list-timers", "--all").stdout
        ctl(give, "schedule", "delete", "often")
        name = names(give)[0]
        snapshot = json.loads(ctl(give, "snapshot", "show", name, "--json"))
        assert snapshot["policy"] == "snapshotPolicies/often"
        listed = give.sh("zfs list -H -o name,zfsilo:policy,zfsilo:cut -t snapshot -r tank")
        rows = {row[0]: row for row in map(str.split, listed.stdout.splitlines())}
        full = sorted(rows)[0]
        assert rows[full][1] == "often"
        uid, set_uid = snapshot["volume_uid"], rows[full][2]

        def users() -> list[str]:
            argv = ("python3", "-I", "-c", USERS, full.partition("@")[0], uid, set_uid)
            return give.run(*argv, timeout_s=DEADLINE_S).stdout.split("\n")[:-1]

        assert users() == [""]
        give.sh(f"zfs hold keep {full}")
        assert users() == ["1 holds (zfs holds)"]
        give.sh(f"zfs release keep {full} && zfs clone {full} tank/copy")
        assert users() == ["tank/copy"]
        give.sh("zfs destroy tank/copy")
        # A send that waits for its reader: a deletion is refused.
        sent = give.sh(
            f"mkfifo /run/sent; (zfs send {full} > /run/sent) & exec 3< /run/sent; "
            f"head -c 1 <&3 > /dev/null; zfs destroy -d {full} && echo gone || echo kept; "
            "cat <&3 > /dev/null; wait; rm /run/sent"
        )
        assert "dataset is busy" in sent.stderr
        assert sent.stdout == "kept\n"
        for taken in names(give):
            ctl(give, "snapshot", "delete", taken)
        ctl(give, "volume", "delete", "data", "--yes")
        assert leak_check.leaks(pair) == []
