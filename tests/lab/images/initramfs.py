"""Writes the initramfs: one static program and the modules that drive the root disk."""

from __future__ import annotations

import itertools
import lzma
import shutil
import stat
from typing import TYPE_CHECKING

from tests.lab.images.chroot import inside
from tests.lab.images.recipe import BOOT_MODULES, GUEST_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.images.buildroot import BuildRoot

CONSOLE = (5, 1)


def entry(
    inode: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """One member of a cpio archive in the kernel's newc format."""
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return padded(header) + padded(data)


def padded(data: bytes) -> bytes:
    """The data, filled up to a multiple of four bytes."""
    return data + b"\0" * (-len(data) % 4)


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive of these files (mode and content) and a console device."""
    count: Iterator[int] = itertools.count(1)
    members = [
        entry(next(count), "dev", stat.S_IFDIR | 0o755),
        entry(next(count), "dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
    ]
    for name, (mode, data) in files.items():
        members.append(entry(next(count), name, stat.S_IFREG | mode, data))
    return b"".join([*members, entry(next(count), "TRAILER!!!", 0)])


def boot_modules(modules: Path) -> dict[str, bytes]:
    """The boot modules below a kernel's module folder, unpacked; some may be built in."""
    unpacked = {}
    for name in BOOT_MODULES:
        for path in modules.rglob(f"{name}.ko*"):
            data = path.read_bytes()
            unpacked[f"{name}.ko"] = lzma.decompress(data) if path.suffix == ".xz" else data
    return unpacked


def write_initramfs(target: Path, buildroot: BuildRoot, work: Path) -> None:
    """Compile the init program and pack it with its modules."""
    shutil.copy(GUEST_FILES / "init.c", work)
    compiler = ["gcc", "-Os", "-static", "-s", "-Wall", "-Werror", "-D_GNU_SOURCE"]
    inside(buildroot.root, work, [*compiler, "-o", "/build/init", "/build/init.c"])
    modules = boot_modules(buildroot.modules)
    listed = "".join(f"/{name}\n" for name in modules).encode()
    files = {"init": (0o755, (work / "init").read_bytes()), "modules": (0o644, listed)}
    files |= {name: (0o644, data) for name, data in modules.items()}
    target.write_bytes(archive(files))
