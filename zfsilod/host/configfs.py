"""Objects, attributes and links in configfs: one system call each, with typed errors from errno.

Documentation/filesystems/configfs.rst of the kernel: mkdir(2) makes a kernel object, which appears
with its attributes (files) and its default groups (directories); rmdir(2) removes it, and fails
with ENOTEMPTY or EBUSY while an object or a link that was made below it is left.
"""

from __future__ import annotations

import errno
import os
import stat

from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.paths import exists, read_text, remove_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.storage.paths import AnyPath

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

PRIVATE = 0o600


class Configfs:
    """The kernel objects below one directory; all paths are relative to it.

    Each method raises the error that ERRORS lists for the errno of its system call, CommandFailed
    for any other errno.
    """

    def __init__(self, root: AnyPath, name: str = "the kernel's iSCSI target") -> None:
        """`name`: of the part of the kernel, for errors."""
        self.root = os.fspath(root)
        self.name = name

    def path(self, path: str) -> str:
        """Return the whole path of an object or an attribute."""
        return f"{self.root}/{path}"

    def has(self, path: str) -> bool:
        """Tell whether an object or an attribute exists."""
        return exists(self.path(path))

    def names(self, path: str) -> list[str]:
        """Return the names of the directories at a path; none when the path does not exist."""
        with self._typed_errors(f"list {path}"):
            try:
                with os.scandir(self.path(path)) as entries:
                    folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
                    return sorted(folder.name for folder in folders)
            except FileNotFoundError:
                return []

    def links(self, path: str) -> dict[str, str]:
        """Return the targets of the links at a path, by the names of the links."""
        with self._typed_errors(f"list {path}"):
            try:
                with os.scandir(self.path(path)) as entries:
                    names = [entry.name for entry in entries if entry.is_symlink()]
            except FileNotFoundError:
                return {}
        return {name: os.path.realpath(self.path(f"{path}/{name}")) for name in names}

    def read(self, path: str) -> str | None:
        """Return the value of an attribute without its newline; None when it does not exist."""
        with self._typed_errors(f"read {path}"):
            try:
                return read_text(self.path(path)).removesuffix("\n")
            except FileNotFoundError:
                return None

    def write(self, path: str, value: str) -> None:
        """Set an attribute with one write(2), without a newline: LIO stores it with the value."""
        with self._typed_errors(f"write {path}"):
            descriptor = os.open(self.path(path), os.O_WRONLY)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)

    def make(self, path: str) -> None:
        """Make an object unless it exists."""
        with self._typed_errors(f"make {path}"):
            try:
                os.mkdir(self.path(path))
            except FileExistsError:
                if not os.path.isdir(self.path(path)):
                    raise

    def remove(self, path: str) -> None:
        """Remove an object if it exists."""
        with self._typed_errors(f"remove {path}"):
            try:
                os.rmdir(self.path(path))
            except FileNotFoundError:
                return

    def link(self, path: str, to: str) -> None:
        """Make a link at `path` to the object `to`, unless a link exists there."""
        with self._typed_errors(f"link {path}"):
            if not os.path.islink(self.path(path)):
                os.symlink(self.path(to), self.path(path))

    def unlink(self, path: str) -> None:
        """Remove a link if it exists."""
        with self._typed_errors(f"unlink {path}"):
            remove_file(self.path(path))

    def protect(self, path: str) -> None:
        """Let only root read an attribute: chmod(2) of configfs lasts as long as the object."""
        with self._typed_errors(f"protect {path}"):
            os.chmod(self.path(path), PRIVATE)

    def is_private(self, path: str) -> bool:
        """Tell whether only root may read an attribute."""
        with self._typed_errors(f"look at {path}"):
            return stat.S_IMODE(os.stat(self.path(path)).st_mode) == PRIVATE

    @contextmanager
    def _typed_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            raise ERRORS.get(number, CommandFailed)(
                f"{self.name} failed to {action}: {os.strerror(number)}",
                action=action,
                errno=errno.errorcode.get(number, ""),
            ) from error
