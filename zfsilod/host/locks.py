"""A lock file that all workers of this host share: flock(2) with a deadline."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def host_lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock on a file. Raises Unavailable when it is not free in `timeout_s`.

    The deadline is a SIGALRM, so only the main thread may call this.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait(descriptor, path, timeout_s)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, timeout_s: float) -> None:
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
