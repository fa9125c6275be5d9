"""Lock files of this host: flock(2) with a deadline, and folders that nobody else may write to."""

from __future__ import annotations

import fcntl
import os
import stat
import sys

from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager, signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.storage.paths import AnyPath


OWN_ATTEMPTS = 10


@contextmanager
def host_lock(path: AnyPath, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock on a file. Raises Unavailable when it is not free in `timeout_s`.

    The deadline is a SIGALRM, so only the main thread may call this.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait(descriptor, path, timeout_s)
        yield
    finally:
        os.close(descriptor)


def own_folder(folder: AnyPath) -> None:
    """Make a folder that only this user may write to, in one like /run/lock where anybody may.

    A thing of that name that another user made first is moved aside. Raises Unavailable when others
    are faster each time.
    """
    for _attempt in range(OWN_ATTEMPTS):
        try:
            os.mkdir(folder, 0o700)
            return
        except FileExistsError:
            if _is_own(folder):
                return
        aside = f"{os.fspath(folder)}.{os.urandom(4).hex()}"
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            continue
        sys.stderr.write(f"moved {folder}, which another user had made, to {aside}\n")
    raise Unavailable(f"other users keep making {folder}; remove it, and retry", path=str(folder))


def _is_own(folder: AnyPath) -> bool:
    """Tell whether this user alone may write to a folder; a link is none."""
    try:
        now = os.lstat(folder)
    except FileNotFoundError:
        return False
    others = stat.S_IWOTH | (stat.S_IWGRP if now.st_gid != os.getegid() else 0)
    return stat.S_ISDIR(now.st_mode) and now.st_uid == os.geteuid() and not now.st_mode & others


def _wait(descriptor: int, path: AnyPath, timeout_s: float) -> None:
    """Wait in the kernel until the lock is free or the alarm rings."""

    def ring(_signal: int, _frame: object) -> None:
        raise Unavailable(
            f"another operation has held the lock {path} for more than {timeout_s:.0f} s; retry",
            lock=str(path),
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
