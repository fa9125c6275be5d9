"""The Debian package under a real systemd: upgraded while requests arrive, then purged.

dpkg runs natively here; tests/lab/test_package.py does the same on real ZFS and iSCSI.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.package.chroot import base, reversioned
from tests.systemd.namespace import SystemdHost
from tests.systemd.simulated import CONFIG, DROP_IN

if TYPE_CHECKING:
    from collections.abc import Iterator

DIST = Path(__file__).parents[2] / "dist"
RELEASE = "bookworm"  # of the machine that runs the tests
NEWER = "99.0"
DPKG_S = 240
# This machine may lack packages that zfsilo depends on and this test does not need, such as udev,
# and it may forbid packages to start services.
DPKG = ("dpkg", "--force-depends", "--force-unsafe-io")
LIKE_DEBIAN = """
rm -f /usr/sbin/policy-rc.d
command -v udevadm >/dev/null || ln -s true /usr/bin/udevadm
"""
MODULES = "usr/lib/python3/dist-packages/systemd"
REQUESTS = """
while test ! -e /run/enough; do
    zfsiloctl volume show data >/dev/null && echo ok || echo failed
done
"""
# Without the journal, the state of systemd and the files of this test.
FIND = """
find / /run -xdev -iname '*zfsilo*' -not -path '/proc/*' -not -path '/run/systemd/*' \\
    -not -path '/root/*' -not -path '/tmp/*' -not -path '/var/log/*' 2>/dev/null || true
"""


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """A machine with two versions of the package, not installed yet."""
    packages = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    assert packages, "dist/ has no package: run `make deb`"
    newer = reversioned(packages[-1], NEWER, tmp_path_factory.mktemp("newer"))
    machine = SystemdHost()
    with machine:
        machine.run("sh", "-euc", LIKE_DEBIAN)
        machine.copy_in(base(RELEASE) / MODULES, f"/{MODULES}")
        machine.copy_in(packages[-1], "/root/first.deb")
        machine.copy_in(newer, "/root/newer.deb")
        yield machine


@pytest.mark.timeout(600, func_only=True)
def test_an_upgrade_fails_no_request_and_a_purge_leaves_nothing(sd: SystemdHost) -> None:
    before = zfsilo_paths(sd)
    sd.write("/etc/systemd/system/zfsilod.service.d/simulate.conf", DROP_IN)
    sd.write("/etc/zfsilo/zfsilod.toml", CONFIG)
    sd.run(*DPKG, "-i", "/root/first.deb", timeout_s=DPKG_S)
    sd.run("zfsiloctl", "volume", "create", "data", "1G", timeout_s=60)
    daemon = main_pid(sd)
    with sd.start("sh", "-c", REQUESTS) as requests:
        sd.run(*DPKG, "-i", "/root/newer.deb", timeout_s=DPKG_S)
        sd.write("/run/enough", "")
        answers, errors = requests.communicate(timeout=60)
    assert set(answers.split()) == {"ok"}, errors
    assert main_pid(sd) not in ("0", daemon), "the old daemon still runs"
    sd.run("systemctl", "start", "zfsilo-renew.timer")
    sd.run("systemctl", "enable", "zfsilod-tcp.socket")
    sd.run("dpkg", "--purge", "zfsilo", timeout_s=DPKG_S)
    sd.run("rm", "-r", "/run/enough", "/etc/systemd/system/zfsilod.service.d")
    assert zfsilo_paths(sd) - before == set()
    for kind, name in (
        ("group", "zfsilo"),
        ("group", "zfsilo-gateway"),
        ("passwd", "zfsilo-gateway"),
    ):
        assert sd.run("getent", kind, name, check=False).stdout == ""


def zfsilo_paths(machine: SystemdHost) -> set[str]:
    """Return the paths whose name contains zfsilo."""
    return set(machine.run("sh", "-c", FIND, timeout_s=240).stdout.split())


def main_pid(machine: SystemdHost) -> str:
    """Return the process id of the daemon."""
    return machine.run("systemctl", "show", "-P", "MainPID", "zfsilod.service").stdout.strip()
