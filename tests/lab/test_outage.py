"""Outages are waited out, failed filesystems are mounted again, what vanishes is noticed.

A command says done only where it is so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import LOSE_STORE, refusal
from tests.lab.test_recovery import (
    ATTACH_CONFIG,
    CONFIG_PATH,
    LOGGED_IN,
    NAME,
    PATH,
    RECOVERY_S,
    STEP_S,
    UNIT,
    WRITE_MORE,
    ctl,
    read,
    remove,
    write,
)

if TYPE_CHECKING:
    from tests.lab.pair import Pair

OUTAGE_S = 150  # longer than the 120 s that open-iscsi has by default
LOST = "until grep -qxE 'FAILED|FREE' /sys/class/iscsi_session/*/state; do sleep 0.2; done"
SAID = f"until journalctl -o cat ZFSILO_VOLUME={NAME} | grep -q '%s'; do sleep 0.2; done"
WRITABLE = f"until touch {PATH}/probe && sync {PATH}/probe; do sleep 0.5; done 2>/dev/null"
SHUT_DOWN = (
    f"echo 1 > /sys/fs/ext4/$(basename $(findmnt -no SOURCE {PATH} | tail -1))/trigger_fs_error"
)
FOUND_STORE = """
systemctl stop zfsilod.socket
rm -r /var/lib/zfsilo/store
mv /root/lost /var/lib/zfsilo/store
systemctl start zfsilod.socket zfsilod.service
"""

# iscsid reads its settings when it starts; sessions continue.
SAFE_LOGOUT = (
    "echo 'iscsid.safe_logout = Yes' >> /etc/iscsi/iscsid.conf; systemctl restart iscsid.service"
)
UNTIL_REFUSED = "until iscsiadm -m session -u; [ $? = 28 ]; do sleep 0.5; done"


@pytest.mark.long
@pytest.mark.timeout(1800, func_only=True)
class TestOutage:
    """A volume of an enabled unit, through everything that takes it away; each needs the first."""

    def test_an_outage_longer_than_open_iscsi_waits_costs_nothing(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        take.put(CONFIG_PATH, ATTACH_CONFIG.encode(), 0o644)
        take.run("systemctl", "enable", "--now", UNIT, timeout_s=STEP_S)
        assert take.sh("cat /sys/class/iscsi_session/*/recovery_tmo").stdout == "off\n"
        written = write(take)
        give.link(up=False)
        take.sh(LOST, timeout_s=STEP_S)
        take.sh(SAID % "is lost", timeout_s=STEP_S)
        time.sleep(OUTAGE_S)
        give.link(up=True)
        take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        take.sh(SAID % "is back", timeout_s=STEP_S)
        assert read(take) == written
        take.sh(WRITE_MORE, timeout_s=STEP_S)

    def test_a_failed_filesystem_is_mounted_again(self, pair: Pair) -> None:
        take = pair.take
        take.sh(SHUT_DOWN)
        take.sh(SAID % "recorded errors", timeout_s=STEP_S)
        take.sh(SAID % "works again", timeout_s=STEP_S)
        take.sh(WRITABLE, timeout_s=STEP_S)

    def test_a_mount_that_vanishes_is_back_at_once(self, pair: Pair) -> None:
        take = pair.take
        take.run("umount", PATH)
        take.sh(f"until mountpoint -q {PATH}; do sleep 0.2; done", timeout_s=STEP_S)

    def test_a_busy_volume_is_not_detached(self, pair: Pair) -> None:
        take = pair.take
        take.sh(f"systemd-run -q --unit=holder --working-directory={PATH} sleep infinity")
        assert "in use" in refusal(take, "volume", "detach", NAME)
        take.run("mountpoint", PATH)
        take.run("systemctl", "is-active", UNIT)
        take.run("test", "-e", CONFIG_PATH)
        take.run("systemctl", "stop", "holder")

    def test_a_dry_run_adopts_nothing(self, pair: Pair) -> None:
        give = pair.give
        give.sh(LOSE_STORE, timeout_s=STEP_S)
        shown = give.run("zfsiloctl", "status", timeout_s=STEP_S, check=False).stdout
        assert "zfsiloctl adopt --all" in shown
        dry = give.run("zfsiloctl", "adopt", "--all", "--dry-run", timeout_s=STEP_S).stdout
        assert f"volumes/{NAME}: would be adopted" in dry
        assert NAME not in give.run("zfsiloctl", "volume", "list", timeout_s=STEP_S).stdout
        give.sh(FOUND_STORE, timeout_s=STEP_S)
        ctl(give, "volume", "sync", NAME)

    def test_a_forced_way_down_works_with_safe_logout(self, pair: Pair) -> None:
        """Of a live session, whose disk is mounted; the next test does it with a lost one."""
        take = pair.take
        take.sh(SAFE_LOGOUT)
        take.sh(UNTIL_REFUSED, timeout_s=STEP_S)
        take.run("zfsiloctl", "volume", "disconnect", NAME, "--force", timeout_s=STEP_S)
        take.run("systemctl", "restart", UNIT, timeout_s=STEP_S)
        take.sh(WRITABLE, timeout_s=STEP_S)

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_lost_session_does_not_hang_a_forced_way_down(
        self, pair: Pair, *, restarted: bool
    ) -> None:
        """An iscsid that was restarted meanwhile refuses a logout until it has reconnected."""
        give, take = pair.give, pair.take
        give.link(up=False)
        take.sh(LOST, timeout_s=STEP_S)
        if restarted:
            take.run("systemctl", "restart", "iscsid.service", timeout_s=STEP_S)
        done = take.run("zfsiloctl", "volume", "disconnect", NAME, "--force", timeout_s=STEP_S)
        print(f"disconnected in {done.seconds:.1f} s")
        assert take.sh("ls /sys/class/iscsi_session").stdout == ""
        give.link(up=True)
        take.run("systemctl", "restart", UNIT, timeout_s=STEP_S)
        take.sh(WRITABLE, timeout_s=STEP_S)

    def test_it_goes_and_leaves_nothing(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        take.sh("sed -i '/^iscsid.safe_logout/d' /etc/iscsi/iscsid.conf")
        take.run("systemctl", "disable", "--now", UNIT, timeout_s=STEP_S)
        take.run("rm", CONFIG_PATH)
        ctl(give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        remove(give)
        assert leak_check.leaks(pair) == []
