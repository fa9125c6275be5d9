"""The lock file of each unit, which its worker and every tool of the worker hold."""

from __future__ import annotations

import fcntl
import os

from zfsilod.model.errors import Busy
from zfsilod.model.lean import TYPE_CHECKING, signal
from zfsilod.storage.files import make_folder
from zfsilod.storage.paths import remove_file

if TYPE_CHECKING:
    from zfsilod.storage.paths import AnyPath

LOCK_DIRECTORY = "/run/zfsilo/op"
LOCK_DEADLINE_S = 60


def lock_unit(directory: AnyPath, unit: str) -> int:
    """Lock a unit and return the descriptor of the lock; tools inherit it.

    A tool that outlives its killed worker still holds the lock. Raises Busy when it is not free in
    LOCK_DEADLINE_S.
    """
    make_folder(directory)
    path = lock_path(directory, unit)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        wait_for_lock(descriptor, f"a tool of operation {unit} still runs")
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder has removed it meanwhile


def remove_lock(directory: AnyPath, unit: str) -> None:
    """Remove the lock file of a unit whose operations have ended; its holder calls this."""
    remove_file(lock_path(directory, unit))


def _is_at(path: str, descriptor: int) -> bool:
    """Tell whether a descriptor is of the file at that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def lock_path(directory: AnyPath, unit: str) -> str:
    """Return the lock file of a unit."""
    return f"{os.fspath(directory)}/{unit}.lock"


def wait_for_lock(descriptor: int, message: str) -> None:
    """Lock a file exclusively, in the main thread. Raises Busy (reason STUCK) with this message."""

    def ring(_signal: int, _frame: object) -> None:
        raise Busy(message, reason="STUCK")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LOCK_DEADLINE_S)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
