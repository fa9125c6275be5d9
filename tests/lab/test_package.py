"""The Debian package on two machines without zfsilo: install, quick start, upgrade, purge.

The volume is attached by the commands of the README and stays mounted during the upgrade.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.blocks import ALL
from tests.lab import zfsilo_package
from tests.lab.images.build import images
from tests.lab.pair import Pair, restore_pair
from tests.lab.power_cuts import WRITER, WRITER_PATH, Load
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
NO_SESSION = 21  # exit code of iscsiadm(8): no objects found
# Without dpkg's records and logs of removed packages.
ZFSILO_FILES = """
find / /run/zfsilo -xdev -iname '*zfsilo*' -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
    2>/dev/null || true
getent group zfsilo || true
"""


@pytest.fixture(scope="class")
def pair() -> Iterator[Pair]:
    """Two machines with a pool on give, and the package on a disk."""
    with restore_pair(booted(), code=zfsilo_package.disk(images().buildroot)) as restored:
        yield restored


def run_quick_start(pair: Pair) -> int:
    """Run the commands for two hosts in the README, and return their number."""
    (block,) = [block for block in ALL if block.state == "hosts" and block.page.name == "README.md"]
    lines = [line for line in block.text.splitlines() if line]
    for line in lines:
        host, _prompt, command = line.partition("# ")
        if command.startswith("scp"):
            pair.take.put("/root/take.join", pair.give.get("/root/take.join"), 0o600)
            continue
        # The name of the server and a size that fits in its pool.
        command = command.replace("give.example", "give").replace("100G", "1G")
        machine: Machine = getattr(pair, host)
        machine.sh(f"cd /root && {command}", timeout_s=300)
    return len(lines)


@pytest.mark.long
@pytest.mark.timeout(1500, func_only=True)
class TestPackage:
    """The steps from install to purge; each needs the one before."""

    def test_install(self, pair: Pair) -> None:
        print("installed in {:.0f} and {:.0f} s".format(*pair.both(zfsilo_package.install)))
        for machine in (pair.give, pair.take):
            assert machine.run("systemctl", "is-active", "zfsilod.service").stdout == "active\n"

    def test_at_most_six_commands_to_a_mounted_volume(self, pair: Pair) -> None:
        assert run_quick_start(pair) <= 6
        assert pair.take.run("findmnt", "-no", "FSTYPE", PATH).stdout == "ext4\n"
        pair.take.sh(f"echo kept > {PATH}/file && sync")
        for machine in (pair.give, pair.take):
            assert "nothing needs attention" in machine.run("zfsiloctl", "status").stdout
            memory = machine.sh(f"grep VmRSS /proc/{main_pid(machine)}/status").stdout.split()
            print(f"{machine.name}: the daemon holds {int(memory[1]) / 1024:.1f} MiB")

    def test_udev_does_not_probe_volumes(self, pair: Pair) -> None:
        zvol = pair.give.run("readlink", "-f", "/dev/zvol/tank/zfsilo/data").stdout.strip()
        disk = pair.take.run("findmnt", "-no", "SOURCE", PATH).stdout.split("[")[0].strip()
        for machine, device in ((pair.give, zvol), (pair.take, disk)):
            blkid = ("blkid", "-p", "-o", "value", "-s", "TYPE", device)
            assert machine.run(*blkid).stdout == "ext4\n"
            properties = machine.run("udevadm", "info", "--query=property", device).stdout
            assert "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1" in properties
            assert "ID_FS_" not in properties, "LVM, md and by-uuid links use it"

    def test_an_upgrade_interrupts_no_io(self, pair: Pair) -> None:
        pair.take.put(WRITER_PATH, WRITER.read_bytes(), 0o600)
        load = Load(pair)
        load.write()
        session = pair.take.run("iscsiadm", "-m", "session").stdout
        for machine in (pair.give, pair.take):
            before, daemon = load.last, main_pid(machine)
            seconds = zfsilo_package.install(machine, zfsilo_package.NEWER)
            load.read_console()
            print(f"{machine.name}: {load.last - before} fsyncs in an upgrade of {seconds:.0f} s")
            assert load.last > before
            assert main_pid(machine) != daemon, "the old daemon still runs"
            shown = machine.run("dpkg-query", "-W", "-f", "${Version}", "zfsilo").stdout
            assert shown == zfsilo_package.NEWER_VERSION
            assert "nothing needs attention" in machine.run("zfsiloctl", "status").stdout
        assert pair.take.run("iscsiadm", "-m", "session").stdout == session, "there was a new login"
        assert pair.take.run("systemctl", "is-active", "writer.service").stdout == "active\n"
        assert load.check() == ""
        for machine in (pair.give, pair.take):
            kernel = machine.run("journalctl", "-k", "-o", "cat").stdout
            assert not re.findall(IO_ERRORS, kernel)

    def test_a_purge_removes_only_zfsilo(self, pair: Pair) -> None:
        pair.both(lambda machine: machine.sh(FOREIGN[machine.name]))
        zfsilo_package.purge(pair.take)
        assert pair.take.run("findmnt", "-n", PATH, check=False).stdout == ""
        assert pair.take.run("iscsiadm", "-m", "session", check=False).rc == NO_SESSION
        assert pair.take.run("ls", "/srv/foreign").stdout == "file\n"
        zfsilo_package.purge(pair.give)
        # Targets of zfsilo may remain until a reboot, for their clients; prerm prints a warning.
        targets = pair.give.run("ls", "/sys/kernel/config/target/iscsi").stdout.split()
        assert FOREIGN_TARGET in targets
        zvols = pair.give.run("zfs", "list", "-H", "-o", "name", "-t", "volume").stdout.split()
        assert zvols == ["tank/foreign", "tank/zfsilo/data"], "volumes must survive the purge"
        for machine in (pair.give, pair.take):
            assert machine.sh(ZFSILO_FILES).stdout == ""


def main_pid(machine: Machine) -> str:
    """Return the process id of a machine's daemon."""
    return machine.run("systemctl", "show", "-P", "MainPID", "zfsilod.service").stdout.strip()
