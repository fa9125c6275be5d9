"""The life of the package on two machines that have nothing else of ours.

Installed, a mounted volume by what the README says, upgraded under load, purged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ALL
from tests.lab import package
from tests.lab.images.build import images
from tests.lab.pair import Pair, restore_pair
from tests.lab.power import PLACE, WRITER, Load
from tests.lab.snapshots import booted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.machine import Machine

PATH = "/srv/data"
IO_ERRORS = r"I/O error|EXT4-fs (error|warning)|conn error|recovery timed out|aborted journal"
FOREIGN_TARGET = "iqn.2024-01.lab.foreign:disk"
FOREIGN = {
    "give": f"""
zfs create -V 64M tank/foreign
modprobe iscsi_target_mod
mkdir -p /sys/kernel/config/target/iscsi/{FOREIGN_TARGET}/tpgt_1
""",
    "take": "mkdir /srv/foreign && mount -t tmpfs foreign /srv/foreign && touch /srv/foreign/file",
}
# dpkg's own notes of what was there once are not ours.
NO_SESSION = 21
OURS = """
find / /run/zfsilo -xdev -iname '*zfsilo*' -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
    2>/dev/null || true
getent group zfsilo || true
"""


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
        print("installed in {:.0f} and {:.0f} s".format(*pair.both(package.install)))
        for machine in (pair.give, pair.take):
            assert machine.run("systemctl", "is-active", "zfsilod.service").stdout == "active\n"

    def test_at_most_six_commands_to_a_mounted_volume(self, pair: Pair) -> None:
        assert typed(pair) <= 6
        assert pair.take.run("findmnt", "-no", "FSTYPE", PATH).stdout == "ext4\n"
        pair.take.sh(f"echo kept > {PATH}/file && sync")
        for machine in (pair.give, pair.take):
            assert "nothing needs attention" in machine.run("zfsiloctl", "status").stdout
            memory = machine.sh(f"grep VmRSS /proc/{main_pid(machine)}/status").stdout.split()
            print(f"{machine.name}: the daemon holds {int(memory[1]) / 1024:.1f} MiB")

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

    @pytest.mark.long
    def test_an_upgrade_under_load_is_not_noticed(self, pair: Pair) -> None:
        pair.take.put(PLACE, WRITER.read_bytes(), 0o600)
        load = Load(pair)
        load.write()
        session = pair.take.run("iscsiadm", "-m", "session").stdout
        for machine in (pair.give, pair.take):
            reached, daemon = load.last, main_pid(machine)
            seconds = package.install(machine, package.NEWER)
            load.look()
            print(f"{machine.name}: {load.last - reached} fsyncs in an upgrade of {seconds:.0f} s")
            assert load.last > reached
            assert main_pid(machine) != daemon, "the newer one runs"
            shown = machine.run("dpkg-query", "-W", "-f", "${Version}", "zfsilo").stdout
            assert shown == package.NEWER_VERSION
            assert "nothing needs attention" in machine.run("zfsiloctl", "status").stdout
        assert pair.take.run("iscsiadm", "-m", "session").stdout == session, "not even a new login"
        assert pair.take.run("systemctl", "is-active", "writer.service").stdout == "active\n"
        assert load.check() == ""
        for machine in (pair.give, pair.take):
            kernel = machine.run("journalctl", "-k", "-o", "cat").stdout
            assert not re.findall(IO_ERRORS, kernel)

    @pytest.mark.long
    def test_a_purge_takes_what_is_ours_and_nothing_else(self, pair: Pair) -> None:
        pair.both(lambda machine: machine.sh(FOREIGN[machine.name]))
        package.purge(pair.take)
        assert pair.take.run("findmnt", "-n", PATH, check=False).stdout == ""
        assert pair.take.run("iscsiadm", "-m", "session", check=False).rc == NO_SESSION
        assert pair.take.run("ls", "/srv/foreign").stdout == "file\n"
        package.purge(pair.give)
        # Ours may stay until a restart: who still uses it is not cut off, and dpkg says so.
        targets = pair.give.run("ls", "/sys/kernel/config/target/iscsi").stdout.split()
        assert FOREIGN_TARGET in targets
        zvols = pair.give.run("zfs", "list", "-H", "-o", "name", "-t", "volume").stdout.split()
        assert zvols == ["tank/foreign", "tank/zfsilo/data"], "data outlives the program"
        for machine in (pair.give, pair.take):
            assert machine.sh(OURS).stdout == ""


def main_pid(machine: Machine) -> str:
    """The process of a machine's daemon."""
    return machine.run("systemctl", "show", "-P", "MainPID", "zfsilod.service").stdout.strip()
