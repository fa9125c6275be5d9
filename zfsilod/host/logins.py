"""Logs in to targets and out of sessions with iscsiadm(8), and proves the end of a session."""

from __future__ import annotations

from zfsilod.host.disks import LOGGED_IN
from zfsilod.host.events import wait_for
from zfsilod.model.errors import (
    FailedPrecondition,
    PermissionDenied,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import iscsi_name
from zfsilod.storage.paths import exists

if TYPE_CHECKING:
    from zfsilod.host.disks import Disks, IscsiSession
    from zfsilod.host.node_records import Nodes
    from zfsilod.host.run import Completed, Runner
    from zfsilod.storage.paths import AnyPath

LOGIN_TIMEOUT_S = 60  # longer than iscsid tries: login_timeout of a node record, and 3 s
LOGOUT_TIMEOUT_S = 60
LOGOUT_ATTEMPTS, LOGOUT_DEADLINE_S = 4, 8
LOGOUT_WAIT_S = 5  # pending I/O of a session that is lost during its logout fails after this

# Exit codes of iscsiadm: include/iscsi_err.h of open-iscsi.
SESSION_EXISTS = 15
IN_USE = 28  # with iscsid.safe_logout, while the disk is mounted or held
RECONNECTING = (9, 32)  # iscsid was restarted, and has not connected the session again
REFUSED = {
    24: "the CHAP secrets or this initiator",
    19: "the login, or failed to authenticate itself (mutual CHAP)",
}
NO_RECORD = 21
NO_SESSION = (2, 21, 22)
NO_DAEMON = (18, 20)
ANY = tuple(range(33))


class Logins:
    """The logins and logouts of this host."""

    def __init__(self, run: Runner, disks: Disks, nodes: Nodes, lock: AnyPath) -> None:
        self._run = run
        self._disks = disks
        self._nodes = nodes
        self._lock = lock

    def log_in(self, target: str) -> None:
        """Log in to the first portal that lets this host in.

        Who refuses at one portal may be another server, which has its address in this network.
        """
        error: ZfsiloError = no_node(target)
        for portal in dict.fromkeys(self._nodes.files(target).values()):
            try:
                self.log_in_at(target, portal)
            except ZfsiloError as failure:
                error = error if isinstance(error, PermissionDenied) else failure
            else:
                return
        raise error

    def log_in_at(self, target: str, portal: str) -> None:
        """Log in to one portal.

        Raises PermissionDenied (LOGIN_REFUSED), Unavailable (NO_LOGIN), FailedPrecondition
        (NO_NODE, NO_ISCSID).
        """
        options = ("-m", "node", "-T", iscsi_name(target), "-p", portal, "--login")
        done = self.iscsiadm(*options, timeout_s=LOGIN_TIMEOUT_S)
        if done.rc not in (0, SESSION_EXISTS):
            raise _login_error(done, target, portal)

    def log_out(self, session: IscsiSession, *, forced: bool = False) -> None:
        """Log out until the session has left sysfs.

        iscsid reports success for a session that it does not know, as after its restart until it
        has recovered the session; so the logout is repeated. With iscsid.safe_logout it refuses
        while the disk of the session is in use: a forced logout then removes the disk first, which
        the kernel does at the end of the session anyway. While it recovers a session it refuses
        too: the kernel then ends the session.
        """
        session.set_wait(LOGOUT_WAIT_S)  # removing the disk flushes its cache: I/O as any other
        for _attempt in range(LOGOUT_ATTEMPTS):
            options = ("-m", "session", "-r", session.sid, "--logout")
            done = self.iscsiadm(*options, timeout_s=LOGOUT_TIMEOUT_S)
            if done.rc == IN_USE and forced:
                session.remove_disks()
                continue
            if done.rc in RECONNECTING:
                if session.state == LOGGED_IN:  # since then
                    continue
                self._end_in_kernel(session)
            elif done.rc not in (0, *NO_SESSION):
                raise done.failed(
                    f"the logout from {session.target} failed: iscsiadm exited with {done.rc}"
                )
            if wait_for(lambda: not exists(session.folder), LOGOUT_DEADLINE_S):
                return
        raise Unavailable(
            f"the session with {session.target} did not end: iscsiadm exited with {done.rc}",
            reason="LOGOUT_TIMEOUT",
            target=session.target,
        )

    def _end_in_kernel(self, session: IscsiSession) -> None:
        from zfsilod.host.kernel_session import end_session

        end_session(self._run, self._disks, session, self._lock)

    def iscsiadm(self, *options: str, timeout_s: float, ok: tuple[int, ...] = ANY) -> Completed:
        """Run iscsiadm, after the lock that a killed one may have left is removed."""
        self._nodes.remove_stale_lock()
        return self._run(["iscsiadm", *options], timeout_s=timeout_s, ok=ok)


def no_node(target: str) -> FailedPrecondition:
    """Return the error for a target without a node record."""
    return FailedPrecondition(
        f"there is no node record of {target}", reason="NO_NODE", target=target
    )


def _login_error(done: Completed, target: str, portal: str) -> ZfsiloError:
    if done.rc in REFUSED:
        return PermissionDenied(
            f"the target {target} at {portal} refused {REFUSED[done.rc]}",
            reason="LOGIN_REFUSED",
            target=target,
            portal=portal,
        )
    if done.rc == NO_RECORD:
        return no_node(target)
    if done.rc in NO_DAEMON:
        return FailedPrecondition(
            "iscsid does not answer; start it with `systemctl start iscsid.socket`",
            reason="NO_ISCSID",
        )
    return Unavailable(
        f"the login to {target} at {portal} failed: iscsiadm exited with code {done.rc}",
        reason="NO_LOGIN",
        target=target,
        portal=portal,
        exit_code=str(done.rc),
        stderr=done.stderr.strip()[-500:],
    )
