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
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.host.attributes import read
from zfsilod.host.disks import LOGGED_IN, IscsiSession, auth_parameters
from zfsilod.host.events import wait_for
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from zfsilod.host.disks import Disks
    from zfsilod.host.run import Runner
    from zfsilod.model.chap import Chap

OUTDATED = Path("/run/zfsilo/iscsid-outdated")
LOCK = Path("/run/zfsilo/iscsid.lock")  # only root may create files there
LOCK_TIMEOUT_S = 60
RESTART_TIMEOUT_S = 60
RECONNECT_S = 30
ANSWER_TIMEOUT_S = 5.0

NETLINK_ISCSI = 8  # netlink(7)
SET_PARAM = 16  # ISCSI_UEVENT_SET_PARAM
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
REQUEST = struct.Struct("=IIQIIII8x16x")  # struct iscsi_uevent: session, connection, param, length
ANSWER = struct.Struct("=IIQ24xi")  # the same, with the result: 0 or a negative errno
NLM_F_REQUEST = 1
ANSWER_BYTES = 65536
FIRST_CONNECTION = 0  # a session of zfsilo has one connection

PARAMETERS = {"username": 22, "username_in": 23, "password": 24, "password_in": 25}
"""Attributes of a session in sysfs, and their numbers as ISCSI_PARAM_*."""


class LiveSessionSecrets:
    """The secrets of the live sessions of this host; lost sessions are left out."""

    def __init__(
        self,
        run: Runner,
        disks: Disks,
        *,
        outdated: Path = OUTDATED,
        lock: Path = LOCK,
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
        if live and self._outdated.exists():
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
            self._outdated.touch(mode=0o600)
            for session in live:
                self._set_in_kernel(session, chaps[session.target])
            ports = {session.sid: self._port(session) for session in live}
            restart_iscsid(self._run)
            self._outdated.unlink(missing_ok=True)
            if not wait_for(lambda: all(self._is_back(s, ports) for s in live), RECONNECT_S):
                sys.stderr.write(
                    f"not all iSCSI sessions were reconnected {RECONNECT_S} s after the restart "
                    "of iscsid\n"
                )

    def _live(self, chaps: dict[str, Chap]) -> list[IscsiSession]:
        sessions = (self._disks.session(target) for target in chaps)
        return [session for session in sessions if session and session.state == LOGGED_IN]

    def _has(self, session: IscsiSession, chap: Chap) -> bool:
        try:
            values = {name: (session.folder / name).read_text().strip() for name in PARAMETERS}
        except FileNotFoundError:  # the session ended meanwhile
            return True
        except OSError as error:
            raise Unavailable(
                f"the kernel does not show the secrets of {session.target}: {error.strerror}",
                target=session.target,
            ) from None
        return values == auth_parameters(chap)

    def _set_in_kernel(self, session: IscsiSession, chap: Chap) -> None:
        handle = int((self._disks.sys / "class/iscsi_transport/tcp/handle").read_text())
        with closing(self._connect()) as kernel:
            for name, value in auth_parameters(chap).items():
                error = _set(kernel, handle, int(session.sid), PARAMETERS[name], value)
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
        return read(self._disks.sys / "class/iscsi_connection" / name / "local_port")

    def _is_back(self, session: IscsiSession, ports: dict[str, str]) -> bool:
        """Tell whether a session was reconnected or has ended."""
        if not session.folder.exists():
            return True
        return session.state == LOGGED_IN and self._port(session) not in ("", ports[session.sid])


def restart_iscsid(run: Runner) -> None:
    """Restart iscsid; sessions stay, and are connected again.

    iscsid only: a restart of open-iscsi.service, which depends on it, would log out.
    """
    argv = ["systemctl", "restart", "--job-mode=ignore-dependencies", "iscsid.service"]
    run(argv, timeout_s=RESTART_TIMEOUT_S)


def connect_netlink() -> socket.socket:
    """Return a socket to the iSCSI initiator of the kernel."""
    import socket  # takes 5 ms, which only a rotation of secrets costs

    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ISCSI)
    kernel.settimeout(ANSWER_TIMEOUT_S)
    kernel.bind((0, 0))
    return kernel


def _set(kernel: socket.socket, handle: int, sid: int, parameter: int, value: str) -> int:
    """Set a parameter of a session and return the result of the kernel: 0 or a negative errno."""
    data = value.encode() + b"\0"
    body = REQUEST.pack(SET_PARAM, 0, handle, sid, FIRST_CONNECTION, parameter, len(data)) + data
    body += b"\0" * (-len(body) % 4)
    kernel.send(HEADER.pack(HEADER.size + len(body), SET_PARAM, NLM_F_REQUEST, 0, 0) + body)
    try:
        answer = kernel.recv(ANSWER_BYTES)
    except TimeoutError:
        raise Unavailable("the kernel's iSCSI initiator did not answer over netlink") from None
    result: int = ANSWER.unpack_from(answer, HEADER.size)[3]
    return result
