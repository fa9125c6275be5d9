"""Connects NVMe/TCP controllers, and replaces live ones, as paths to the disk of a subsystem.

With native multipath each controller is a path to one disk, so that one may join it before another
is removed, and no I/O fails. Without it (nvme_core.multipath=N) each would be a disk of its own.
"""

from __future__ import annotations

import errno

from zfsilod.host.attributes import read, write
from zfsilod.host.events import wait_for
from zfsilod.host.nvme_disks import LIVE, recovering
from zfsilod.host.nvme_fabrics import (
    ANOTHER,
    connect_error,
    connect_options,
    secret_options,
    send_options,
)
from zfsilod.host.portals import Answers, canonical
from zfsilod.model.errors import PermissionDenied, Unavailable, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.host.nvme_disks import NvmeController, NvmeDisks
    from zfsilod.host.nvme_keyring import NvmeKeyring
    from zfsilod.model.chap import Chap

JOIN_DEADLINE_S = 10  # from the connect of a controller to its path
MAX_KB = 1024
"""The largest request. The target of Linux 6.12 names no limit, and fails requests from 2 MiB on
when it finds no memory for them: the client would see I/O errors."""


class NvmePaths:
    """The controllers of this host as paths to disks."""

    def __init__(self, disks: NvmeDisks, fabrics: str, keyring: NvmeKeyring) -> None:
        self._disks = disks
        self._fabrics = fabrics
        self._keyring = keyring
        self._answers = Answers()

    @property
    def is_joined(self) -> bool:
        """Whether the controllers of a subsystem lead to one disk."""
        return read(f"{self._disks.sys}/module/nvme_core/parameters/multipath") == "Y"

    def is_live(self, target: str) -> bool:
        """Tell whether a controller of a subsystem is live."""
        return any(one.state == LIVE for one in self._disks.controllers(target))

    def lost(self, target: str) -> tuple[str, ...]:
        """Return the portals of the controllers of a subsystem that are not live."""
        controllers = self._disks.controllers(target)
        return tuple(sorted({one.portal for one in controllers if one.state != LIVE}))

    def stale(self, target: str, portals: tuple[str, ...]) -> list[NvmeController]:
        """Return the controllers at other portals than these, unless the disk needs them.

        Without a live path at these portals the disk needs the live controllers elsewhere. It needs
        the lost ones elsewhere if no controller is live and another is lost at one of these.
        """
        wanted, controllers = canonical(portals), self._disks.controllers(target)
        others = [one for one in controllers if one.portal not in wanted]
        if any(one.state == LIVE and one.paths for one in controllers if one.portal in wanted):
            return others
        lost = [one for one in controllers if one.state != LIVE]
        stale = [one for one in others if one.state != LIVE]
        return stale if len(stale) == len(lost) or self.is_live(target) else []

    def missing(self, target: str, portals: tuple[str, ...]) -> list[str]:
        """Return the portals that have no controller and are to have one.

        While one controller is live, those at which nothing answers are left out; without native
        multipath all are.
        """
        present = {one.portal for one in self._disks.controllers(target)}
        missing = [portal for portal in canonical(portals) if portal not in present]
        if not self.is_live(target):
            return missing
        return list(filter(self._answers, missing)) if self.is_joined else []

    def connect(
        self, target: str, portals: tuple[str, ...], chap: Chap, lost_session_s: int
    ) -> None:
        """Connect to each portal that answers. Raises when no controller is made, or is live.

        Who refuses at one portal may be another server, which has its address in this network.
        """
        lost = self._disks.controllers(target)
        error: ZfsiloError = Unavailable(f"{target} has no portal", target=target)
        error = recovering(target, lost[0].state) if lost else error
        connected = False
        for portal in canonical(portals):
            if portal not in self.missing(target, (portal,)):
                continue
            options = connect_options(target, portal, chap, lost_session_s)
            number = self._send(target, options)
            connected = connected or number in (0, errno.EALREADY)
            if number not in (0, errno.EALREADY):
                failure = connect_error(number, target, portal, tls=chap.has_tls)
                error = error if isinstance(error, PermissionDenied) else failure
        if not connected and not self.is_live(target):
            raise error
        # The path of a new controller appears after the write that has made it.
        wait_for(lambda: self._have_paths(target), JOIN_DEADLINE_S)

    def _send(self, target: str, options: dict[str, str]) -> int:
        """Make a controller, and hide its keys before anything is waited for; return the errno."""
        number = send_options(self._fabrics, options)
        for controller in self._disks.controllers(target):
            controller.hide_secrets()
        return number

    def _have_paths(self, target: str) -> bool:
        return all(one.paths for one in self._disks.controllers(target) if one.state == LIVE)

    def without_tls(self, target: str) -> list[NvmeController]:
        """Return the live controllers of a subsystem whose connection has no TLS."""
        controllers = self._disks.controllers(target)
        return [one for one in controllers if one.state == LIVE and not one.tls_key]

    def uses(self, controller: NvmeController, chap: Chap) -> bool:
        """Tell whether a controller has these keys, and a live one the PSK if there is one."""
        if not controller.has_secrets(chap) or not chap.has_tls:
            return controller.has_secrets(chap)
        return controller.state != LIVE or controller.tls_key == self._keyring.serial(chap)

    def renew(self, target: str, chap: Chap) -> None:
        """Let the controllers of a subsystem use new keys.

        The kernel authenticates a live controller again as soon as one of its two keys is written,
        with the other one as it was: both sides then end the connection. So another controller,
        which has both, joins the disk before the former one is removed. A lost controller reads
        its keys when it connects again. So it is with the PSK, which is looked up at each connect.

        With TLS a live controller stays as it is when no other one can join: the end of its
        connection would need a new handshake, which may fail as well. Raises then.
        """
        controllers = self._disks.controllers(target)
        if controllers and chap.has_tls:
            self._keyring.put(chap)
        for controller in controllers:
            if self.uses(controller, chap):
                continue
            if controller.state == LIVE and self._joined_beside(controller, chap):
                controller.delete()
            elif controller.state == LIVE and chap.has_tls:
                why = "did not join" if self.is_joined else "cannot join without native multipath"
                raise Unavailable(
                    f"the connection of {target} at {controller.portal} keeps its former keys: "
                    f"another controller with the new ones {why}; detach and attach the volume",
                    reason="NO_LOGIN",
                    target=target,
                )
            else:
                for name, secret in secret_options(chap).items():
                    controller.set_attribute(name, secret)

    def _joined_beside(self, controller: NvmeController, chap: Chap) -> bool:
        """Let a controller with these keys join at the same portal; tell whether it has a path.

        Raises when its connect with TLS fails.
        """
        target, portal = controller.target, controller.portal

        def joined() -> list[NvmeController]:
            return [
                one
                for one in self._disks.controllers(target)
                if (one.state, one.portal) == (LIVE, portal) and one.paths and self.uses(one, chap)
            ]

        if not self.is_joined:
            return False
        if not joined():
            options = connect_options(target, portal, chap, controller.loss_wait) | ANOTHER
            if number := self._send(target, options):
                if chap.has_tls:
                    raise connect_error(number, target, portal, tls=True)
                return False
        others = wait_for(joined, JOIN_DEADLINE_S) or []
        for other in others:
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
