"""Mount points: empty directories and files, made and removed without following symbolic links.

Directories above the last component may be links (/var/lib/kubelet often is one): they are resolved
once. After that each component is opened relative to the open directory above it (openat(2) with
O_NOFOLLOW), so that a user who may write to one of them cannot redirect the rest of the path.
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

FOLDER_MODE = 0o755  # set with chmod(2), regardless of the umask; the mount has its own mode
FILE_MODE = 0o600
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def resolved(path: str) -> str:
    """Return the path of a mount point as mountinfo shows it: without links above its last part.

    Raises InvalidArgument (BAD_PATH) for a path that is relative, or has "..".
    """
    mountpoint = Path(path)
    bad = ".." in mountpoint.parts or mountpoint.name == "" or "\0" in path
    if bad or not mountpoint.is_absolute():
        raise InvalidArgument(
            f"{path[:200]!r} is not a valid mount point; use an absolute path without '..'",
            reason="BAD_PATH",
        )
    return str(mountpoint.parent.resolve() / mountpoint.name)


def has_mountpoint(path: str, *, file: bool) -> bool:
    """Tell whether a path is a mount point: an empty directory or file, or something mounted.

    Raises Conflict (BAD_MOUNT_POINT) when the path is something else.
    """
    mountpoint = resolved(path)
    if mountinfo.at(mountpoint, mountinfo.read()):
        return True  # the step for the mount, which follows, checks that it is the volume's
    try:
        status = Path(mountpoint).lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError as error:
        raise _unusable(path, "is below a file") from error
    _check_kind(path, status, file=file)
    if not file and any(Path(mountpoint).iterdir()):
        raise _unusable(path, "is not empty")
    return True


def make_mountpoint(path: str, *, file: bool) -> None:
    """Make a mount point and the directories above it, which remain when it is removed."""
    mountpoint = Path(resolved(path))
    with _open_folder(mountpoint.parent) as folder:
        try:
            if file:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(mountpoint.name, flags, FILE_MODE, dir_fd=folder))
            else:
                _make_folder(mountpoint.name, folder)
        except FileExistsError:
            has_mountpoint(path, file=file)


def remove_mountpoint(path: str, *, file: bool) -> None:
    """Remove a mount point if it exists.

    Raises Busy while something is mounted there, Conflict when it is not an empty directory or
    file.
    """
    mountpoint = Path(resolved(path))
    if mountinfo.at(str(mountpoint), mountinfo.read()):
        raise Busy(f"{path} is still a mount point", reason="MOUNTED", path=path)
    if not mountpoint.parent.is_dir():
        return
    with _open_folder(mountpoint.parent) as folder:
        try:
            _check_kind(path, os.lstat(mountpoint.name, dir_fd=folder), file=file)
            if file:
                os.unlink(mountpoint.name, dir_fd=folder)
            else:
                os.rmdir(mountpoint.name, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise _unusable(path, "is not empty") from error
            if error.errno == errno.EBUSY:  # mounted in another mount namespace
                raise Busy(f"{path} is in use as a mount point", path=path) from error
            raise


@contextmanager
def _open_folder(path: Path) -> Iterator[int]:
    """Open a directory component by component, and make those that are missing."""
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
            raise _unusable(str(path), f"contains {name}, which is not a directory") from error
        raise


def _make_folder(name: str, folder: int) -> None:
    os.mkdir(name, FOLDER_MODE, dir_fd=folder)
    os.chmod(name, FOLDER_MODE, dir_fd=folder)


def _check_kind(path: str, status: os.stat_result, *, file: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _unusable(path, "is a symbolic link")
    if file and not (stat.S_ISREG(status.st_mode) and status.st_size == 0):
        raise _unusable(path, "is not an empty file")
    if not file and not stat.S_ISDIR(status.st_mode):
        raise _unusable(path, "is not a directory")


def _unusable(path: str, why: str) -> Conflict:
    return Conflict(
        f"{path} {why}, so the volume is not mounted there; use another path",
        reason="BAD_MOUNT_POINT",
        path=path,
    )
