"""A persistent reservation of SCSI outlives a power cut of the server, and ends with the access."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_recovery import EXPORTED, LOGGED_IN, ctl

if TYPE_CHECKING:
    from tests.lab.machine import GuestResult, Machine
    from tests.lab.pair import Pair

NAME = "data"
STEP_S = 180
RECOVERY_S = 240
TEST_S = 1500
KEY = 0x5A11
# linux/pr.h: the kernel of a client registers with APTPL=1. 1: exclusive writes.
PERSISTENT_RESERVE = f"""
import fcntl, glob, os, struct, sys
REGISTER, RESERVE = ((1 << 30) | (size << 16) | (ord("p") << 8) | number
                     for size, number in ((24, 200), (16, 201)))
(path,) = glob.glob("/dev/sd?")  # the only one of take
descriptor = os.open(path, os.O_RDWR)

def call(number, form, *words):  # a conflict is a positive number, no error: PR_STS_ of linux/pr.h
    if answer := fcntl.ioctl(descriptor, number, bytearray(struct.pack(form, *words))):
        sys.exit(f"the disk answers {{answer:#x}}")

if "register" in sys.argv:
    call(REGISTER, "=QQII", 0, {KEY}, 0, 0)
call(RESERVE, "=QII", {KEY}, 1, 0)
"""
HELD = "cd /sys/kernel/config/target/core/iblock_0/*/pr; cat res_holder res_pr_type; "
HELD += "cat res_pr_registered_i_pts; cat res_aptpl_active"
SAVED = "ls /var/target/pr"


def reserve(take: Machine, *words: str, check: bool = True) -> GuestResult:
    """Reserve the disk of the volume, or do it again, which succeeds for the holder only."""
    return take.run("python3", "/root/reserve.py", *words, timeout_s=STEP_S, check=check)


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestReservations:
    """A client reserves its disk, as the members of a cluster do."""

    def test_a_reservation_survives_the_server(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take", "--block")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        take.put("/root/reserve.py", PERSISTENT_RESERVE.encode(), 0o600)
        assert reserve(take, check=False).rc != 0, "it is not registered yet"
        reserve(take, "register")
        before = give.sh(HELD).stdout
        assert "Write Exclusive" in before
        assert f"0x{KEY:016x}" in before
        assert "Activated" in before
        (saved,) = give.sh(SAVED).stdout.split()
        give.sh("sync")  # the kernel does not wait for the disk

        for _time in ("first", "second"):
            print(f"give was up after {give.power_cut():.1f} s")
            give.sh(EXPORTED, timeout_s=RECOVERY_S)
            take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
            after = give.sh(HELD).stdout
            assert "Write Exclusive" in after
            assert after.count(f"0x{KEY:016x}") == 1, after
            assert "Activated" in after
            reserve(take)
        assert give.sh(SAVED).stdout.split() == [saved]

        ctl(take, "volume", "disconnect", NAME)
        ctl(give, "volume", "unpublish", NAME, "take")
        assert give.sh(SAVED).stdout.split() == []
        ctl(give, "volume", "publish", NAME, "take")
        assert f"0x{KEY:016x}" not in give.sh(HELD).stdout
        ctl(give, "volume", "unpublish", NAME, "take")
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []

    def test_only_the_client_that_leaves_is_forgotten(self, pair: Pair) -> None:
        """The file is changed while the kernel has the disk of the other client."""
        give, take = pair.give, pair.take
        shared = ("--access-mode", "multi_node_multi_writer")
        ctl(give, "host", "add", "other", "--iqn", "iqn.2024-01.lab.other:host")
        ctl(give, "volume", "create", NAME, "1G", "--block", *shared)
        for host in ("take", "other"):
            ctl(give, "volume", "publish", NAME, host, *shared)
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        take.put("/root/reserve.py", PERSISTENT_RESERVE.encode(), 0o600)
        reserve(take, "register")
        (saved,) = give.sh(SAVED).stdout.split()
        give.sh(f"cd /var/target/pr; tr -d '\\0' < {saved} > one; cp one two")
        give.sh(
            "cd /var/target/pr; sed -i 's/REG_\\(START\\|END\\): 0/REG_\\1: 1/; s/res_holder=1/"
            "res_holder=0/; /res_type\\|res_scope\\|initiator_sid/d; "
            "s/initiator_node=.*/initiator_node=iqn.2024-01.lab.other:host/' two; "
            f"cat one two > {saved}; rm one two; sync"
        )
        print(f"give was up after {give.power_cut():.1f} s")
        give.sh(EXPORTED, timeout_s=RECOVERY_S)
        take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        assert give.sh(HELD).stdout.count(f"0x{KEY:016x}") == 2

        ctl(give, "volume", "unpublish", NAME, "other")

        assert give.sh(HELD).stdout.count(f"0x{KEY:016x}") == 1
        assert "lab.other" not in give.sh(f"cat /var/target/pr/{saved}").stdout
        reserve(take)
        print(f"give was up after {give.power_cut():.1f} s")
        give.sh(EXPORTED, timeout_s=RECOVERY_S)
        take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        assert give.sh(HELD).stdout.count(f"0x{KEY:016x}") == 1
        reserve(take)
        ctl(take, "volume", "disconnect", NAME)
        ctl(give, "volume", "unpublish", NAME, "take")
        assert give.sh(SAVED).stdout.split() == []
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []
