"""Paths that callers name, resolved by descriptors below a folder that they may not leave.

Each component is opened relative to the open directory above it: openat(2) with O_PATH and
O_NOFOLLOW. A path without ".." that is resolved so is what openat2(2) gives with RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, costs no import of ctypes, and can make the directories
that are missing on the way. The descriptor stays valid when a user swaps a directory of the path.

The root of a path is the folder that its caller may not leave, a real path: one of
csi.allowed_paths, or "/" for an administrator. Links are followed by no part of such a path. A path
without a root was stored by version 0.1.0: the links above its last component are resolved once.
"""

from __future__ import annotations

import errno
import os

from zfsilod.host import mountinfo
from zfsilod.model.errors import Conflict, InvalidArgument, PermissionDenied, Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.paths import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.mountinfo import MountEntry

ANYWHERE = "/"  # the root of paths of administrators
FOLDER_UMASK = 0o022  # of new directories, whatever the umask of the unit
FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ANYTHING = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Place:
    """The place of a mount point: its directory, which is open, and its name in it."""

    def __init__(self, path: str, folder: int) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.folder = folder

    def status(self) -> os.stat_result:
        """Return lstat(2) of the mount point, or of the root of what is mounted there."""
        return os.lstat(self.name, dir_fd=self.folder)

    @contextmanager
    def entered(self, flags: int = ANYTHING) -> Iterator[int]:
        """Open the mount point, or the root of what is mounted there, without following a link."""
        try:
            descriptor = os.open(self.name, flags, dir_fd=self.folder)
        except OSError as error:
            raise _unusable(self.path, self.path, error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def resolved(path: str) -> str:
    """Return a path with the links above its last component resolved, as mountinfo shows it.

    Raises InvalidArgument (BAD_PATH) for a path that is relative, has "..", or a loop of links.
    """
    folder, name = os.path.split(_checked(path))
    try:
        real = os.path.realpath(folder)
    except OSError as error:
        raise _unresolved(path, str(error)) from error
    try:
        os.stat(real)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unresolved(path, f"Symlink loop from {real!r}") from error
    return os.path.join(real, name)


def _unresolved(path: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{path[:200]!r} cannot be resolved: {why}", reason="BAD_PATH")


def located(path: str, root: str) -> str:
    """Return the path at which mountinfo shows a mount. Raises PermissionDenied outside `root`."""
    if not root:
        return resolved(path)
    real = _checked(path)
    if not real.startswith(f"{root.rstrip('/')}/"):
        raise _outside(path, root, "is not below it")
    return real


@contextmanager
def opened(path: str, root: str, *, make: bool = False) -> Iterator[Place | None]:
    """Open the directory of a path; with `make`, make what is missing. None: it does not exist.

    Raises Conflict (BAD_MOUNT_POINT) for a link or a file on the way, and PermissionDenied
    (PATH_NOT_ALLOWED) for a mount on the way that shows files from outside of `root`.
    """
    real = located(path, root)
    folder = os.open("/", FOLDER)
    try:
        names = _parts(real)[:-1]
        inside = len(_parts(root))
        mount_id = ""
        for depth, name in enumerate(names, start=1):
            below = _enter(name, folder, real, make=make)
            if below is None:
                yield None
                return
            os.close(folder)
            folder = below
            if len(root) > 1 and depth >= inside:
                mount_id = _check_crossing(mount_id, folder, path, root)
        yield Place(real, folder)
    finally:
        os.close(folder)


@contextmanager
def needed(path: str, root: str) -> Iterator[Place]:
    """Open the place of a mount point that an earlier step has made."""
    with opened(path, root) as place:
        if place is None:
            raise unusable(path, "does not exist any more")
        yield place


def mount_of(descriptor: int) -> MountEntry | None:
    """Return the mount that an open file is on: proc_pid_fdinfo(5), mnt_id."""
    own_id = _mount_id(descriptor)
    return next((mount for mount in mountinfo.read() if mount.id == own_id), None)


def _mount_id(descriptor: int) -> str:
    lines = read_text(f"/proc/self/fdinfo/{descriptor}").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("mnt_id:"))


def _check_crossing(before: str, folder: int, path: str, root: str) -> str:
    """Return the mount id of a directory; `before`: that of the one above it, within the root.

    A filesystem of its own below the root is fine. A bind mount that shows a part of a filesystem
    which is mounted elsewhere too would lead outside without any link.
    """
    own_id = _mount_id(folder)
    if before in ("", own_id):
        return own_id
    mounts = mountinfo.read()
    crossed = next((mount for mount in mounts if mount.id == own_id), None)
    for mount in mounts:
        if crossed and mount.number == crossed.number and not is_within(mount.path, root):
            raise _outside(path, root, f"is on the mount {crossed.path}, which shows {mount.path}")
    return own_id


def is_within(path: str, root: str) -> bool:
    """Tell whether a path is a folder or below it, by its text alone."""
    return path == root or path.startswith(f"{root.rstrip('/')}/")


def _enter(name: str, folder: int, path: str, *, make: bool) -> int | None:
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            return None
    except OSError as error:
        raise _unusable(path, name, error) from error
    try:
        make_folder(name, folder)
        return os.open(name, FOLDER, dir_fd=folder)
    except OSError as error:
        raise _unusable(path, name, error) from error


def make_folder(name: str, folder: int) -> None:
    """Make a directory with its mode at once: a later chmod(2) might meet another one."""
    before = os.umask(FOLDER_UMASK)
    try:
        os.mkdir(name, dir_fd=folder)
    finally:
        os.umask(before)


def _parts(path: str) -> list[str]:
    """Return the components of a path."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _checked(path: str) -> str:
    parts = _parts(path)
    if ".." in parts or not parts or "\0" in path or not path.startswith("/"):
        raise InvalidArgument(
            f"{path[:200]!r} is not a valid mount point; use an absolute path without '..'",
            reason="BAD_PATH",
        )
    return f"/{'/'.join(parts)}"


def _unusable(path: str, name: str, error: OSError) -> Conflict | Unavailable:
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return unusable(path, f"contains {name}, which is a symbolic link or not a directory")
    if error.errno in (errno.EEXIST, errno.ENOENT):
        return unusable(path, f"changed at {name} while it was opened")
    if error.errno == errno.ENAMETOOLONG:
        return unusable(path[:200], "has a name that is too long")
    return Unavailable(f"{path} cannot be opened at {name}: {error.strerror}", path=path)


def unusable(path: str, why: str) -> Conflict:
    """Return the error of a mount point that cannot be used as it is."""
    return Conflict(
        f"{path} {why}, so the volume is not mounted there; use another path",
        reason="BAD_MOUNT_POINT",
        path=path,
    )


def _outside(path: str, root: str, why: str) -> PermissionDenied:
    return PermissionDenied(
        f"{path[:200]!r} leads outside of {root}: it {why}; see csi.allowed_paths in "
        "zfsilod.toml(5)",
        reason="PATH_NOT_ALLOWED",
        path=path[:200],
    )
