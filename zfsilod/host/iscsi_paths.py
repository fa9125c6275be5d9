"""The iSCSI sessions with a target as paths of one disk: a map of dm-multipath.

A map is made before its disk has any user, or never: a disk that is mounted as sda stays sda. It is
made where multipathd runs and the server has several portals, even if only one of them answers, so
that the others can join it under a mounted filesystem. Without a map there is one session: a second
one would be another disk with the same data.
"""

from __future__ import annotations

import sys

from zfsilod.host.attributes import write
from zfsilod.host.disks import FAILOVER_S, LOGGED_IN, check_unused
from zfsilod.host.events import wait_for
from zfsilod.host.maps import map_above, wwid_of
from zfsilod.host.multipath import Multipath
from zfsilod.host.portals import Answers, canonical
from zfsilod.model.errors import Unavailable, ZfsiloError
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.disks import Disks, IscsiSession
    from zfsilod.host.logins import Logins
    from zfsilod.host.maps import MapDevice
    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import Disk

JOIN_DEADLINE_S = 20  # from the login of a session to its path in the map


class IscsiPaths:
    """The sessions of this host as paths to disks."""

    def __init__(self, run: Runner, disks: Disks, logins: Logins) -> None:
        self._disks = disks
        self._logins = logins
        self._multipath = Multipath(run, disks)
        self._answers = Answers()

    # Paths join

    def join_portals(self, disk: Disk, device: Device, portals: tuple[str, ...]) -> bool:
        """Make the map of a disk that nothing uses yet, and log in at its other portals.

        `portals`: all of the server. With one of them multipathd decides: by its configuration it
        may make a map of any disk. Returns False when there is none.
        """
        if len(portals) < 2:
            self._multipath.add_path(device)
            return map_above(device, self._disks.sys, self._disks.dev) is not None
        joined = self._multipath.make_map(device)
        if joined is None:
            sys.stderr.write(f"multipathd makes no map of {device.path}: it has one path\n")
            return False
        if not self._multipath.is_queueing(joined):
            sys.stderr.write(
                f"multipathd does not read the settings of volumes: I/O to {joined.path} would "
                f"fail without a path; {device.path} has one path\n"
            )
            self._multipath.remove_map(joined)
            self.leave_map(disk, joined)
            return False
        self._connect(disk, joined, portals)
        return True

    def _connect(self, disk: Disk, joined: MapDevice, portals: tuple[str, ...]) -> None:
        """Log in at each portal that answers and has no session; each becomes a path, or ends."""
        for portal in self._missing(disk.target, portals):
            try:
                self._logins.log_in_at(disk.target, portal)
            except ZfsiloError as error:
                sys.stderr.write(f"{joined.path} has no path at {portal}: {error.message}\n")
        asked: set[str] = set()

        def all_joined() -> bool:
            unjoined = self._unjoined(disk.target)
            for session in unjoined:
                device = self._disks.device(session)
                if device and device.name not in asked and self._disks.udev_knows(device):
                    asked.add(device.name)
                    self._multipath.add_path(device)
            return not unjoined

        wait_for(all_joined, JOIN_DEADLINE_S)
        for session in self._unjoined(disk.target):
            sys.stderr.write(f"the session at {self._disks.portal(session)} is no path: it ends\n")
            self._logins.log_out(session)

    def _unjoined(self, target: str) -> list[IscsiSession]:
        sessions = self._disks.sessions_with(target)
        return [one for one in sessions if one.state == LOGGED_IN and not self._is_path(one)]

    def _is_path(self, session: IscsiSession) -> bool:
        device = self._disks.device(session)
        return (
            device is not None and map_above(device, self._disks.sys, self._disks.dev) is not None
        )

    # Portals that come and go

    def _missing(self, target: str, portals: tuple[str, ...]) -> list[str]:
        """Return the portals that answer and have no session, live or lost.

        None without multipathd: a session would not become a path.
        """
        if not self._disks.has_multipathd:
            return []
        present = {self._disks.portal(one) for one in self._disks.sessions_with(target)}
        return [one for one in canonical(portals) if one not in present and self._answers(one)]

    def _stale(self, target: str, portals: tuple[str, ...]) -> list[IscsiSession]:
        """Return the sessions at other portals, if the disk has a live path without them."""
        wanted, sessions = canonical(portals), self._disks.sessions_with(target)
        others = [one for one in sessions if self._disks.portal(one) not in wanted]
        kept = [one for one in sessions if one not in others]
        live = any(one.state == LOGGED_IN and self._is_path(one) for one in kept)
        return others if live else []

    def lost(self, target: str, portals: tuple[str, ...]) -> tuple[str, ...]:
        """Return the portals at which the disk has no live path."""
        sessions = self._disks.sessions_with(target)
        live = [one for one in sessions if one.state == LOGGED_IN and self._is_path(one)]
        present = {self._disks.portal(one) for one in live}
        return tuple(portal for portal in canonical(portals) if portal not in present)

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        """Tell whether each portal that answers has a session, and no path is at another."""
        return not self._stale(disk.target, portals) and not self._missing(disk.target, portals)

    def follow(self, disk: Disk, joined: MapDevice, portals: tuple[str, ...]) -> None:
        """Make it so, with the disk in use.

        Raises Unavailable (SESSION_RECOVERY) when the disk has no live path.
        """
        self._connect(disk, joined, portals)
        for stale in self._stale(disk.target, portals):
            if path := self._disks.device(stale):
                self._multipath.remove_path(path)  # no I/O is lost with the session
            self._logins.log_out(stale, forced=True)
        session = self._disks.session(disk.target)
        if session is None or session.state != LOGGED_IN:
            raise Unavailable(
                f"no portal of {disk.target} answers: {', '.join(portals)}",
                reason="SESSION_RECOVERY",
                target=disk.target,
            )

    def end_lost(self, target: str) -> None:
        """End the lost sessions beside a live one; they are made again when their portals answer.

        A lost session cannot take a new size or new secrets.
        """
        sessions = self._disks.sessions_with(target)
        if any(one.state == LOGGED_IN for one in sessions):
            for session in sessions:
                if session.state != LOGGED_IN:
                    self._logins.log_out(session, forced=True)

    # The map

    def has_loss_wait(self, joined: MapDevice, seconds: int) -> bool:
        """Tell whether I/O waits for a path, or fails: see set_loss_wait."""
        return exists(self._disks.failing_mark(joined)) == _fails(seconds)

    def set_loss_wait(self, joined: MapDevice, seconds: int) -> None:
        """Let I/O wait for a path as long as the configuration of the map says, or fail."""
        self._multipath.set_queueing(joined, on=not _fails(seconds))

    def rescan(self, disk: Disk, joined: MapDevice) -> None:
        """Read the size of each path again, and give it to the map."""
        self.end_lost(disk.target)  # all paths of a map have one size
        for session in self._disks.sessions_with(disk.target):
            if device := self._disks.device(session):
                write(f"{device.folder}/device/rescan", "1")
        self._multipath.resize_map(joined)

    def release_map(self, disk: Disk, joined: MapDevice) -> None:
        """Remove the map of a disk that is not in use. Raises Busy (IN_USE)."""
        check_unused(joined.path, f"the disk of {disk.target}")
        self._multipath.set_queueing(joined, on=False)
        self._multipath.remove_map(joined)

    def fail_pending(self, joined: MapDevice) -> None:
        """Let I/O fail when the map has no path any more."""
        self._multipath.set_queueing(joined, on=False)

    def leave_map(self, disk: Disk, joined: MapDevice) -> None:
        """Remove what is left of a map whose sessions have ended, at its last close."""
        self._multipath.remove_at_close(joined, wwid_of(disk.serial))


def _fails(seconds: int) -> bool:
    """Tell whether a wait is too short for a map: I/O without a path fails at once."""
    return 0 < seconds <= FAILOVER_S
