"""The Debian package under a real systemd: upgraded while it is asked all the time, then purged.

dpkg runs natively here; tests/lab/test_package.py does the same over real ZFS and iSCSI.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.package.chroot import base, reversioned
from tests.systemd.namespace import SystemdHost
from tests.systemd.test_zfsilo import CONFIG, DROP_IN

if TYPE_CHECKING:
    from collections.abc import Iterator

DIST = Path(__file__).parents[2] / "dist"
RELEASE = "bookworm"  # that of the machine that the tests run on
NEWER = "99.0"
DPKG_S = 240
# This machine may lack packages that every Debian has and nothing here needs, such as udev; and it
# may forbid that packages start anything.
DPKG = ("dpkg", "--force-depends", "--force-unsafe-io")
LIKE_DEBIAN = """
rm -f /usr/sbin/policy-rc.d
command -v udevadm >/dev/null || ln -s true /usr/bin/udevadm
"""
MODULES = "usr/lib/python3/dist-packages/systemd"
ASK = """
while test ! -e /run/enough; do
    zfsiloctl volume show data >/dev/null && echo answered || echo failed
done
"""
# Of systemd's own notes of units that ran, and of this test's files, the package knows nothing.
FIND = """
find / /run -xdev -iname '*zfsilo*' -not -path '/proc/*' -not -path '/run/systemd/*' \\
    -not -path '/root/*' -not -path '/tmp/*' -not -path '/var/log/*' 2>/dev/null || true
"""


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """A machine without anything of ours but packages that are not installed yet."""
    made = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    assert made, "make deb"
    newer = reversioned(made[-1], NEWER, tmp_path_factory.mktemp("newer"))
    machine = SystemdHost()
    with machine:
        machine.run("sh", "-euc", LIKE_DEBIAN)
        machine.copy_in(base(RELEASE) / MODULES, f"/{MODULES}")
        machine.copy_in(made[-1], "/root/first.deb")
        machine.copy_in(newer, "/root/newer.deb")
        yield machine


@pytest.mark.timeout(600, func_only=True)
def test_nobody_notices_an_upgrade_and_a_purge_leaves_nothing(sd: SystemdHost) -> None:
    before = found(sd)
    sd.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
    sd.write("/etc/zfsilo/zfsilod.toml", CONFIG)
    sd.run(*DPKG, "-i", "/root/first.deb", timeout_s=DPKG_S)
    sd.run("zfsiloctl", "volume", "create", "data", "1G", timeout_s=60)
    daemon = main_pid(sd)
    with sd.start("sh", "-c", ASK) as asking:
        sd.run(*DPKG, "-i", "/root/newer.deb", timeout_s=DPKG_S)
        sd.write("/run/enough", "")
        answers, complaints = asking.communicate(timeout=60)
    assert set(answers.split()) == {"answered"}, complaints
    assert main_pid(sd) not in ("0", daemon), "the newer one runs"
    sd.run("systemctl", "start", "zfsilo-renew.timer")
    sd.run("systemctl", "enable", "zfsilod-tcp.socket")
    sd.run("dpkg", "--purge", "zfsilo", timeout_s=DPKG_S)
    sd.run("rm", "-r", "/run/enough", "/etc/systemd/system/zfsilod.service.d")
    assert found(sd) - before == set()
    assert sd.run("getent", "group", "zfsilo", check=False).stdout == ""


def found(machine: SystemdHost) -> set[str]:
    """The paths that are called after us."""
    return set(machine.run("sh", "-c", FIND, timeout_s=60).stdout.split())


def main_pid(machine: SystemdHost) -> str:
    """The process of the daemon."""
    return machine.run("systemctl", "show", "-P", "MainPID", "zfsilod.service").stdout.strip()
