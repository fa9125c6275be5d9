"""Connects NVMe/TCP controllers, and replaces live ones, as paths to the disk of a subsystem.

With native multipath each controller is a path to one disk, so that one may join it before another
is removed, and no I/O fails. Without it (nvme_core.multipath=N) each would be a disk of its own.
"""

from __future__ import annotations

import errno

from zfsilod.host.attributes import read, write
from zfsilod.host.events import wait_for
from zfsilod.host.nvme_disks import LIVE
from zfsilod.host.nvme_fabrics import (
    ANOTHER,
    connect_error,
    connect_options,
    secret_options,
    send_options,
)
from zfsilod.model.errors import PermissionDenied, Unavailable, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.host.nvme_disks import NvmeController, NvmeDisks
    from zfsilod.model.chap import Chap

JOIN_DEADLINE_S = 10  # from the connect of a controller to its path
MAX_KB = 1024
"""The largest request. The target of Linux 6.12 names no limit, and fails requests from 2 MiB on
when it finds no memory for them: the client would see I/O errors."""


class NvmePaths:
    """The controllers of this host as paths to disks."""

    def __init__(self, disks: NvmeDisks, fabrics: str) -> None:
        self._disks = disks
        self._fabrics = fabrics

    @property
    def is_joined(self) -> bool:
        """Whether the controllers of a subsystem lead to one disk."""
        return read(f"{self._disks.sys}/module/nvme_core/parameters/multipath") == "Y"

    def connect(
        self, target: str, portals: tuple[str, ...], chap: Chap, lost_session_s: int
    ) -> None:
        """Connect to the first portal that answers."""
        error: ZfsiloError = Unavailable(f"{target} has no portal", target=target)
        for portal in portals:
            options = connect_options(target, portal, chap, lost_session_s)
            number = send_options(self._fabrics, options)
            if number in (0, errno.EALREADY):
                return
            error = connect_error(number, target, portal)
            if isinstance(error, PermissionDenied):
                break
        raise error

    def renew(self, target: str, chap: Chap) -> None:
        """Let the controllers of a subsystem use new keys.

        The kernel authenticates a live controller again as soon as one of its two keys is written,
        with the other one as it was: both sides then end the connection. So another controller,
        which has both, joins the disk before the former one is removed. A lost controller reads
        its keys when it connects again.
        """
        for controller in self._disks.controllers(target):
            if controller.has_secrets(chap):
                continue
            if controller.state == LIVE and self._joined_beside(controller, chap):
                controller.delete()
            else:
                for name, secret in secret_options(chap).items():
                    controller.set_attribute(name, secret)

    def _joined_beside(self, controller: NvmeController, chap: Chap) -> bool:
        """Let a controller with these keys join at the same portal; tell whether it has a path."""
        target, portal = controller.target, controller.portal

        def joined() -> list[NvmeController]:
            return [
                one
                for one in self._disks.controllers(target)
                if (one.state, one.portal) == (LIVE, portal) and one.paths and one.has_secrets(chap)
            ]

        if not self.is_joined:
            return False
        if not joined():
            options = connect_options(target, portal, chap, controller.loss_wait) | ANOTHER
            if send_options(self._fabrics, options):
                return False
        others = wait_for(joined, JOIN_DEADLINE_S) or []
        for other in others:
            other.hide_secrets()
            limit_requests(other.paths)
        return bool(others)


def limit_requests(folders: Iterable[str]) -> None:
    """Limit the requests to disks or paths, at once: they may have I/O already."""
    for folder in folders:
        if not is_limited(folder):
            write(f"{folder}/queue/max_sectors_kb", str(MAX_KB))


def is_limited(folder: str) -> bool:
    """Tell whether no request to a disk or path is larger than a target can take."""
    return int(read_text(f"{folder}/queue/max_sectors_kb")) <= MAX_KB
