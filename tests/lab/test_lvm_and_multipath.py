"""LVM ignores volumes of zfsilo by its udev rules; multipath makes no map of them by itself.

Udev events activate no volume group inside a volume, neither on the server nor on the client, but
they do on another disk. multipath skips zvols, and a disk of a server with one portal; with several
portals: test_iscsi_paths.py. Not covered: LVM commands read every disk themselves, so `pvs` on a
server lists those inside volumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import debian_tools
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
pvcreate -q $device && vgcreate -q other $device && lvcreate -q -n lv -l 100%FREE other
vgchange -q -an other
"""
INSIDE = """
pvcreate -q "$1" && vgcreate -q inside "$1" && lvcreate -q -n lv -l 100%FREE inside
vgchange -q -an inside
"""
# As after a boot: without the physical volumes that udev has registered.
EVENTS = """
rm -f /run/lvm/*_online/*
udevadm trigger --settle --action=add "$1"
udevadm trigger --settle --action=change $(losetup -nO NAME -j /root/disk)
until test -e /dev/mapper/other-lv; do sleep 0.2; done
ls /dev/mapper
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two machines with zfsilo, lvm2 and multipath-tools."""
    tools = debian_tools.disk(images().buildroot, "lvm2", "multipath-tools")
    with restore_pair(ready(), code=tools) as restored:
        restored.both(debian_tools.install)
        yield restored


@pytest.fixture(scope="module")
def devices(pair: Pair) -> dict[str, str]:
    """The device of a raw volume on give and on take, with a volume group inside."""
    pair.give.run("zfsiloctl", "volume", "create", "raw", "256M", "--block", "--host", "take")
    pair.take.run("zfsiloctl", "volume", "connect", "raw", "--server", "give", timeout_s=STEP_S)
    disk = pair.take.sh("basename $(echo /sys/class/iscsi_session/*/device/target*/*/block/*)")
    paths = {
        "give": pair.give.run("readlink", "-f", "/dev/zvol/tank/zfsilo/raw").stdout.strip(),
        "take": f"/dev/{disk.stdout.strip()}",
    }
    pair.take.run("sh", "-euc", INSIDE, "sh", paths["take"], timeout_s=STEP_S)
    return paths


@pytest.mark.long
@pytest.mark.timeout(900, func_only=True)
def test_lvm_activates_nothing_inside_volumes(pair: Pair, devices: dict[str, str]) -> None:
    def activated(machine: Machine) -> list[str]:
        machine.sh(CONTROL, timeout_s=STEP_S)
        read = f"dd if={devices[machine.name]} bs=512 count=4 status=none"
        machine.sh(f"{read} | grep -aq LABELONE")  # the LVM label is on the device
        done = machine.run("sh", "-euc", EVENTS, "sh", devices[machine.name], timeout_s=STEP_S)
        return done.stdout.split()

    for mapped in pair.both(activated):
        assert mapped == ["control", "other-lv"]


@pytest.mark.long
@pytest.mark.timeout(900, func_only=True)
def test_multipath_makes_no_map_by_itself(pair: Pair, devices: dict[str, str]) -> None:
    messages = {}
    for machine in (pair.give, pair.take):
        machine.run("modprobe", "dm_multipath")
        done = machine.run("multipath", "-v3", "-d", timeout_s=STEP_S, check=False)
        name = devices[machine.name].removeprefix("/dev/")
        messages[machine.name] = [
            line for line in (done.stdout + done.stderr).splitlines() if name in line
        ]
        valid = machine.run("multipath", "-c", f"/dev/{name}", check=False, timeout_s=STEP_S)
        assert valid.rc == 1, f"{machine.name}: {valid.stdout}"
    assert any("device node name blacklisted" in line for line in messages["give"]), messages
    assert any("not in wwids file" in line for line in messages["take"]), messages
