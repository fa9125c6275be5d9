"""Mount points: empty directories and files, made and removed below the root of their path."""

from __future__ import annotations

import errno
import os
import stat

from zfsilod.host import mountinfo
from zfsilod.host.places import Place, located, make_folder, opened, unusable
from zfsilod.model.errors import Busy

FILE_MODE = 0o600
LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def has_mountpoint(path: str, *, file: bool, root: str = "") -> bool:
    """Tell whether a path is a mount point: an empty directory or file, or something mounted.

    Raises Conflict (BAD_MOUNT_POINT) when the path is something else.
    """
    if mountinfo.at(located(path, root), mountinfo.read()):
        return True  # the step for the mount, which follows, checks that it is the volume's
    with opened(path, root) as place:
        return place is not None and _is_mountpoint(place, file=file)


def make_mountpoint(path: str, *, file: bool, root: str = "") -> None:
    """Make a mount point and the directories above it, which remain when it is removed."""
    with opened(path, root, make=True) as place:
        assert place is not None, "its directory was made"
        try:
            if file:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(place.name, flags, FILE_MODE, dir_fd=place.folder))
            else:
                make_folder(place.name, place.folder)
        except FileExistsError:
            if not mountinfo.at(place.path, mountinfo.read()):
                _is_mountpoint(place, file=file)


def remove_mountpoint(path: str, *, file: bool, root: str = "") -> None:
    """Remove a mount point if it exists.

    Raises Busy while something is mounted there, Conflict when it is not an empty directory or
    file.
    """
    if mountinfo.at(located(path, root), mountinfo.read()):
        raise Busy(f"{path} is still a mount point", reason="MOUNTED", path=path)
    with opened(path, root) as place:
        if place is None:
            return
        try:
            _check_kind(place, file=file)
            if file:
                os.unlink(place.name, dir_fd=place.folder)
            else:
                os.rmdir(place.name, dir_fd=place.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise unusable(path, "is not empty") from error
            if error.errno == errno.EBUSY:  # mounted in another mount namespace
                raise Busy(f"{path} is in use as a mount point", path=path) from error
            raise


def _is_mountpoint(place: Place, *, file: bool) -> bool:
    try:
        _check_kind(place, file=file)
    except FileNotFoundError:
        return False
    if not file:
        with place.entered(LISTED) as folder:
            if os.listdir(folder):
                raise unusable(place.path, "is not empty")
    return True


def _check_kind(place: Place, *, file: bool) -> None:
    status = place.status()
    if stat.S_ISLNK(status.st_mode):
        raise unusable(place.path, "is a symbolic link")
    if file and not (stat.S_ISREG(status.st_mode) and status.st_size == 0):
        raise unusable(place.path, "is not an empty file")
    if not file and not stat.S_ISDIR(status.st_mode):
        raise unusable(place.path, "is not a directory")
