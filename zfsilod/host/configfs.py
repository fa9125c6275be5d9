"""Small steps in configfs, each one system call, with typed errors from errno.

Source: Documentation/filesystems/configfs.rst of the kernel. A folder made there is a kernel
object: it comes with files (attributes) and folders of its own, and goes only when nothing that
was made below it is left.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    ZfsiloError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS: dict[int, type[ZfsiloError]] = {
    errno.EACCES: PermissionDenied,
    errno.EADDRINUSE: FailedPrecondition,
    errno.EADDRNOTAVAIL: FailedPrecondition,
    errno.EBUSY: Busy,
    errno.EINVAL: FailedPrecondition,
    errno.ENOENT: FailedPrecondition,
    errno.ENOMEM: ResourceExhausted,
    errno.ENOSPC: ResourceExhausted,
    errno.ENOTEMPTY: Busy,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
}


class Configfs:
    """Kernel objects below one folder; paths are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, path: str) -> bool:
        """Tell whether an object or an attribute exists."""
        return (self.root / path).exists()

    def names(self, path: str) -> list[str]:
        """Return the names of the folders at a path; none when there is no such path."""
        with _typed(f"list {path}"):
            try:
                with os.scandir(self.root / path) as entries:
                    return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                return []

    def links(self, path: str) -> dict[str, Path]:
        """Return the links at a path, each with what it leads to."""
        with _typed(f"list {path}"):
            try:
                with os.scandir(self.root / path) as entries:
                    found = [entry.path for entry in entries if entry.is_symlink()]
            except FileNotFoundError:
                return {}
        return {Path(each).name: Path(each).resolve() for each in found}

    def read(self, path: str) -> str | None:
        """Return an attribute's value without its newline; None when there is none."""
        with _typed(f"read {path}"):
            try:
                return (self.root / path).read_text().removesuffix("\n")
            except FileNotFoundError:
                return None

    def write(self, path: str, value: str) -> None:
        """Set an attribute, in one write and without a newline, which would become part of it."""
        with _typed(f"write {path}"):
            descriptor = os.open(self.root / path, os.O_WRONLY)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)

    def make(self, path: str) -> None:
        """Make an object, unless it is there."""
        with _typed(f"make {path}"):
            (self.root / path).mkdir(exist_ok=True)

    def remove(self, path: str) -> None:
        """Remove an object, unless it is gone."""
        with _typed(f"remove {path}"):
            try:
                (self.root / path).rmdir()
            except FileNotFoundError:
                return

    def link(self, path: str, to: str) -> None:
        """Link one object into another, unless it is."""
        with _typed(f"link {path}"):
            if (self.root / path).is_symlink():
                return
            (self.root / path).symlink_to(self.root / to)

    def unlink(self, path: str) -> None:
        """Take a link away, unless it is gone."""
        with _typed(f"unlink {path}"):
            (self.root / path).unlink(missing_ok=True)


@contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        raise ERRORS.get(number, CommandFailed)(
            f"the kernel's target did not {what}: {os.strerror(number)}",
            action=what,
            errno=errno.errorcode.get(number, ""),
        ) from error
