"""The kernel's iSCSI initiator: iscsiadm(8) to log in and out, sysfs to see what came of it.

Exit codes of iscsiadm: include/iscsi_err.h of open-iscsi. What counts is sysfs: a tool that said
yes, or was cut off, says nothing about the session.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host.disks import (
    FAILED,
    LOGGED_IN,
    Device,
    Disks,
    Session,
    answers,
    auth_parameters,
    check_serial,
    claim,
    users,
)
from zfsilod.host.events import wait_for
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import (
    Busy,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.names import iscsi_name, portal_parts

if TYPE_CHECKING:
    from zfsilod.host.node_records import Nodes
    from zfsilod.host.run import Completed, Runner
    from zfsilod.host.session_secrets import SessionSecrets
    from zfsilod.model.chap import Chap
    from zfsilod.model.host_facts import Disk

INITIATOR_NAME = Path("/etc/iscsi/initiatorname.iscsi")
LOCK = Path("/run/lock/zfsilo-iscsiadm.lock")
LOCK_TIMEOUT_S = 60
RECORD_TIMEOUT_S = 30
LOGIN_TIMEOUT_S = 60  # iscsid gives up before: login_timeout below, and 3 s for the last try
LOGOUT_TIMEOUT_S = 60
LOGOUT_ATTEMPTS, LOGOUT_DEADLINE_S = 4, 8
DISK_DEADLINE_S = 30
ANSWER_S = 5  # the initiator takes twice as long to see that a server is frozen
REPLACEMENT_TIMEOUT_S = 120  # how long I/O waits for a lost session before it fails
GROUP = 1  # the portal group of every target of ours: tpgt_1

SETTINGS = {
    "node.startup": "manual",  # zfsilo restores sessions, not open-iscsi.service
    "node.conn[0].startup": "manual",
    "node.session.scan": "auto",
    "node.session.nr_sessions": "1",
    "node.session.initial_login_retry_max": "1",
    "node.session.timeo.replacement_timeout": str(REPLACEMENT_TIMEOUT_S),
    "node.conn[0].timeo.login_timeout": "15",
    "node.conn[0].timeo.noop_out_interval": "5",
    "node.conn[0].timeo.noop_out_timeout": "5",
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.chap_algs": "SHA3-256,SHA256,SHA1,MD5",  # the best that both sides know
}

ALREADY = 15  # a session exists
REFUSED = {
    24: "the CHAP secrets, or this initiator",
    19: "the login, or it did not prove itself (mutual CHAP)",
}
NO_RECORD = 21
GONE = (2, 21, 22)  # no such session (any more)
NO_DAEMON = (18, 20)
ANY = tuple(range(33))


class RealIscsi:
    """Node records and sessions of this host."""

    def __init__(self, run: Runner, disks: Disks, nodes: Nodes, lock: Path = LOCK) -> None:
        self._run = run
        self._disks = disks
        self._nodes = nodes
        self._lock = lock

    # The node record

    def has_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> bool:
        files = self._nodes.files(target)
        return set(files.values()) == set(portals) and all(
            _settings(chap).items() <= self._nodes.read(file).items() for file in files
        )

    def add_node(self, target: str, portals: tuple[str, ...], *, chap: Chap) -> None:
        settings = _settings(chap)
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            if not set(self._nodes.files(target).values()) <= set(portals):
                self._nodes.remove(target)  # some portal is no longer one of the target's
            for portal in portals:
                for file in self._records(target, portal):
                    self._nodes.update(file, settings)

    def _records(self, target: str, portal: str) -> list[Path]:
        """Return the record of one portal, made by iscsiadm unless it is there and whole."""
        address, port = portal_parts(portal)
        for attempt in ("look", "make"):
            files = self._nodes.files(target)
            found = [file for file, its_portal in files.items() if its_portal == portal]
            if found and all(self._nodes.read(file) for file in found):
                return found
            if attempt == "look":
                for torn in found:
                    torn.unlink()
                shown = f"[{address}]" if ":" in address else address
                where = f"{shown}:{port},{GROUP}"
                words = ("-m", "node", "-T", target, "-p", where, "-o", "new")
                self._iscsiadm(*words, timeout_s=RECORD_TIMEOUT_S, ok=(0,))
        raise FailedPrecondition(
            f"iscsiadm kept no record of {target} in {self._nodes.roots[0]}", target=target
        )

    def remove_node(self, target: str) -> None:
        if not self._nodes.traces(target):
            return
        if self._disks.session(target):
            raise Busy(
                f"this host is logged in to {target}: log out first",
                reason="LOGGED_IN", target=target,
            )  # fmt: skip
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            self._nodes.remove(target)

    # The session

    def has_session(self, disk: Disk) -> bool:
        session = self._disks.session(disk.target)
        if session and session.state == FAILED:
            raise Unavailable(
                f"the session with {disk.target} was lost and is being recovered",
                reason="SESSION_RECOVERY", target=disk.target,
            )  # fmt: skip
        device = self._ready(disk.target)
        if device:
            check_serial(device, disk)
        return device is not None

    def login(self, disk: Disk) -> None:
        session = self._disks.session(disk.target)
        if session is None or session.state != LOGGED_IN:
            self._login(disk.target)
        elif self._disks.device(session) is None:
            self._disks.scan(session)
        device = wait_for(lambda: self._ready(disk.target), DISK_DEADLINE_S)
        if device is None:
            raise Unavailable(
                f"{disk.target} let us in, but its disk did not appear within {DISK_DEADLINE_S} s",
                reason="NO_DEVICE", target=disk.target,
            )  # fmt: skip
        check_serial(device, disk)
        if device.size_bytes < disk.size_bytes:  # more is well: the server may have grown it since
            raise Conflict(
                f"the disk {device.path} of {disk.target} has {device.size_bytes} bytes, "
                f"not {disk.size_bytes}",
                device=str(device.path), found=str(device.size_bytes),
                expected=str(disk.size_bytes),
            )  # fmt: skip

    def logout(self, disk: Disk) -> None:
        sessions = [s for s in self._disks.sessions(disk.target) if s.target == disk.target]
        for session in sessions:
            device = self._disks.device(session)
            # A lost session is logged out even when its disk is in use: it ends the I/O that hangs.
            if device and session.state == LOGGED_IN:
                claim(device.path, f"the disk of {session.target}")
        for session in sessions:
            self._logout(session)

    def is_known(self, disk: Disk) -> bool:
        return self._disks.session(disk.target) is not None

    def is_lost(self, disk: Disk) -> bool:
        session = self._disks.session(disk.target)
        return session is None or session.state != LOGGED_IN

    def answers(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is None or answers(device.path, ANSWER_S)

    def users(self, disk: Disk) -> list[str]:
        device = self._disks.find(disk.target)
        return users(device.path) if device else []

    def drop(self, disk: Disk) -> None:
        for session in self._disks.sessions(disk.target):
            if session.target == disk.target:
                self._logout(session)

    def _login(self, target: str) -> None:
        """Log in to the first portal that answers; more than one path to a disk is not handled."""
        problem: ZfsiloError = _no_node(target)
        for portal in dict.fromkeys(self._nodes.files(target).values()):
            words = ("-m", "node", "-T", iscsi_name(target), "-p", portal, "--login")
            done = self._iscsiadm(*words, timeout_s=LOGIN_TIMEOUT_S)
            if done.rc in (0, ALREADY):
                return
            problem = _login_problem(done, target, portal)
            if isinstance(problem, PermissionDenied):
                break
        raise problem

    def _logout(self, session: Session) -> None:
        for _attempt in range(LOGOUT_ATTEMPTS):
            words = ("-m", "session", "-r", session.sid, "--logout")
            done = self._iscsiadm(*words, timeout_s=LOGOUT_TIMEOUT_S)
            if done.rc not in (0, *GONE):
                raise done.failed(f"the logout from {session.target} failed with code {done.rc}")
            # An iscsid that was restarted knows nothing of a session until it has recovered it.
            if wait_for(lambda: not session.folder.exists(), LOGOUT_DEADLINE_S):
                return
        raise Unavailable(
            f"the session with {session.target} did not end: iscsiadm said {done.rc}",
            reason="LOGOUT_TIMEOUT", target=session.target,
        )  # fmt: skip

    def _iscsiadm(self, *words: str, timeout_s: float, ok: tuple[int, ...] = ANY) -> Completed:
        self._nodes.free()
        return self._run(["iscsiadm", *words], timeout_s=timeout_s, ok=ok)

    def _ready(self, target: str) -> Device | None:
        """Return the disk of a live session when kernel and udev are through with it."""
        session = self._disks.session(target)
        if session is None or session.state != LOGGED_IN:
            return None
        device = self._disks.device(session)
        known = device is not None and device.serial and self._disks.udev_knows(device)
        return device if known else None

    # The size

    def has_size(self, disk: Disk) -> bool:
        device = self._disks.find(disk.target)
        return device is not None and device.size_bytes >= disk.size_bytes

    def rescan(self, disk: Disk) -> None:
        device = self._disks.need(disk)
        # What `iscsiadm -R` writes for every disk of the session, for this one; returns when done.
        (device.folder / "device/rescan").write_text("1")
        if device.size_bytes < disk.size_bytes:
            raise Unavailable(
                f"the server shows {disk.target} with {device.size_bytes} bytes, "
                f"not with {disk.size_bytes}",
                reason="NOT_GROWN", target=disk.target,
            )  # fmt: skip

    # Secrets of sessions that live

    def has_session_secrets(self, chaps: dict[str, Chap]) -> bool:
        return self._session_secrets().are_set(chaps)

    def set_session_secrets(self, chaps: dict[str, Chap]) -> None:
        self._session_secrets().set(chaps)

    def _session_secrets(self) -> SessionSecrets:
        from zfsilod.host.session_secrets import SessionSecrets

        return SessionSecrets(self._run, self._disks)

    # Reading, for the daemon

    def initiator(self) -> str:
        return initiator_name()

    def problem(self, disk: Disk) -> str:
        session = self._disks.session(disk.target)
        if session is None:
            return f"there is no session with {disk.target}"
        if session.state != LOGGED_IN:
            return f"the session with {disk.target} is lost (state {session.state})"
        device = self._disks.device(session)
        if device is None or device.serial != disk.serial:
            return f"the disk of {disk.target} is gone"
        return ""

    def sessions(self, prefix: str = "") -> list[str]:
        """Return the targets that this host is logged in to, of those whose names begin so."""
        return [each.target for each in self._disks.sessions(prefix)]

    def nodes(self, prefix: str = "") -> list[str]:
        """Return the targets with a node record, of those whose names begin so."""
        return self._nodes.targets(prefix)


def initiator_name(path: Path = INITIATOR_NAME) -> str:
    """Return this host's IQN; "" when open-iscsi has not made one."""
    try:
        return name_in(path.read_text())
    except FileNotFoundError:
        return ""


