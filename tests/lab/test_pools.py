"""Pools that are not what they were: exported, suspended, of another store; vanished zvols."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check
from tests.lab.test_fencing import NAME, PATH, STEP_S, TEST_S, attach, ctl, refusal
from tests.lab.test_ownership import restart

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

LATER = "later"

EXPORT = "zpool export tank"
IMPORT = "zpool import -d /dev/disk/by-id tank; udevadm settle"
OTHER_OWNER = "zfs set zfsilo:owner=0123456789abcdef0123456789abcdef:7:other tank/zfsilo"
RENAME = f"zfs rename tank/zfsilo/{NAME} tank/zfsilo/aside; udevadm settle"
# As an administrator restores from a backup: the copy has another guid, and received marks.
RECEIVE = f"""
zfs snapshot tank/zfsilo/{NAME}@copy
zfs send -p tank/zfsilo/{NAME}@copy | zfs receive -u tank/zfsilo/copy
zfs destroy tank/zfsilo/{NAME}@copy
zfs destroy tank/zfsilo/{NAME}
zfs destroy tank/zfsilo/copy@copy
zfs rename tank/zfsilo/copy tank/zfsilo/{NAME}
udevadm settle
"""
# A pool of its own: its disk fails without being removed, which tank's could not survive.
VAULT = "/etc/zfsilo/zfsilod.toml.d/vault.toml"
MAKE_VAULT = """
modprobe dm-mod
truncate -s 2G /root/vault.img
loop=$(losetup -f --show /root/vault.img)
echo "0 $(blockdev --getsz $loop) linear $loop 0" | dmsetup create vault
udevadm settle
zpool create vault /dev/mapper/vault
zfs create vault/zfsilo
systemctl restart zfsilod.service
"""
TABLE = """
loop=$(losetup -nO NAME -j /root/vault.img)
size=$(blockdev --getsz $loop)
dmsetup suspend --noflush --nolockfs vault
echo "{table}" | dmsetup load vault
dmsetup resume vault
"""
FAIL = (
    TABLE.format(table="0 $size error")
    + """
zfs set zfsilo:probe=x vault >/dev/null 2>&1 &
until [ "$(zpool list -H -o health vault)" = SUSPENDED ]; do sleep 0.2; done
"""
)
HEAL = TABLE.format(table="0 $size linear $loop 0") + "zpool clear vault"
REMOVE_VAULT = """
zpool export vault
dmsetup remove vault
losetup -d $(losetup -nO NAME -j /root/vault.img)
rm /root/vault.img
"""


def status(machine: Machine) -> str:
    """Return what `zfsiloctl status` prints; it fails when something needs attention."""
    return machine.run("zfsiloctl", "status", timeout_s=STEP_S, check=False).stdout


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestPools:
    """Each state of a pool is named with its command, and nothing is changed meanwhile."""

    def test_an_exported_pool_is_not_an_empty_one(self, pair: Pair) -> None:
        give = pair.give
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        give.sh(EXPORT, timeout_s=STEP_S)
        try:
            refused = refusal(give, "volume", "create", LATER, "1G")
            assert "tank" in refused, refused
            assert NAME in ctl(give, "volume", "list").stdout
            assert "zpool import tank" in status(give)
            assert "tank" in refusal(give, "volume", "delete", NAME, "--yes")
        finally:
            give.sh(IMPORT, timeout_s=STEP_S)
        ctl(give, "volume", "publish", NAME, "take")

    def test_a_renamed_zvol_gets_its_name_back_under_a_mount(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        attach(take)
        take.sh(f"echo kept > {PATH}/kept; sync {PATH}/kept")
        give.sh(RENAME, timeout_s=STEP_S)
        assert "zfsiloctl adopt" in refusal(give, "volume", "sync", NAME)
        ctl(give, "adopt", "tank/zfsilo/aside", "--yes")
        ctl(give, "volume", "sync", NAME)
        take.sh("echo 3 > /proc/sys/vm/drop_caches")
        assert take.sh(f"cat {PATH}/kept", timeout_s=STEP_S).stdout == "kept\n"

    def test_a_copy_takes_the_place_of_a_lost_zvol_on_request(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(take, "volume", "disconnect", NAME, "--force")
        ctl(give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")
        give.sh(RECEIVE, timeout_s=STEP_S)
        assert "no local property zfsilo:uid" in refusal(give, "volume", "publish", NAME, "take")
        assert "--accept-copy" in refusal(give, "volume", "sync", NAME)
        ctl(give, "adopt", f"tank/zfsilo/{NAME}", "--accept-copy", "--yes")
        ctl(give, "volume", "publish", NAME, "take")
        attach(take)
        assert take.sh(f"cat {PATH}/kept", timeout_s=STEP_S).stdout == "kept\n"
        ctl(take, "volume", "disconnect", NAME, "--force")
        ctl(give, "volume", "unpublish", NAME, "--all", "--fence", "--grace", "0")

    def test_a_pool_of_another_store_is_taken_over_on_request(self, pair: Pair) -> None:
        give = pair.give
        give.sh(OTHER_OWNER)
        give.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)
        assert "another store (of host other)" in refusal(give, "volume", "delete", NAME, "--yes")
        assert "--take-over" in refusal(give, "adopt", "--all")
        ctl(give, "adopt", "--all", "--take-over", "--yes")
        ctl(give, "volume", "delete", NAME, "--yes")
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestSuspendedPool:
    """The only disk of a pool fails, and comes back."""

    def test_it_is_named_and_goes_on_after_zpool_clear(self, pair: Pair) -> None:
        give = pair.give
        give.put(VAULT, b'[server]\nroot = "vault/zfsilo"\n', 0o644)
        give.sh(MAKE_VAULT, timeout_s=STEP_S)
        ctl(give, "volume", "create", NAME, "256M", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take")

        give.sh(FAIL, timeout_s=STEP_S)

        shown = status(give)
        assert "1 problem to look at" in shown, shown
        assert "zpool clear vault" in shown, shown
        for words in (("create", LATER, "256M"), ("sync", NAME), ("delete", NAME, "--yes")):
            assert "zpool clear vault" in refusal(give, "volume", *words)
        give.sh("systemctl restart zfsilod.service", timeout_s=STEP_S)
        assert "zpool clear vault" in status(give)

        give.sh(HEAL, timeout_s=STEP_S)

        ctl(give, "volume", "sync", NAME)
        assert "nothing needs attention" in status(give)
        ctl(give, "volume", "create", LATER, "256M")
        ctl(give, "volume", "unpublish", NAME, "--all")
        for name in (NAME, LATER):
            ctl(give, "volume", "delete", name, "--yes")
        give.run("rm", VAULT)
        restart(give)
        give.sh(REMOVE_VAULT, timeout_s=STEP_S)
        assert leak_check.leaks(pair) == []
