"""LVM and multipath, the real ones, keep off what is zfsilo's by the configuration that we ship.

What is shown: udev's events activate no volume group inside a volume, neither on the storage host
nor on the consumer, but do so on a disk that is nobody's; multipath passes our devices over, for
the lines that we ship. What is not: LVM asked by hand reads every disk itself, so `pvs` on a
storage host shows what is inside volumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import debian
from tests.lab.images.build import images
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

STEP_S = 180
CONTROL = """
truncate -s 64M /root/disk
device=$(losetup -f --show /root/disk)
pvcreate -q $device && vgcreate -q nobodys $device && lvcreate -q -n lv -l 100%FREE nobodys
vgchange -q -an nobodys
"""
INSIDE = """
pvcreate -q "$1" && vgcreate -q inside "$1" && lvcreate -q -n lv -l 100%FREE inside
vgchange -q -an inside
"""
# What udev has seen before counts no more: as after a boot.
EVENTS = """
rm -f /run/lvm/*_online/*
udevadm trigger --settle --action=add "$1"
udevadm trigger --settle --action=change $(losetup -nO NAME -j /root/disk)
until test -e /dev/mapper/nobodys-lv; do sleep 0.2; done
ls /dev/mapper
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two machines with lvm2 and multipath-tools beside zfsilo."""
    tools = debian.disk(images().buildroot, "lvm2", "multipath-tools")
    with restore_pair(ready(), code=tools) as restored:
        restored.both(debian.install)
        yield restored


@pytest.fixture(scope="module")
def devices(pair: Pair) -> dict[str, str]:
    """The device of a raw volume on give and on take, with a volume group inside of it."""
    pair.give.run("zfsiloctl", "volume", "create", "raw", "256M", "--block", "--host", "take")
    pair.take.run("zfsiloctl", "volume", "connect", "raw", "--server", "give", timeout_s=STEP_S)
    disk = pair.take.sh("basename $(echo /sys/class/iscsi_session/*/device/target*/*/block/*)")
    found = {
        "give": pair.give.run("readlink", "-f", "/dev/zvol/tank/zfsilo/raw").stdout.strip(),
        "take": f"/dev/{disk.stdout.strip()}",
    }
    pair.take.run("sh", "-euc", INSIDE, "sh", found["take"], timeout_s=STEP_S)
    return found


@pytest.mark.timeout(900, func_only=True)
def test_lvm_activates_nothing_inside_of_volumes(pair: Pair, devices: dict[str, str]) -> None:
    def activated(machine: Machine) -> list[str]:
        machine.sh(CONTROL, timeout_s=STEP_S)
        read = f"dd if={devices[machine.name]} bs=512 count=4 status=none"
        machine.sh(f"{read} | grep -aq LABELONE")  # LVM's mark is on the device itself
        done = machine.run("sh", "-euc", EVENTS, "sh", devices[machine.name], timeout_s=STEP_S)
        return done.stdout.split()

    for found in pair.both(activated):
        assert found == ["control", "nobodys-lv"]


@pytest.mark.timeout(900, func_only=True)
def test_multipath_passes_our_devices_over(pair: Pair, devices: dict[str, str]) -> None:
    said = {}
    for machine in (pair.give, pair.take):
        machine.run("modprobe", "dm_multipath")
        done = machine.run("multipath", "-v3", "-d", timeout_s=STEP_S, check=False)
        name = devices[machine.name].removeprefix("/dev/")
        said[machine.name] = [
            line for line in (done.stdout + done.stderr).splitlines() if f"{name}:" in line
        ]
        valid = machine.run("multipath", "-c", f"/dev/{name}", check=False, timeout_s=STEP_S)
        assert valid.rc == 1, f"{machine.name}: {valid.stdout}"
    assert any("device node name blacklisted" in line for line in said["give"]), said
    assert any("vendor/product blacklisted" in line for line in said["take"]), said
