"""A restored store, a pool that was rewound to a checkpoint, and a machine that was moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import ctl, refusal, sessions

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

NAME, LATER = "data", "later"
PATH = "/srv/data"
STEP_S = 180
TEST_S = 1500

STOP = "systemctl stop zfsilod.socket zfsilod-tcp.socket zfsilod.service"
START = "systemctl start zfsilod.socket zfsilod-tcp.socket zfsilod.service"
OWNER = "zfs get -H -o value zfsilo:owner tank/zfsilo"
BACK_UP = f"{STOP}; cp -a /var/lib/zfsilo/store /root/backup; {START}"
RESTORE = f"{STOP}; rm -r /var/lib/zfsilo/store; mv /root/backup /var/lib/zfsilo/store; {START}"
WRITE = f"echo written > /dev/zvol/tank/zfsilo/{LATER}; sync"
READ = f"head -c 8 /dev/zvol/tank/zfsilo/{LATER}"
# The daemon holds no zvol open; without an export the pool can be exported.
REWIND = f"""
{STOP}
zpool export tank
zpool import -d /dev/disk/by-id --rewind-to-checkpoint tank
udevadm settle
{START}
"""
MACHINE_ID = "/etc/machine-id"
OTHER_ID = "0123456789abcdef0123456789abcdef\n"


def restart(machine: Machine) -> None:
    """Start the daemon of give once more, and wait until it has counted the generation up."""
    before = machine.sh(OWNER).stdout.strip()
    machine.sh(f"{STOP}; {START}", timeout_s=STEP_S)
    machine.sh(f'until [ "$({OWNER})" != {before} ]; do sleep 0.2; done', timeout_s=STEP_S)


def become(machine: Machine, machine_id: str) -> None:
    """Give a machine another id, as a copy of its disk has on other hardware."""
    machine.put(MACHINE_ID, machine_id.encode(), 0o444)
    machine.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestOwnership:
    """The store does not belong to its pool, or to its machine: held, named, nothing changed."""

    def test_a_restored_store_destroys_nothing(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME)
        ctl(take, "volume", "mount", NAME, PATH)
        give.sh(BACK_UP, timeout_s=STEP_S)
        restart(give)
        ctl(give, "volume", "create", LATER, "1G")
        give.sh(WRITE, timeout_s=STEP_S)

        give.sh(RESTORE, timeout_s=STEP_S)

        for words in (("delete", NAME, "--yes"), ("unpublish", NAME, "take"), ("sync", "--all")):
            assert "restored from a backup" in refusal(give, "volume", *words)
        status = give.run("zfsiloctl", "status", timeout_s=STEP_S, check=False).stdout
        assert "zfsiloctl adopt --all" in status
        assert sessions(take) == ["LOGGED_IN"], "the session was interrupted"
        take.sh(f"echo more > {PATH}/more; sync {PATH}/more", timeout_s=STEP_S)

        assert f"volumes/{LATER}: adopted" in ctl(give, "adopt", "--all").stdout
        assert give.sh(READ).stdout == "written\n"
        ctl(give, "volume", "sync", NAME)
        assert sessions(take) == ["LOGGED_IN"]
        assert "destroy" not in give.sh("zpool history tank").stdout

    def test_a_machine_that_was_moved_goes_on_when_it_is_told(self, pair: Pair) -> None:
        take = pair.take
        own = take.sh(f"cat {MACHINE_ID}").stdout
        become(take, OTHER_ID)
        try:
            assert "machine moved" in refusal(take, "volume", "unmount", NAME, PATH)
            take.run("mountpoint", PATH)
            ctl(take, "machine", "moved", "--yes")
            ctl(take, "volume", "unmount", NAME, PATH)
        finally:
            become(take, own)
        ctl(take, "machine", "moved", "--yes")
        ctl(take, "volume", "unstage", NAME)
        ctl(take, "volume", "disconnect", NAME)

    def test_a_pool_that_was_rewound_is_held(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "unpublish", NAME, "--all")
        give.sh("zpool checkpoint tank", timeout_s=STEP_S)
        restart(give)

        give.sh(REWIND, timeout_s=STEP_S)

        assert "rolled back or replaced" in refusal(give, "volume", "publish", NAME, "take")
        ctl(give, "adopt", "--all")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(give, "volume", "unpublish", NAME, "--all")
        for name in (NAME, LATER):
            ctl(give, "volume", "delete", name, "--yes")
        assert leak_check.leaks(pair) == []
