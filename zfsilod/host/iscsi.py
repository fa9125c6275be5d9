"""Node records and sessions of the kernel's iSCSI initiator: iscsiadm(8) and sysfs.

iscsiadm logs in and out; its exit codes are in include/iscsi_err.h of open-iscsi. The state of a
session is read from sysfs only: an exit code of iscsiadm does not prove it.
"""

from __future__ import annotations

import os

from zfsilod.host.attributes import write
from zfsilod.host.device_users import static_users
from zfsilod.host.disks import (
    FAILED,
    FAILOVER_S,
    LOGGED_IN,
    SETTLE_S,
    Disks,
    IscsiSession,
    auth_parameters,
    check_serial,
    check_unused,
    is_responsive,
    users_beside,
)
from zfsilod.host.events import wait_for
from zfsilod.host.locks import host_lock
from zfsilod.host.logins import Logins
from zfsilod.model.connection import foreign_target
from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from zfsilod.model.host_facts import SessionProblem
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import (
    iscsi_name,
    join_portal,
    parse_host_nqn,
    parse_initiator_name,
    portal_parts,
)
from zfsilod.storage.files import make_folder, write_private
from zfsilod.storage.paths import exists, read_text, remove_file

if TYPE_CHECKING:
    from zfsilod.host.device import Device
    from zfsilod.host.iscsi_paths import IscsiPaths
    from zfsilod.host.maps import MapDevice
    from zfsilod.host.node_records import Nodes
    from zfsilod.host.run import Runner
    from zfsilod.host.session_secrets import LiveSessionSecrets
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.words import SessionFault
    from zfsilod.storage.paths import AnyPath

INITIATOR_NAME = "/etc/iscsi/initiatorname.iscsi"
HOST_NQN = "/etc/nvme/hostnqn"
LOCK = "/run/zfsilo/iscsiadm.lock"  # only root may create files there
LOCK_TIMEOUT_S = 60
RECORD_TIMEOUT_S = 30
DISK_DEADLINE_S = 30
RESPONSE_TIMEOUT_S = 5  # noop_out_interval and noop_out_timeout below take twice as long
# A read on a path that has just been lost: the kernel notices it, waits, and takes another path.
OTHER_PATH_TIMEOUT_S = 10 + FAILOVER_S + RESPONSE_TIMEOUT_S
GROUP = 1  # the portal group tag of every target of zfsilo: tpgt_1

# Settings of a node record: iscsid.conf of open-iscsi.
SETTINGS = {
    "node.startup": "manual",  # zfsilo restores sessions, not open-iscsi.service
    "node.conn[0].startup": "manual",
    "node.session.scan": "auto",
    "node.session.nr_sessions": "1",
    "node.session.initial_login_retry_max": "1",
    "node.conn[0].timeo.login_timeout": "15",
    "node.conn[0].timeo.noop_out_interval": "5",
    "node.conn[0].timeo.noop_out_timeout": "5",
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.chap_algs": "SHA3-256,SHA256,SHA1,MD5",  # in the order of preference
}

# Written where the installed version of iscsiadm knows them. A session is never given up.
NEWER_SETTINGS = {"node.session.reopen_max": "0"}


