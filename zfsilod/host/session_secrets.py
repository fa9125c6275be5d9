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

from zfsilod.host.attributes import read
from zfsilod.host.disks import LOGGED_IN, IscsiSession, auth_parameters
from zfsilod.host.events import wait_for
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
RESTART_TIMEOUT_S = 60
RECONNECT_S = 30
ANSWER_TIMEOUT_S = 5.0

NETLINK_ISCSI = 8  # netlink(7)
BIND_CONNECTION, SET_PARAM, STOP_CONNECTION = 15, 16, 18  # ISCSI_UEVENT_*
STOP_CONN_RECOVER = 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# struct iscsi_uevent: type, error, transport; session, connection and 16 bytes by type; the answer.
REQUEST = struct.Struct("=IIQII16s16x")
PARAMETER = struct.Struct("=II")  # its number, and the length of its value
BINDING = struct.Struct("=QI")  # a socket, and whether it is the leading connection
STOPPING = struct.Struct("=QI")  # 0, and STOP_CONN_RECOVER
ANSWER = struct.Struct("=IIQ24xi")  # struct iscsi_uevent with the result: 0 or a negative errno
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
        sessions = (self._disks.session(target) for target in chaps)
        return [session for session in sessions if session and session.state == LOGGED_IN]

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


class KernelSession:
    """The connection of a session in the kernel; each method returns 0 or a negative errno.

    Raises Unavailable when the kernel does not answer.
    """

    def __init__(self, kernel: socket.socket, sys_folder: AnyPath, sid: str) -> None:
        """`kernel`: see connect_netlink; `sid`: the number of the session."""
        self._kernel = kernel
        self._handle = int(read_text(f"{sys_folder}/class/iscsi_transport/tcp/handle"))
        self._sid = int(sid)

    def set(self, parameter: int, value: str) -> int:
        """Set a parameter, one of ISCSI_PARAM_*."""
        data = value.encode() + b"\0"
        return self._call(SET_PARAM, PARAMETER.pack(parameter, len(data)), data)

    def bind(self, descriptor: int) -> int:
        """Bind the connection to a TCP socket of this process."""
        return self._call(BIND_CONNECTION, BINDING.pack(descriptor, 1))

    def stop(self) -> int:
        """Stop the connection; the session stays, and is recovered."""
        return self._call(STOP_CONNECTION, STOPPING.pack(0, STOP_CONN_RECOVER))

    def _call(self, kind: int, arguments: bytes, data: bytes = b"") -> int:
        body = REQUEST.pack(kind, 0, self._handle, self._sid, FIRST_CONNECTION, arguments) + data
        body += b"\0" * (-len(body) % 4)
        self._kernel.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body)
        try:
            answer = self._kernel.recv(ANSWER_BYTES)
        except TimeoutError:
            raise Unavailable("the kernel's iSCSI initiator did not answer over netlink") from None
        result: int = ANSWER.unpack_from(answer, HEADER.size)[3]
        return result
