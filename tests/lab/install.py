"""Installs zfsilo in the machines with `make install`, configures it and starts it."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.emulator import CODE, CODE_DISK_SIZE
from tests.lab.images.chroot import copy_certificates, inside, network_environment
from tests.setup.cache import digest, identity, product
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from tests.lab.images.buildroot import BuildRoot
    from tests.lab.machine import Machine

PROJECT = Path(__file__).parents[2]
IMAGE = "code.ext4"
# Not installed: their changes need no new installation.
NOT_INSTALLED = ("tests/", ".ci/", "nix/")
PACKAGES = "/usr/lib/zfsilo"

MOUNT_CODE = f"""
disk=/dev/disk/by-id/virtio-{CODE}
# The kernel may have cached blocks of the disk that was here before the snapshot was restored.
blockdev --flushbufs $disk
mkdir -p /run/lab-code
mount -o ro $disk /run/lab-code
for part in /run/lab-code/*; do
    [ "$part" = /run/lab-code/lost+found ] || cp -a "$part" /
done
umount /run/lab-code
systemd-sysusers
systemd-tmpfiles --create --prefix=/run --prefix=/etc --prefix=/var/lib --prefix=/var/target
systemctl daemon-reload
systemctl reload dbus.service
"""

CONFIGURATION = {
    "give": """\
[server]
root = "tank/zfsilo"
portals = ["10.77.0.1:3260"]
""",
    "take": "",
}
UNITS = {
    "give": ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod.service", "zfsilo-renew.timer"),
    "take": ("zfsilod.socket", "zfsilod.service", "zfsilo-renew.timer"),
}
JOIN = "/root/take.join"
START_S = 300  # beside other machines on the same processors


def configure(give: Machine, take: Machine) -> None:
    """Configure and start both daemons, and connect them as the README describes."""
    give.run("zfs", "create", "tank/zfsilo")
    for machine in (give, take):
        text = CONFIGURATION[machine.name]
        machine.put("/etc/zfsilo/zfsilod.toml", text.encode(), 0o644)
        machine.run("systemctl", "enable", "--now", *UNITS[machine.name], timeout_s=START_S)
    give.run("zfsiloctl", "pki", "init", timeout_s=START_S)
    issue = ("pki", "issue", "host", "take", "--address", "give", "--file", JOIN)
    give.run("zfsiloctl", *issue, timeout_s=START_S)
    take.put(JOIN, give.get(JOIN), 0o600)
    take.run("zfsiloctl", "join", JOIN, timeout_s=START_S)
    for machine in (give, take):
        machine.run("rm", "-f", JOIN)


def copy_tree(machine: Machine) -> None:
    """Copy the tree on the code disk to the machine's root file system."""
    machine.sh(MOUNT_CODE, timeout_s=180)


def tree(buildroot: BuildRoot, project: Path = PROJECT) -> Path:
    """The folder with the image of the files that `make install` installs."""
    files = project_files(project)
    wheels = dependency_wheels(buildroot, project)
    # Text files are packaged, but do not change the installed programs.
    contents = [(name, (project / name).read_bytes()) for name in files if not name.endswith(".md")]
    key = digest(identity(wheels), [(name, data.hex()) for name, data in contents])

    def build(draft: Path) -> None:
        with stage("lab: make install for the guest"):
            make_install(draft, buildroot, project, wheels)

    return product("install", key, build)


def project_files(project: Path) -> list[str]:
    """The files of the project that `make install` may need, committed or not."""
    listing = run(["git", "-C", project, "ls-files", "-z", "-co", "--exclude-standard"])
    names = sorted(set(listing.split("\0")) - {""})
    return [
        name for name in names if not name.startswith(NOT_INSTALLED) and (project / name).is_file()
    ]


def dependency_wheels(buildroot: BuildRoot, project: Path) -> Path:
    """Wheels of the build and run-time dependencies, for the guest's Python."""
    metadata = tomllib.loads((project / "pyproject.toml").read_text())
    required = [*metadata["build-system"]["requires"], *metadata["project"]["dependencies"]]

    def build(draft: Path) -> None:
        with stage(f"lab: wheels of {len(required)} dependencies for the guest"):
            env = network_environment()
            copy_certificates(buildroot.root, env)
            pip_wheel = ["python3", "-m", "pip", "wheel", "--quiet", "--no-cache-dir"]
            inside(buildroot.root, draft, [*pip_wheel, "-w", "/build/wheels", *required], env=env)

    return product("wheels", digest(identity(buildroot.folder), required), build)


def make_install(draft: Path, buildroot: BuildRoot, project: Path, wheels: Path) -> None:
    """Run `make install` in the build root, compile byte code, and write the image."""
    for name in project_files(project):
        target = draft / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, target)
    # Hard links suffice: wheels are only read.
    shutil.copytree(wheels / "wheels", draft / "wheels", copy_function=os.link)
    (draft / "tree").mkdir()
    pip = "PIP_ARGS=--no-index --find-links /build/wheels --no-compile"
    make = ["make", "-C", "/build/source", "install", "DESTDIR=/build/tree", "PYTHON=python3", pip]
    inside(buildroot.root, draft, make)
    compile_all = ["python3", "-m", "compileall", "-q", "-j", "0", "-s", "/build/tree"]
    inside(buildroot.root, draft, [*compile_all, f"/build/tree{PACKAGES}"])
    size = ["-E", "lazy_itable_init=0", "-O", "^has_journal"]
    run(["mke2fs", "-q", "-t", "ext4", *size, "-d", draft / "tree", draft / IMAGE, CODE_DISK_SIZE])
    for folder in ("source", "wheels"):
        shutil.rmtree(draft / folder)
