"""Automatic recovery: the export after a power cut of give, the mount after a reboot of take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import leak_check

if TYPE_CHECKING:
    from tests.lab.machine import Machine
    from tests.lab.pair import Pair

NAME = "data"
PATH = "/srv/data"
UNIT = f"zfsilo-volume@{NAME}.service"
CONFIG_PATH = f"/etc/zfsilo/volumes.d/{NAME}.toml"
ATTACH_CONFIG = f"""\
server = "give"
mount_path = "{PATH}"
fs_type = "ext4"
"""
STEP_S = 180
RECOVERY_S = 240
TEST_S = 1200

# Loops without a deadline: the call has one.
EXPORTED = """
until grep -qx 1 /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/enable 2>/dev/null; do sleep 0.2; done
until ls -d /sys/kernel/config/target/iscsi/iqn.*/tpgt_1/acls/*take*/lun_0/lun_0 >/dev/null 2>&1
do sleep 0.2; done
"""
LOGGED_IN = "until grep -qx LOGGED_IN /sys/class/iscsi_session/*/state; do sleep 0.2; done"
WRITE = f"dd if=/dev/urandom of={PATH}/blob bs=1M count=8 conv=fsync status=none; sync {PATH}"
SUM = f"echo 3 > /proc/sys/vm/drop_caches; sha256sum {PATH}/blob"
WRITE_MORE = f"echo more > {PATH}/more; sync {PATH}/more; rm {PATH}/more"


def ctl(machine: Machine, *words: str) -> None:
    """Run zfsiloctl on a machine."""
    machine.run("zfsiloctl", *words, timeout_s=STEP_S)


def write(take: Machine) -> str:
    """Write a file to the mounted volume with fsync and return its checksum."""
    take.sh(WRITE, timeout_s=STEP_S)
    return read(take)


def read(take: Machine) -> str:
    """Return the file's checksum, read from the disk."""
    return take.sh(SUM, timeout_s=STEP_S).stdout


def remove(give: Machine) -> None:
    """Unpublish the volume and delete it."""
    ctl(give, "volume", "unpublish", NAME, "--all")
    ctl(give, "volume", "delete", NAME, "--yes")


@pytest.mark.timeout(TEST_S, func_only=True)
class TestPowerCut:
    """The server loses power while a client uses the volume."""

    def test_the_export_is_restored_and_the_mount_continues(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        ctl(give, "volume", "publish", NAME, "take")
        ctl(take, "volume", "connect", NAME, "--server", "give", "--no-publish")
        ctl(take, "volume", "stage", NAME, "--fs-type", "ext4")
        ctl(take, "volume", "mount", NAME, PATH)
        written = write(take)

        print(f"give was up after {give.power_cut():.1f} s")

        waited = give.sh(EXPORTED, timeout_s=RECOVERY_S)
        print(f"the export was restored after {waited.seconds:.1f} s more")
        waited = take.sh(LOGGED_IN, timeout_s=RECOVERY_S)
        print(f"take was logged in after {waited.seconds:.1f} s more")
        assert read(take) == written
        take.sh(WRITE_MORE, timeout_s=STEP_S)

        ctl(take, "volume", "unmount", NAME, PATH)
        ctl(take, "volume", "unstage", NAME)
        ctl(take, "volume", "disconnect", NAME)
        remove(give)
        assert leak_check.leaks(pair) == []


@pytest.mark.long
@pytest.mark.timeout(TEST_S, func_only=True)
class TestReboot:
    """The client reboots with a volume that is configured by a file and an enabled unit."""

    def test_an_enabled_volume_is_mounted_again(self, pair: Pair) -> None:
        give, take = pair.give, pair.take
        ctl(give, "volume", "create", NAME, "1G", "--host", "take")
        take.put(CONFIG_PATH, ATTACH_CONFIG.encode(), 0o644)
        take.run("systemctl", "enable", "--now", UNIT, timeout_s=STEP_S)
        written = write(take)

        print(f"take was up after {take.reboot():.1f} s")

        take.sh(f"until systemctl is-active -q {UNIT}; do sleep 0.2; done", timeout_s=RECOVERY_S)
        take.run("mountpoint", PATH)
        assert read(take) == written
        take.sh(WRITE_MORE, timeout_s=STEP_S)

        take.run("systemctl", "disable", "--now", UNIT, timeout_s=STEP_S)
        take.run("rm", CONFIG_PATH)
        remove(give)
        assert leak_check.leaks(pair) == []
