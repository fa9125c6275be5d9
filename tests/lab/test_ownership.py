"""A restored store, a pool that was rewound to a checkpoint, and a machine that was moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import NAME, PATH, STEP_S, TEST_S, attach, ctl, refusal, sessions

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

LATER, MIDWAY = "later", "midway"

STOP = "systemctl stop zfsilod.socket"
START = "systemctl start zfsilod.socket zfsilod.service"
OWNER = "zfs get -H -o value zfsilo:owner tank/zfsilo"
BACK_UP = f"{STOP}; cp -a /var/lib/zfsilo/store /root/backup; {START}"
RESTORE = f"{STOP}; rm -r /var/lib/zfsilo/store; mv /root/backup /var/lib/zfsilo/store; {START}"
WRITE = "echo written > /dev/zvol/tank/zfsilo/{name}; sync"
READ = "head -c 8 /dev/zvol/tank/zfsilo/{name}"
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
# The store as it is in the middle of a creation: the worker is frozen while the copy is made.
UNIT = "$(systemctl list-units --plain --no-legend 'zfsilo-op-*.service' | cut -d' ' -f1)"
BACK_UP_MIDWAY = f"""
zfsiloctl volume create {MIDWAY} 1G --no-wait
until unit={UNIT}; [ -n "$unit" ] && group=$(systemctl show -P ControlGroup $unit) &&
      [ -n "$group" ] && echo 1 > /sys/fs/cgroup$group/cgroup.freeze
do sleep 0.02; done
{STOP}
cp -a /var/lib/zfsilo/store /root/backup
echo 0 > /sys/fs/cgroup$group/cgroup.freeze
{START}
until [ -b /dev/zvol/tank/zfsilo/{MIDWAY} ] && [ -z "{UNIT}" ]; do sleep 0.2; done
"""
EPOCH = f"zfs get -H -o value zfsilo:epoch tank/zfsilo/{NAME} | cut -d: -f1"
ACLS = "ls -d /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/* 2>/dev/null || true"
# A copy of a machine's disk has its state, but neither its session nor its mounts.
OWN_STORE = (
    "if [ -d /root/own ]; then rm -r /var/lib/zfsilo/store; mv /root/own /var/lib/zfsilo/store; fi"
)
START_AS_CLONE = f"""
{STOP}
umount {PATH}
umount /var/lib/zfsilo/staging/{NAME}
iscsiadm -m session -u
systemctl start zfsilod.socket zfsilod.service
"""


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
        attach(take)
        give.sh(BACK_UP, timeout_s=STEP_S)
        restart(give)
        ctl(give, "volume", "create", LATER, "1G")
        give.sh(WRITE.format(name=LATER), timeout_s=STEP_S)

        give.sh(RESTORE, timeout_s=STEP_S)

        for words in (("delete", NAME, "--yes"), ("unpublish", NAME, "take"), ("sync", "--all")):
            assert "restored from a backup" in refusal(give, "volume", *words)
        status = give.run("zfsiloctl", "status", timeout_s=STEP_S, check=False).stdout
        assert "zfsiloctl adopt --all" in status
        assert sessions(take) == ["LOGGED_IN"], "the session was interrupted"
        take.sh(f"echo more > {PATH}/more; sync {PATH}/more", timeout_s=STEP_S)

        assert f"volumes/{LATER}: adopted" in ctl(give, "adopt", "--all").stdout
        assert give.sh(READ.format(name=LATER)).stdout == "written\n"
        ctl(give, "volume", "sync", NAME)
        assert sessions(take) == ["LOGGED_IN"]
        assert "destroy" not in give.sh("zpool history tank").stdout

    def test_a_fenced_client_stays_out(self, pair: Pair) -> None:
        """The backup knows the publication; the zvol knows of the fence since."""
        give, take = pair.give, pair.take
        give.sh(BACK_UP, timeout_s=STEP_S)
        ctl(give, "volume", "unpublish", NAME, "take", "--fence", "--grace", "0")
        epoch = give.sh(EPOCH).stdout
        give.sh(RESTORE, timeout_s=STEP_S)
        refusal(give, "volume", "sync", NAME)
        assert give.sh(ACLS).stdout == ""
        ctl(give, "adopt", "--all")
        assert give.sh(ACLS).stdout == ""
        refused = refusal(take, "volume", "connect", NAME, "--server", "give")
        assert "withdrawn" in refused, refused
        assert int(give.sh(EPOCH).stdout) >= int(epoch)
        ctl(take, "volume", "disconnect", NAME, "--force")
        ctl(give, "volume", "publish", NAME, "take")
        assert int(give.sh(EPOCH).stdout) > int(epoch)
        attach(take)

    def test_a_creation_that_ended_since_is_not_rolled_back(self, pair: Pair) -> None:
        give = pair.give
        give.sh(BACK_UP_MIDWAY, timeout_s=STEP_S)
        restart(give)
        give.sh(WRITE.format(name=MIDWAY), timeout_s=STEP_S)
        give.sh(RESTORE, timeout_s=STEP_S)
        assert "restored from a backup" in refusal(give, "volume", "delete", NAME, "--yes")
        assert give.sh(READ.format(name=MIDWAY)).stdout == "written\n"
        ctl(give, "adopt", "--all")
        assert give.sh(READ.format(name=MIDWAY)).stdout == "written\n"
        assert "destroy" not in give.sh("zpool history tank").stdout

    def test_a_cloned_client_restores_and_reaches_nothing(self, pair: Pair) -> None:
        take = pair.take
        own = take.sh(f"cat {MACHINE_ID}").stdout
        take.put(MACHINE_ID, OTHER_ID.encode(), 0o444)
        try:
            take.sh(START_AS_CLONE, timeout_s=STEP_S)
            assert "zfsiloctl machine cloned" in refusal(take, "volume", "sync", NAME)
            assert sessions(take) == []
            take.sh(f"{STOP}; mv /var/lib/zfsilo/store /root/own; {START}", timeout_s=STEP_S)
            words = ("volume", "connect", NAME, "--server", "give")
            assert "another machine" in refusal(take, *words)
            assert sessions(take) == []
        finally:
            take.put(MACHINE_ID, own.encode(), 0o444)
            take.sh(f"{STOP}; {OWN_STORE}; {START}", timeout_s=STEP_S)
        attach(take)
        assert sessions(take) == ["LOGGED_IN"]
        take.run("mountpoint", PATH)

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
        for name in (NAME, LATER, MIDWAY):
            ctl(give, "volume", "delete", name, "--yes")
        assert leak_check.leaks(pair) == []
