"""The Debian package in a plain Debian: installed, used, upgraded, removed, purged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.package.chroot import Chroot, reversioned
from tests.setup.command import run

DIST = Path(__file__).parents[2] / "dist"
RELEASES = ("bookworm", "trixie")
NEWER = "99.0"
# The blacklist of multipath itself, which has zvols.
BUT_DISKS = 'devnode "!^(sd[a-z]|dasd[a-z]|nvme[0-9])"'
STATE = {
    "etc/zfsilo/zfsilod.toml": '[daemon]\nhost_id = "kept"\n',
    "etc/zfsilo/servers.d/give.toml": 'address = "give:9750"\ncertificate = "none"\n',
    "var/lib/zfsilo/store/data.mdb": "kept",
}
# The daemon on a simulated host creates a volume with its worker: uses every compiled module.
USE = """
import os, subprocess, sys, time
daemon = subprocess.Popen(["zfsilod", "--simulate", "/tmp/silo"])
os.environ["ZFSILO_SIMULATE"] = "/tmp/silo"
end = time.monotonic() + 60
while not os.path.exists("/tmp/silo/run/zfsilod.sock") and time.monotonic() < end:
    time.sleep(0.05)
try:
    subprocess.run(["zfsiloctl", "volume", "create", "data", "1G"], check=True, timeout=60)
    subprocess.run(["zfsiloctl", "volume", "list"], check=True, timeout=60)
finally:
    daemon.terminate()
    sys.exit(daemon.wait())
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root"),
    pytest.mark.timeout(300),  # the first run installs both releases
]


@pytest.fixture(scope="module")
def package() -> Path:
    """The newest package in dist/."""
    packages = sorted(DIST.glob("zfsilo_*.deb"), key=lambda path: path.stat().st_mtime)
    assert packages, "dist/ has no package: run `make deb`"
    return packages[-1]


@pytest.mark.parametrize("release", RELEASES)
def test_install_upgrade_remove_and_purge(release: str, package: Path, tmp_path: Path) -> None:
    debian = Chroot(release, tmp_path)
    before = debian.files()
    debian.apt("install", package)
    assert "data" in debian.run("python3", "-c", USE)
    assert "zfsilo" in debian.run("getent", "group", "zfsilo")
    wants = "etc/systemd/system/multi-user.target.wants/zfsilod.service"
    assert (debian.root / wants).is_symlink()

    debian.write(STATE)
    debian.apt("install", reversioned(package, NEWER, tmp_path))
    assert (debian.root / "usr/lib/zfsilo/newer.py").exists()
    assert "kept" in (debian.root / "etc/zfsilo/zfsilod.toml").read_text()

    debian.apt("remove", "zfsilo")
    assert not (debian.root / "usr/lib/zfsilo").exists(), "byte code is removed too"
    assert {name: (debian.root / name).read_text() for name in STATE} == STATE

    debian.apt("purge", "zfsilo")
    assert debian.files() - before == set()
    assert before - debian.files() == set()
    assert "zfsilo" not in (debian.root / "etc/group").read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_multipath_reads_the_installed_settings(
    release: str, package: Path, tmp_path: Path
) -> None:
    debian = Chroot(release, tmp_path)
    before = blacklist(debian)
    assert BUT_DISKS in before
    debian.apt("install", package)
    assert blacklist(debian) == before
    shown = debian.run("sh", "-euc", "multipath -t 2>&1")
    ours = shown.partition('vendor "zfsilo"')[2].partition("}")[0]
    assert "no_path_retry 720" in ours
    assert 'skip_kpartx "yes"' in ours


# A disk of this machine takes the place of a zvol, scripts that of OpenZFS. The udev of systemd
# 256 or newer runs no program in a test, so there the rules are only verified.
PROBE = """
mount -t sysfs sysfs /sys
mkdir -p /etc/udev/rules.d
cd /sys/block; set -- *
sed "s/zd\\*/$1/" /usr/lib/udev/rules.d/59-zfsilo.rules >/etc/udev/rules.d/59-zfsilo.rules
if udevadm verify --help >/dev/null 2>&1; then
    udevadm verify /etc/udev/rules.d/59-zfsilo.rules
else
    udevadm test --action=add "/sys/block/$1" 2>/dev/null
fi
"""
PROGRAM = "usr/lib/udev/zvol_id"


@pytest.mark.parametrize("release", RELEASES)
def test_udev_probes_the_zvols_of_others(release: str, package: Path, tmp_path: Path) -> None:
    debian = Chroot(release, tmp_path)
    debian.apt("install", package)
    flags = {}
    for mark in ("", "0123abcd"):
        debian.write(
            {PROGRAM: "#!/bin/sh\necho tank/a\n", "usr/sbin/zfs": f"#!/bin/sh\necho {mark}\n"}
        )
        for name in (PROGRAM, "usr/sbin/zfs"):
            (debian.root / name).chmod(0o755)
        shown = debian.run("sh", "-euc", PROBE)
        flags[mark] = "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1" in shown
    assert flags == {"": False, "0123abcd": release == "bookworm"}, shown
    assert release == "bookworm" or "Success: 1" in shown


def blacklist(debian: Chroot) -> list[str]:
    """The blacklist that multipath prints from its whole configuration."""
    shown = debian.run("sh", "-euc", "multipath -t 2>&1")
    assert "invalid" not in shown
    section = shown.partition("\nblacklist {\n")[2].partition("\n}")[0]
    return [line.strip() for line in section.splitlines()]


def test_a_purge_spares_mounted_filesystems(package: Path, tmp_path: Path) -> None:
    debian = Chroot(RELEASES[0], tmp_path)
    debian.apt("install", package)
    script = (
        "mkdir -p /var/lib/zfsilo/staging/data && mount -t tmpfs data /var/lib/zfsilo/staging/data"
        " && touch /var/lib/zfsilo/staging/data/precious && apt-get -q -y purge zfsilo"
        " && test -e /var/lib/zfsilo/staging/data/precious"
    )
    debian.run("sh", "-c", script)


def test_lintian_finds_no_error(package: Path) -> None:
    run(["lintian", "--allow-root", "--fail-on", "error", package])
