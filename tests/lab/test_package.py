"""From two machines with the package and nothing else to a mounted volume, as the README says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ALL
from tests.lab import package
from tests.lab.images.build import images
from tests.lab.pair import Pair, restore_pair
from tests.lab.snapshots import booted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

PATH = "/srv/data"


@pytest.fixture(scope="class")
def pair() -> Iterator[Pair]:
    """Two machines with a pool on give, and the package on a disk."""
    with restore_pair(booted(), code=package.disk(images().buildroot)) as restored:
        yield restored


def typed(pair: Pair) -> int:
    """Type what the README says, and return how many commands it was."""
    (block,) = [each for each in ALL if each.state == "hosts"]
    lines = [line for line in block.text.splitlines() if line]
    for line in lines:
        host, _prompt, command = line.partition("# ")
        if command.startswith("scp"):
            pair.take.put("/root/take.join", pair.give.get("/root/take.join"), 0o600)
            continue
        # A name that the machines have, and a size that their pool has.
        command = command.replace("give.example", "give").replace("100G", "1G")
        machine: Machine = getattr(pair, host)
        machine.sh(f"cd /root && {command}", timeout_s=300)
    return len(lines)


@pytest.mark.timeout(1500, func_only=True)
class TestPackage:
    """The steps of one life; each needs the one before."""

    def test_install(self, pair: Pair) -> None:
        begun = time.monotonic()
        pair.both(package.install)
        print(f"installed on both machines in {time.monotonic() - begun:.0f} s")
        for machine in (pair.give, pair.take):
            assert machine.run("systemctl", "is-active", "zfsilod.service").stdout == "active\n"

    def test_at_most_six_commands_to_a_mounted_volume(self, pair: Pair) -> None:
        assert typed(pair) <= 6
        assert pair.take.run("findmnt", "-no", "FSTYPE", PATH).stdout == "ext4\n"
        pair.take.sh(f"echo kept > {PATH}/file && sync")
        for machine in (pair.give, pair.take):
            assert "all is well" in machine.run("zfsiloctl", "status").stdout

    def test_the_host_does_not_look_into_volumes(self, pair: Pair) -> None:
        zvol = pair.give.run("readlink", "-f", "/dev/zvol/tank/zfsilo/data").stdout.strip()
        disk = pair.take.run("findmnt", "-no", "SOURCE", PATH).stdout.split("[")[0].strip()
        for machine, device in ((pair.give, zvol), (pair.take, disk)):
            assert (
                machine.run("blkid", "-p", "-o", "value", "-s", "TYPE", device).stdout == "ext4\n"
            )
            known = machine.run("udevadm", "info", "--query=property", device).stdout
            assert "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1" in known
            assert "ID_FS_" not in known, "LVM, md and by-uuid would go by it"
