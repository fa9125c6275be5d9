"""Mount points: empty directories and files, made and removed without following a symbolic link.

The folders above the last component may well be links (/var/lib/kubelet often is one): they are
resolved once. From there on every step is taken from an open folder, so that nobody who may write
in one of them can lead us elsewhere meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host import mountinfo
from zfsilod.model.errors import Busy, Conflict, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER_MODE = 0o755  # reachable for all, whatever our umask is; the mount brings its own mode
FILE_MODE = 0o600
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def resolved(path: str) -> str:
    """Return a mount point's path as mountinfo has it: the folders above it resolved."""
    given = Path(path)
    if not given.is_absolute() or ".." in given.parts or given.name == "" or "\0" in path:
        raise InvalidArgument(f"{path[:200]!r} is no path to mount at", reason="BAD_PATH")
    return str(given.parent.resolve() / given.name)


def has_point(path: str, *, file: bool) -> bool:
    """Tell whether something can be mounted there, or is. Raises Conflict: it is in the way."""
    here = resolved(path)
    if mountinfo.at(here, mountinfo.read()):
        return True  # whose mount it is, the step after this one judges
    try:
        found = Path(here).lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError as error:
        raise _in_the_way(path, "lies below a file") from error
    _check_kind(path, found, file=file)
    if not file and any(Path(here).iterdir()):
        raise _in_the_way(path, "is not empty")
    return True


def make_point(path: str, *, file: bool) -> None:
    """Make a mount point, and the folders above it; those are left when it goes."""
    here = Path(resolved(path))
    with _opened(here.parent) as folder:
        try:
            if file:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(here.name, flags, FILE_MODE, dir_fd=folder))
            else:
                _make_folder(here.name, folder)
        except FileExistsError:
            has_point(path, file=file)


def remove_point(path: str, *, file: bool) -> None:
    """Remove a mount point that is empty, and nothing else."""
    here = Path(resolved(path))
    if mountinfo.at(str(here), mountinfo.read()):
        raise Busy(f"{path} is still a mount point", reason="MOUNTED", path=path)
    if not here.parent.is_dir():
        return
    with _opened(here.parent) as folder:
        try:
            _check_kind(path, os.lstat(here.name, dir_fd=folder), file=file)
            if file:
                os.unlink(here.name, dir_fd=folder)
            else:
                os.rmdir(here.name, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise _in_the_way(path, "is not empty") from error
            if error.errno == errno.EBUSY:  # mounted on, in another mount namespace
                raise Busy(f"{path} is in use as a mount point", path=path) from error
            raise


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a folder, each component from the one above it; those that are missing are made."""
    folder = os.open("/", FOLDER_FLAGS)
    try:
        for name in path.parts[1:]:
            below = _enter(name, folder, path)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _enter(name: str, folder: int, path: Path) -> int:
    try:
        return os.open(name, FOLDER_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        _make_folder(name, folder)
        return os.open(name, FOLDER_FLAGS, dir_fd=folder)
    except (NotADirectoryError, OSError) as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _in_the_way(str(path), f"has {name}, which is no directory") from error
        raise


def _make_folder(name: str, folder: int) -> None:
    os.mkdir(name, FOLDER_MODE, dir_fd=folder)
    os.chmod(name, FOLDER_MODE, dir_fd=folder)


def _check_kind(path: str, found: os.stat_result, *, file: bool) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _in_the_way(path, "is a symbolic link")
    if file and not (stat.S_ISREG(found.st_mode) and found.st_size == 0):
        raise _in_the_way(path, "is not an empty file")
    if not file and not stat.S_ISDIR(found.st_mode):
        raise _in_the_way(path, "is not a directory")


def _in_the_way(path: str, why: str) -> Conflict:
    return Conflict(f"{path} {why}: nothing is mounted there", reason="BAD_MOUNT_POINT", path=path)
