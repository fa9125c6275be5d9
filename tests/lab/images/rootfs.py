"""Builds the guest's root file system and the kernel and initramfs beside it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.lab.images import recipe
from tests.lab.images.chroot import debootstrap, inside
from tests.lab.images.initramfs import write_initramfs
from tests.lab.images.recipe import GUEST_FILES, Release
from tests.setup.command import run
from tests.setup.say import stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.images.buildroot import BuildRoot


def build(draft: Path, release: Release, buildroot: BuildRoot, modules: Callable[[], Path]) -> None:
    """Make root.ext4, vmlinuz, initrd and the key for ssh in a folder.

    `modules` waits for the modules of ZFS, which are compiled meanwhile.
    """
    root, work = draft / "root", draft / "work"
    work.mkdir()
    with stage(
        f"guest: installing Debian {release.name} and {len(recipe.GUEST_PACKAGES)} packages"
    ):
        debootstrap(root, release.name, recipe.GUEST_PACKAGES)
    zfs = modules()
    with stage("guest: kernel, settings, byte code"):
        add_kernel(root, work, buildroot, zfs)
        add_settings(root)
        add_ssh_key(root, work)
        set_units(root, work)
        compile_python(root, work, release)
    with stage("guest: disk image and initramfs"):
        listing = inside(root, work, ["dpkg-query", "-W"])
        (draft / "packages.txt").write_text(listing)
        write_initramfs(draft / "initrd", buildroot, work)
        shutil.copy(
            buildroot.unpacked_kernel / "boot" / f"vmlinuz-{buildroot.kernel}", draft / "vmlinuz"
        )
        (work / "id_ed25519").rename(draft / "id_ed25519")
        write_image(draft / "root.ext4", root)
    shutil.rmtree(root)
    shutil.rmtree(work)


def add_kernel(root: Path, work: Path, buildroot: BuildRoot, modules: Path) -> None:
    """Copy the modules of the kernel and of ZFS to /usr/lib/modules."""
    target = root / "usr/lib/modules" / buildroot.kernel
    shutil.copytree(buildroot.modules, target, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(modules, target / "extra/zfs")
    # Unpacking a module costs far more under emulation than reading it.
    packed = [f"/build/{path.relative_to(root)}" for path in target.rglob("*.ko.xz")]
    if packed:
        inside(buildroot.root, root, ["xz", "--decompress", *packed])
    inside(root, work, ["depmod", buildroot.kernel])


def add_settings(root: Path) -> None:
    """Write the configuration and install the lab's programs and units."""
    for name, text in recipe.TEXT_FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for program in ("lab-agent", "lab-net"):
        shutil.copy(GUEST_FILES / program, root / "usr/local/sbin" / program)
        (root / "usr/local/sbin" / program).chmod(0o755)
        shutil.copy(GUEST_FILES / f"{program}.service", root / "etc/systemd/system")
    # A valid id, or systemd treats each start as a first boot; init.c writes the real one.
    (root / "etc/machine-id").write_text("1ab" * 10 + "00\n")
    (root / "var/log/journal").mkdir(exist_ok=True)


def add_ssh_key(root: Path, work: Path) -> None:
    """Make a new key the only one that may log in as root."""
    inside(root, work, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/build/id_ed25519"])
    folder = root / "root/.ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(work / "id_ed25519.pub", folder / "authorized_keys")


def set_units(root: Path, work: Path) -> None:
    """Enable the lab's units and mask units that only cost time."""
    inside(root, work, ["systemctl", "enable", *recipe.ENABLED_UNITS])
    inside(root, work, ["systemctl", "disable", *recipe.DISABLED_UNITS])
    inside(root, work, ["systemctl", "set-default", "multi-user.target"])
    for unit in recipe.MASKED_UNITS:
        mask(root / "etc/systemd/system" / unit)
    for generator in recipe.MASKED_GENERATORS:
        mask(root / "etc/systemd/system-generators" / generator)


def mask(link: Path) -> None:
    """Make systemd ignore a unit or a generator."""
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("/dev/null")


def compile_python(root: Path, work: Path, release: Release) -> None:
    """Write byte code, since compiling at the first import is slow under emulation."""
    folders = ["/usr/lib/python3", f"/usr/lib/{release.python}"]
    # Some packages have files of other Python versions, for which compileall exits with 1.
    inside(root, work, ["sh", "-c", 'python3 -m compileall -q "$@" || true', "sh", *folders])


def write_image(target: Path, root: Path) -> None:
    """Make an ext4 image of a folder, without a loop device or a mount."""
    for folder in ("var/cache/apt", "var/lib/apt/lists", "build"):
        shutil.rmtree(root / folder, ignore_errors=True)
    run(["mke2fs", "-q", *recipe.MKE2FS_OPTIONS, "-d", root, target, recipe.ROOT_SIZE])