class RealIscsi:
    """The node records and the sessions of this host; see IscsiAdapter."""

    def __init__(self, run: Runner, disks: Disks, nodes: Nodes, lock: AnyPath = LOCK) -> None:
        self._run = run
        self._disks = disks
        self._nodes = nodes
        self._lock = lock
        self._known_paths: IscsiPaths | None = None

    # Node records

    def owner(self, target: str) -> str | None:
        mark = self._nodes.mark(target)
        if mark is not None or self._nodes.files(target) or self._disks.session(target):
            return mark or ""
        return None

    def has_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> bool:
        self._check_owner(target, server)
        files = self._nodes.files(target)
        settings = _settings(chap, lost_session_s)
        records = map(self._nodes.read, files)
        return set(files.values()) == set(portals) and all(
            _known(settings, record).items() <= record.items() for record in records
        )

    def _check_owner(self, target: str, server: str) -> None:
        """Raise Conflict when the records of a target are not those of zfsilo for a server.

        Version 0.1.0 left no mark; its records have all settings of zfsilo.
        """
        owner = self.owner(target)
        if server in ("", owner) or owner is None:
            return
        files = self._nodes.files(target)
        if not owner and all(SETTINGS.items() <= self._nodes.read(f).items() for f in files):
            return
        raise Conflict(foreign_target(target, owner), reason="FOREIGN_TARGET", target=target)

    def add_node(
        self,
        target: str,
        portals: tuple[str, ...],
        *,
        chap: Chap,
        server: str = "",
        lost_session_s: int = 0,
    ) -> None:
        settings = _settings(chap, lost_session_s)
        self._check_owner(target, server)
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            if server:
                self._nodes.set_mark(target, server)
            if not set(self._nodes.files(target).values()) <= set(portals):
                self._nodes.remove(target)  # a portal is no longer one of the target
            for portal in portals:
                for file in self._records(target, portal):
                    self._nodes.update(file, _known(settings, self._nodes.read(file)))

    def _records(self, target: str, portal: str) -> list[str]:
        """Return the record files of a portal; a missing or torn one is made by iscsiadm."""
        address, port = portal_parts(portal)
        for attempt in ("look", "make"):
            portals = self._nodes.files(target)
            files = [file for file, its_portal in portals.items() if its_portal == portal]
            if files and all(self._nodes.read(file) for file in files):
                return files
            if attempt == "look":
                for torn in files:
                    os.unlink(torn)
                portal_and_group = f"{join_portal(address, port)},{GROUP}"
                options = ("-m", "node", "-T", target, "-p", portal_and_group, "-o", "new")
                self._logins.iscsiadm(*options, timeout_s=RECORD_TIMEOUT_S, ok=(0,))
        raise FailedPrecondition(
            f"iscsiadm made no record of {target} in {self._nodes.roots[0]}", target=target
        )

    def remove_node(self, target: str) -> None:
        if not self._nodes.traces(target) and self._nodes.mark(target) is None:
            return
        if self._disks.session(target):
            raise Busy(
                f"this host is logged in to {target}; log out first",
                reason="LOGGED_IN",
                target=target,
            )
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            self._nodes.remove(target)
            self._nodes.remove_mark(target)

    # Sessions

    def has_session(self, disk: Disk) -> bool:
        session = self._disks.session(disk.target)
        if session and session.state == FAILED:
            raise Unavailable(
                f"the session with {disk.target} was lost and is being recovered",
                reason="SESSION_RECOVERY",
                target=disk.target,
            )
        device = self._ready(disk.target)
        if device:
            check_serial(device, disk)
        return device is not None and not self._is_half_joined(disk.target)

    def _is_half_joined(self, target: str) -> bool:
        """Tell whether a worker was stopped between a session and its map."""
        return exists(self._disks.map_mark(target)) and self._disks.joined(target) is None

    def login(self, disk: Disk) -> None:
        session = self._disks.session(disk.target)
        mark = self._disks.map_mark(iscsi_name(disk.target))
        if session is None and self._disks.has_multipathd:
            make_folder(os.path.dirname(mark))
            write_private(mark, b"")
        if session is None or session.state != LOGGED_IN:
            self._logins.log_in(disk.target)
        elif self._disks.device(session) is None:
            self._disks.scan(session)
        device = wait_for(lambda: self._ready(disk.target), DISK_DEADLINE_S)
        if device is None:
            raise Unavailable(
                f"logged in to {disk.target}, but its disk did not appear within "
                f"{DISK_DEADLINE_S} s",
                reason="NO_DEVICE",
                target=disk.target,
            )
        check_serial(device, disk)
        if device.size_bytes < disk.size_bytes:  # a larger one was grown on the server meanwhile
            raise Conflict(
                f"the disk {device.path} of {disk.target} has {device.size_bytes} bytes, "
                f"not {disk.size_bytes}",
                device=device.path,
                found=str(device.size_bytes),
                expected=str(disk.size_bytes),
            )
        if self._is_half_joined(disk.target) and not self._join(disk, is_new=session is None):
            remove_file(mark)

    def _join(self, disk: Disk, *, is_new: bool) -> bool:
        """Make the map of a disk without users. Returns False when it stays without one."""
        session = self._disks.session(disk.target)
        path = self._disks.device(session) if session else None
        if path is None or not self._disks.has_multipathd:
            return False
        if not is_new and users_beside(path.path):
            return False
        return self._paths.join_portals(disk, path, self._recorded_portals(disk.target))

    def _recorded_portals(self, target: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._nodes.files(target).values()))

    def has_loss_wait(self, disk: Disk, seconds: int) -> bool:
        sessions = self._disks.sessions_with(disk.target)
        if joined := self._disks.joined(disk.target):
            fails_over = bool(sessions) and all(one.waits(FAILOVER_S) for one in sessions)
            return fails_over and self._paths.has_loss_wait(joined, seconds)
        return bool(sessions) and all(session.waits(seconds) for session in sessions)

    def set_loss_wait(self, disk: Disk, seconds: int) -> None:
        joined = self._disks.joined(disk.target)
        for session in self._disks.sessions_with(disk.target):
            session.set_wait(FAILOVER_S if joined else seconds)
        if joined:
            self._paths.set_loss_wait(joined, seconds)

    def logout(self, disk: Disk) -> None:
        sessions = self._disks.sessions_with(disk.target)
        joined = self._disks.joined(disk.target)
        # A lost session is logged out even while its disk is in use, which ends hanging I/O.
        live = [session for session in sessions if session.state == LOGGED_IN]
        if joined and not live:
            self.drop(disk)
            return
        if joined:
            self._paths.release_map(disk, joined)
        for session in () if joined else live:
            if device := self._disks.device(session):
                check_unused(device.path, f"the disk of {session.target}")
        self._end(disk, sessions, joined, forced=joined is not None)

    def has_any_session(self, disk: Disk) -> bool:
        return self._disks.session(disk.target) is not None

    def is_lost(self, disk: Disk) -> bool:
        session = self._disks.session(disk.target)
        return session is None or session.state != LOGGED_IN

    def portal(self, disk: Disk) -> str:
        session = self._disks.session(disk.target)
        return self._disks.portal(session) if session else ""

    def has_paths(self, disk: Disk) -> bool:
        return self._disks.joined(disk.target) is not None

    def follows(self, disk: Disk, portals: tuple[str, ...]) -> bool:
        if self.has_paths(disk):
            return self._paths.follows(disk, portals)
        session = self._disks.session(disk.target)
        if session is None or session.state == LOGGED_IN:
            return True
        return self._disks.portal(session) in ("", *portals)

    def follow(self, disk: Disk, portals: tuple[str, ...]) -> None:
        if self.follows(disk, portals):
            return
        if joined := self._disks.joined(disk.target):
            self._paths.follow(disk, joined, portals)
        else:
            from zfsilod.host.moved_session import MovedSession

            MovedSession(self._run, self._disks, self._nodes, self._lock).follow(disk.target)

    def is_responsive(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        timeout_s = OTHER_PATH_TIMEOUT_S if self.has_paths(disk) else RESPONSE_TIMEOUT_S
        return device is None or is_responsive(device.path, timeout_s)

    def users(self, disk: Disk) -> list[str]:
        device = self._disks.find(disk.target)
        return static_users(device.name, self._disks.sys) if device else []

    def users_beside(self, disk: Disk, paths: tuple[str, ...], *, settle: bool = True) -> list[str]:
        device = self._disks.find(disk.target)
        if device is None:
            return []
        return users_beside(device.path, paths, settle_s=SETTLE_S if settle else 0)

    def drop(self, disk: Disk) -> None:
        joined = self._disks.joined(disk.target)
        if joined:
            self._paths.fail_pending(joined)
        self._end(disk, self._disks.sessions_with(disk.target), joined, forced=True)

    def _end(
        self, disk: Disk, sessions: list[IscsiSession], joined: MapDevice | None, *, forced: bool
    ) -> None:
        for session in sessions:
            self._logins.log_out(session, forced=forced)
        if joined:
            self._paths.leave_map(disk, joined)
        if joined is None or not exists(joined.folder):  # else its mounts are told by it
            remove_file(self._disks.map_mark(disk.target))

    @property
    def _logins(self) -> Logins:
        return Logins(self._run, self._disks, self._nodes, self._lock)

    @property
    def _paths(self) -> IscsiPaths:
        if self._known_paths is None:
            from zfsilod.host.iscsi_paths import IscsiPaths  # where multipathd runs

            self._known_paths = IscsiPaths(self._run, self._disks, self._logins)
        return self._known_paths

    def _ready(self, target: str) -> Device | None:
        """Return the disk of a live session, once it has a serial and udev has run its rules."""
        session = self._disks.session(target)
        if session is None or session.state != LOGGED_IN:
            return None
        device = self._disks.device(session)
        known = device is not None and device.serial and self._disks.udev_knows(device)
        if known and (joined := self._disks.joined(target)):
            return joined if self._disks.udev_knows(joined) else None
        return device if known else None

    # Size

    def has_size(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is not None and device.size_bytes >= disk.size_bytes

    def rescan(self, disk: Disk) -> None:
        device = self._disks.need(disk)
        if joined := self._disks.joined(disk.target):
            self._paths.rescan(disk, joined)
        else:
            # As `iscsiadm -m session --rescan`, for this disk only. The write ends with the rescan.
            write(f"{device.folder}/device/rescan", "1")
        if device.size_bytes < disk.size_bytes:
            raise Unavailable(
                f"the server exports {disk.target} with {device.size_bytes} bytes, "
                f"not with {disk.size_bytes}; grow the volume on the server first",
                reason="NOT_GROWN",
                target=disk.target,
            )

    # Secrets of live sessions

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        return self._session_secrets().are_set(chaps)

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        for target in filter(self._disks.joined, chaps):
            self._paths.end_lost(target)
        self._session_secrets().set(chaps)

    def _session_secrets(self) -> LiveSessionSecrets:
        from zfsilod.host.session_secrets import LiveSessionSecrets

        return LiveSessionSecrets(self._run, self._disks)

    # For the daemon

    def initiator(self) -> str:
        return initiator_name()

    def host_nqn(self) -> str:
        return host_nqn()

    def problems(self, disks: list[Disk]) -> dict[str, SessionProblem]:
        sessions: dict[str, list[IscsiSession]] = {}
        for session in self._disks.sessions() if disks else ():
            sessions.setdefault(session.target, []).append(session)
        named = {disk.target: self._problem(disk, sessions.get(disk.target, [])) for disk in disks}
        return {target: problem for target, problem in named.items() if problem is not None}

    def _problem(self, disk: Disk, sessions: list[IscsiSession]) -> SessionProblem | None:
        live = [session for session in sessions if session.state == LOGGED_IN]
        if not live:
            fault: SessionFault = "LOST" if sessions else "NO_SESSION"
            return SessionProblem(fault=fault, is_map=self.has_paths(disk))
        device = self._disks.device(live[0])
        if device is None or device.serial != disk.serial:
            return SessionProblem(fault="NO_DISK")
        portals = self._recorded_portals(disk.target)
        if not self.has_paths(disk):
            several = len(portals) > 1
            return SessionProblem(fault="ONE_PATH", portals=portals) if several else None
        if not self._disks.has_multipathd:
            return SessionProblem(fault="NO_MULTIPATHD")
        lost = self._paths.lost(disk.target, portals)
        return SessionProblem(fault="PATH_LOST", portals=lost) if lost else None

    def sessions(self, prefix: str = "") -> list[str]:
        return [session.target for session in self._disks.sessions(prefix)]

    def nodes(self, prefix: str = "") -> list[str]:
        return self._nodes.targets(prefix)


def initiator_name(path: AnyPath = INITIATOR_NAME) -> str:
    """Return the IQN of this host; "" when open-iscsi has not made one.

    As for iscsid, a line in another encoding is none that has the name.
    """
    try:
        return parse_initiator_name(read_text(path, errors="replace"))
    except FileNotFoundError:
        return ""


def host_nqn(path: AnyPath = HOST_NQN) -> str:
    """Return the NVMe name of this host; "" without nvme-cli's file, or with another content.

    zfsilo only tells when it changes.
    """
    try:
        return parse_host_nqn(read_text(path, errors="replace"))
    except OSError:
        return ""


def _settings(chap: Chap, lost_session_s: int) -> dict[str, str]:
    """Return the settings of a node record of zfsilo; a negative time-out is none: iscsid.conf."""
    parameters = auth_parameters(chap)
    secrets = {f"node.session.auth.{name}": value for name, value in parameters.items()}
    if not all(value.isprintable() for value in secrets.values()):
        raise InvalidArgument("the CHAP secrets have characters that a node record cannot hold")
    wait = {"node.session.timeo.replacement_timeout": str(lost_session_s or -1)}
    return SETTINGS | wait | secrets


def _known(settings: dict[str, str], record: dict[str, str]) -> dict[str, str]:
    """Return settings with those of newer versions that a record has."""
    newer = {name: value for name, value in NEWER_SETTINGS.items() if name in record}
    return settings | newer
