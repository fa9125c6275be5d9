"""Changes the CHAP secrets of live sessions: in the kernel over netlink, then in iscsid.

iscsid keeps the secrets of a session in memory, logs in with them when a connection breaks, and has
no command to change them. The kernel keeps them too. They are set there over netlink, as iscsid
does at a login; then iscsid is restarted, reads them from the kernel, and reconnects all sessions
of the host. I/O waits for about 3 s meanwhile.

include/scsi/iscsi_if.h and drivers/scsi/scsi_transport_iscsi.c of the kernel (SET_PARAM is accepted
while a connection is up); sync_session() in usr/iscsid.c of open-iscsi.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing

from zfsilod.host.attributes import read
from zfsilod.host.disks import LOGGED_IN, IscsiSession, auth_parameters
from zfsilod.host.events import wait_for
from zfsilod.host.kernel_session import (
    FIRST_CONNECTION,
    KernelSession,
    connect_netlink,
    restart_iscsid,
)
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists, read_text, remove_file

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from zfsilod.host.disks import Disks
    from zfsilod.host.run import Runner
    from zfsilod.model.chap import Chap
    from zfsilod.storage.paths import AnyPath

OUTDATED = "/run/zfsilo/iscsid-outdated"
LOCK = "/run/zfsilo/iscsid.lock"  # only root may create files there
LOCK_TIMEOUT_S = 60
RECONNECT_S = 30

PARAMETERS = {"username": 22, "username_in": 23, "password": 24, "password_in": 25}
"""Attributes of a session in sysfs, and their numbers as ISCSI_PARAM_*."""


class LiveSessionSecrets:
    """The secrets of the live sessions of this host; lost sessions are left out."""

    def __init__(
        self,
        run: Runner,
        disks: Disks,
        *,
        outdated: AnyPath = OUTDATED,
        lock: AnyPath = LOCK,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        self._run = run
        self._disks = disks
        self._outdated = outdated  # exists from before a change until iscsid was restarted
        self._lock = lock
        self._connect = connect or connect_netlink

    def are_set(self, chaps: dict[str, Chap]) -> bool:
        """Tell whether kernel and iscsid have these secrets, by target, for all live sessions.

        Raises Unavailable when the kernel does not show the secrets of a session.
        """
        live = self._live(chaps)
        if live and exists(self._outdated):
            return False
        return all(self._has(session, chaps[session.target]) for session in live)

    def set(self, chaps: dict[str, Chap]) -> None:
        """Set the secrets of the live sessions with these targets, if there are any.

        Raises Unavailable when the kernel refuses them, CommandFailed when the restart of iscsid
        fails. A session that does not return in RECONNECT_S is logged only.
        """
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            live = self._live(chaps)
            if not live:
                return
            os.close(os.open(self._outdated, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            for session in live:
                self._set_in_kernel(session, chaps[session.target])
            ports = {session.sid: self._port(session) for session in live}
            restart_iscsid(self._run)
            remove_file(self._outdated)
            if not wait_for(lambda: all(self._is_back(s, ports) for s in live), RECONNECT_S):
                sys.stderr.write(
                    f"not all iSCSI sessions were reconnected {RECONNECT_S} s after the restart "
                    "of iscsid\n"
                )

    def _live(self, chaps: dict[str, Chap]) -> list[IscsiSession]:
        sessions = [one for target in chaps for one in self._disks.sessions_with(target)]
        return [session for session in sessions if session.state == LOGGED_IN]

    def _has(self, session: IscsiSession, chap: Chap) -> bool:
        try:
            values = {name: read_text(f"{session.folder}/{name}").strip() for name in PARAMETERS}
        except FileNotFoundError:  # the session ended meanwhile
            return True
        except OSError as error:
            raise Unavailable(
                f"the kernel does not show the secrets of {session.target}: {error.strerror}",
                target=session.target,
            ) from None
        return values == auth_parameters(chap)

    def _set_in_kernel(self, session: IscsiSession, chap: Chap) -> None:
        with closing(self._connect()) as kernel:
            connection = KernelSession(kernel, self._disks.sys, session.sid)
            for name, value in auth_parameters(chap).items():
                error = connection.set(PARAMETERS[name], value)
                if error and session.state == LOGGED_IN:
                    raise Unavailable(
                        f"the kernel refused the new {name} of {session.target}: "
                        f"{os.strerror(-error)}",
                        target=session.target,
                    )

    def _port(self, session: IscsiSession) -> str:
        """Return the local TCP port of a session, "" while it has no connection.

        Each new connection has another port.
        """
        name = f"connection{session.sid}:{FIRST_CONNECTION}"
        return read(f"{self._disks.sys}/class/iscsi_connection/{name}/local_port")

    def _is_back(self, session: IscsiSession, ports: dict[str, str]) -> bool:
        """Tell whether a session was reconnected or has ended."""
        if not exists(session.folder):
            return True
        return session.state == LOGGED_IN and self._port(session) not in ("", ports[session.sid])
