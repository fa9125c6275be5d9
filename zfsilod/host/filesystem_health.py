"""Whether the kernel has given up a mounted filesystem: mountinfo, sysfs, and open(2).

ext4 becomes read-only after an error, or counts it: Documentation/ABI/testing/sysfs-fs-ext4. XFS
shuts down, which no attribute shows, but open(2) of its directories fails with EIO. So a directory
is opened, in a thread that is left alone when it hangs, and only while the session is logged in.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock, start_new_thread

from zfsilod.host.attributes import read
from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.mountinfo import MountEntry

OPEN_TIMEOUT_S = 5.0
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

_hanging: set[str] = set()  # paths whose threads have not returned


def recorded_failure(mount: MountEntry, sys: str, name: str, *, readonly: bool) -> str:
    """Return how a filesystem failed, as mountinfo and sysfs show it, otherwise ""."""
    if mount.stopped and not readonly:
        return "became read-only after an error"
    errors = read(f"{sys}/fs/ext4/{name}/errors_count")
    return f"has {errors} recorded errors" if errors not in ("", "0") else ""


def failure(mount: MountEntry, device: Device, sys: str, *, readonly: bool) -> str:
    """Return how a filesystem failed, otherwise "". Raises Unavailable when it does not answer."""
    recorded = recorded_failure(mount, sys, device.name, readonly=readonly)
    if recorded:
        return recorded
    return "was shut down by the kernel" if _open_error(mount) == errno.EIO else ""


def _open_error(mount: MountEntry) -> int:
    """Open the root of a mount, and return the number of the error.

    0 also when the path shows another filesystem, as where the sandbox of the daemon hides it.
    """
    errors: list[int] = []
    opening = allocate_lock()
    opening.acquire()

    def open_root() -> None:
        try:
            os.close(os.open(mount.path, FOLDER))
            errors.append(0)
        except OSError as error:
            errors.append(error.errno or 0)
        _hanging.discard(mount.path)
        opening.release()

    if mount.path not in _hanging:
        _hanging.add(mount.path)
        start_new_thread(open_root, ())
        opening.acquire(timeout=OPEN_TIMEOUT_S)
    if not errors:
        raise Unavailable(
            f"the filesystem at {mount.path} does not answer within {OPEN_TIMEOUT_S:.0f} s",
            reason="FILESYSTEM_HANGS",
            path=mount.path,
        )
    return errors[0]
