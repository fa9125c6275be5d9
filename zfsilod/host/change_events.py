"""Events of the host that wake the daemon: a mount or a device changed. Their content is not read.

poll(2) of mountinfo returns POLLPRI after each change of a mount in this mount namespace; the
mounts of the host propagate to that of a service. The kernel sends uevents for sessions and disks
that come and go. A session that is lost sends none that an unprivileged process could receive.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from zfsilod.host.events import KERNEL_EVENTS, drain, uevents
from zfsilod.host.mountinfo import MOUNTINFO

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from zfsilod.storage.paths import AnyPath


class ChangeEvents:
    """Calls a function from a thread after each change, until it is closed."""

    def __init__(self, changed: Callable[[], object], mountinfo: AnyPath = MOUNTINFO) -> None:
        self._changed = changed
        self._mounts = os.open(mountinfo, os.O_RDONLY | os.O_CLOEXEC)
        self._uevents = _kernel_events()
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="host events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and close its descriptors."""
        os.close(self._stop)
        self._thread.join()
        if self._uevents is not None:
            self._uevents.close()
        os.close(self._mounts)
        os.close(self._stopped)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._mounts, select.POLLPRI)
        poll.register(self._stopped, select.POLLIN)
        if self._uevents is not None:
            poll.register(self._uevents, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _event in poll.poll()}
            if self._stopped in ready:
                return
            if self._uevents is not None and self._uevents.fileno() in ready:
                drain(self._uevents)
            self._changed()


def _kernel_events() -> socket | None:
    """Return a socket with the uevents of the kernel; None where the unit does not allow it."""
    with contextlib.suppress(OSError):
        return uevents(KERNEL_EVENTS)
    return None
