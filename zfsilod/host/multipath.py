"""Maps of dm-multipath: made, grown and removed by multipathd(8), multipath(8) and dmsetup(8).

multipathd makes maps by its configuration and by the WWIDs in /etc/multipath/wwids; `add map` makes
one in any case, and writes its WWID there. units/host/multipath.conf has the settings of volumes.
"""

from __future__ import annotations

import fcntl
import os

from zfsilod.host.events import wait_for
from zfsilod.host.maps import find_map, wwid_of
from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING, contextmanager
from zfsilod.storage.files import make_folder, write_private
from zfsilod.storage.paths import exists, remove_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.host.device import Device
    from zfsilod.host.disks import Disks
    from zfsilod.host.maps import MapDevice
    from zfsilod.host.run import Completed, Runner

COMMAND_TIMEOUT_S = 30  # multipathd answers within 4 s, or that it is busy
MAKE_TRIES, MAKE_DEADLINE_S = 3, 5
REMOVE_DEADLINE_S = 10
LEAVE_DEADLINE_S = 10  # from the end of the sessions of a map until multipathd has seen it
QUEUEING = "queue_if_no_path"  # a feature of a table, and the message that sets it
ANY = tuple(range(256))
WWIDS, WWIDS_BYTES = "/etc/multipath/wwids", 16 << 20  # that are read of it


class Multipath:
    """The maps of this host."""

    def __init__(self, run: Runner, disks: Disks) -> None:
        self._run = run
        self._disks = disks

    def add_path(self, device: Device) -> None:
        """Let multipathd decide now whether a disk is a path of a map."""
        self._ask("add", "path", device.name)

    def make_map(self, device: Device) -> MapDevice | None:
        """Make the map of an unused disk; None when multipathd does not."""
        if joined := self._ready(device):
            return joined
        reuse_line(WWIDS, wwid_of(device.serial))
        for _try in range(MAKE_TRIES):
            self.add_path(device)
            self._ask("add", "map", wwid_of(device.serial))
            if joined := wait_for(lambda: self._ready(device), MAKE_DEADLINE_S):
                return joined
        return None

    def _ready(self, device: Device) -> MapDevice | None:
        joined = self._above(device)
        return joined if joined and self._disks.udev_knows(joined) else None

    def _above(self, device: Device) -> MapDevice | None:
        return find_map([device], device.serial, self._disks.sys, self._disks.dev)

    def resize_map(self, joined: MapDevice) -> None:
        """Give a map the size of its paths."""
        done = self._ask("resize", "map", joined.map_name)
        if done.rc:
            raise done.failed(f"multipathd did not resize {joined.path}: {done.stdout.strip()}")

    def is_queueing(self, joined: MapDevice) -> bool:
        """Tell whether I/O waits while a map has no path: its table in the kernel says so."""
        return QUEUEING in self._dmsetup("table", joined.map_name).stdout

    def remove_path(self, device: Device) -> None:
        """Remove a path from a map that has others; its I/O takes one of them."""
        self._ask("del", "path", device.name)

    def set_queueing(self, joined: MapDevice, *, on: bool) -> None:
        """Let I/O wait while a map has no path, as its configuration says, or fail.

        A file says so from before it fails until it waits again: a worker may be killed meanwhile.
        """
        mark = self._disks.failing_mark(joined)
        if not on:
            make_folder(os.path.dirname(mark))
            write_private(mark, b"")
        verb = "restorequeueing" if on else "disablequeueing"
        if not self._disks.has_multipathd or self._ask(verb, "map", joined.map_name).rc:
            message = QUEUEING if on else "fail_if_no_path"
            self._dmsetup("message", joined.map_name, "0", message)
        if on:
            remove_file(mark)

    @contextmanager
    def without_queueing(self, joined: MapDevice) -> Iterator[None]:
        """Let I/O fail that has no path meanwhile, or from then on if it does so already."""
        failed_before = exists(self._disks.failing_mark(joined))
        self.set_queueing(joined, on=False)
        try:
            yield
        finally:
            if not failed_before:
                self.set_queueing(joined, on=True)

    def remove_map(self, joined: MapDevice) -> None:
        """Remove a map that is not in use. Raises Unavailable (LOGOUT_TIMEOUT)."""
        name = joined.map_name  # not known afterwards

        def is_removed() -> bool:
            self._run(["multipath", "-f", name], timeout_s=COMMAND_TIMEOUT_S, ok=ANY)
            return not exists(joined.folder)

        if not wait_for(is_removed, REMOVE_DEADLINE_S):
            raise Unavailable(f"{joined.path} ({name}) was not removed", reason="LOGOUT_TIMEOUT")

    def remove_at_close(self, joined: MapDevice, wwid: str) -> None:
        """Remove a map without paths when its last user closes it, and forget its WWID.

        multipathd removes one path after the other from the map, and each time lets I/O wait again:
        setup_map() in libmultipath/configure.c. So I/O is made to fail when it has finished.
        """
        if self._disks.has_multipathd:
            wait_for(lambda: not joined.paths, LEAVE_DEADLINE_S)
        if exists(joined.folder):
            self.set_queueing(joined, on=False)
            self._dmsetup("remove", "--deferred", joined.map_name)
        if not exists(joined.folder):
            remove_file(self._disks.failing_mark(joined))
        self._run(["multipath", "-w", wwid], timeout_s=COMMAND_TIMEOUT_S, ok=ANY)

    def _ask(self, *words: str) -> Completed:
        return self._run(["multipathd", *words], timeout_s=COMMAND_TIMEOUT_S, ok=ANY)

    def _dmsetup(self, *words: str) -> Completed:
        return self._run(["dmsetup", *words], timeout_s=COMMAND_TIMEOUT_S, ok=ANY)


def reuse_line(path: str, wwid: str) -> None:
    """Make the line of a forgotten WWID valid again, or the file would get one at each connect.

    `multipath -w` turns the "/" at the start of a line to "#", under the same lock:
    do_remove_wwid() in libmultipath/wwids.c. A file that another process has locked is left alone.
    """
    try:
        with open(path, "r+b", buffering=0) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            at = file.read(WWIDS_BYTES).find(f"\n#{wwid}/\n".encode())
            if at >= 0:
                os.pwrite(file.fileno(), b"/", at + 1)
    except (FileNotFoundError, NotADirectoryError, BlockingIOError):
        return