def name_in(text: str) -> str:
    """Return the IQN that an initiatorname.iscsi says; "" when it says none.

    iscsid takes the first that is not empty (cfg_get_string_param of open-iscsi), and so do we:
    it is what the server will see at the login.
    """
    for line in text.splitlines():
        key, _equals, value = line.strip().partition("=")
        if key.strip() == "InitiatorName" and value.strip():
            return value.strip()
    return ""


def _settings(chap: Chap) -> dict[str, str]:
    """Return what our records say."""
    parameters = auth_parameters(chap)
    secrets = {f"node.session.auth.{name}": value for name, value in parameters.items()}
    if not all(value.isprintable() for value in secrets.values()):
        raise InvalidArgument("the CHAP secrets have characters that no record can hold")
    return SETTINGS | secrets


def _no_node(target: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"there is no node record of {target}", reason="NO_NODE", target=target
    )


def _login_problem(done: Completed, target: str, portal: str) -> ZfsiloError:
    if done.rc in REFUSED:
        return PermissionDenied(
            f"the target {target} at {portal} refused {REFUSED[done.rc]}",
            reason="LOGIN_REFUSED", target=target, portal=portal,
        )  # fmt: skip
    if done.rc == NO_RECORD:
        return _no_node(target)
    if done.rc in NO_DAEMON:
        return FailedPrecondition(
            "iscsid does not answer: systemctl start iscsid.socket", reason="NO_ISCSID"
        )
    return Unavailable(
        f"no login to {target} at {portal}: iscsiadm ended with code {done.rc}",
        reason="NO_LOGIN", target=target, portal=portal, exit_code=str(done.rc),
        stderr=done.stderr.strip()[-500:],
    )  # fmt: skip
