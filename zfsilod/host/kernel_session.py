"""iSCSI sessions as the kernel has them: over netlink, as iscsid does it, where iscsiadm cannot.

include/scsi/iscsi_if.h and drivers/scsi/scsi_transport_iscsi.c of the kernel. iscsid has its own
copy of each session, and reads it anew when it starts, so a restart follows each change.
"""

from __future__ import annotations

import os
import struct
from contextlib import closing

from zfsilod.host.locks import host_lock
from zfsilod.model.errors import Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.storage.paths import exists, read_text

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from zfsilod.host.disks import Disks, IscsiSession
    from zfsilod.host.run import Runner
    from zfsilod.storage.paths import AnyPath

RESTART_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 60

NETLINK_ISCSI = 8  # netlink(7)
# ISCSI_UEVENT_*
DESTROY_SESSION, DESTROY_CONNECTION = 12, 14
BIND_CONNECTION, SET_PARAM, STOP_CONNECTION = 15, 16, 18
STOP_CONN_TERM, STOP_CONN_RECOVER = 1, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# struct iscsi_uevent: type, error, transport; session, connection and 16 bytes by type; the answer.
REQUEST = struct.Struct("=IIQII16s16x")
PARAMETER = struct.Struct("=II")  # its number, and the length of its value
BINDING = struct.Struct("=QI")  # a socket, and whether it is the leading connection
STOPPING = struct.Struct("=QI")  # 0, and STOP_CONN_*
ANSWER = struct.Struct("=IIQ24xi")  # struct iscsi_uevent with the result: 0 or a negative errno
NLM_F_REQUEST = 1
ANSWER_BYTES = 65536
FIRST_CONNECTION = 0  # a session of zfsilo has one connection


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

    def end(self) -> int:
        """End the session without a logout: its disks go, and I/O that waits for them fails."""
        self._call(STOP_CONNECTION, STOPPING.pack(0, STOP_CONN_TERM))
        self._call(DESTROY_CONNECTION)
        return self._call(DESTROY_SESSION)

    def _call(self, kind: int, arguments: bytes = b"", data: bytes = b"") -> int:
        body = REQUEST.pack(kind, 0, self._handle, self._sid, FIRST_CONNECTION, arguments) + data
        body += b"\0" * (-len(body) % 4)
        self._kernel.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body)
        try:
            answer = self._kernel.recv(ANSWER_BYTES)
        except TimeoutError:
            raise Unavailable("the kernel's iSCSI initiator did not answer over netlink") from None
        result: int = ANSWER.unpack_from(answer, HEADER.size)[3]
        return result


def end_session(
    run: Runner,
    disks: Disks,
    session: IscsiSession,
    lock: AnyPath,
    *,
    kernel: Callable[[], socket.socket] = connect_netlink,
) -> None:
    """End a session that is not connected, which iscsid does not log out of.

    An iscsid that was restarted while a server was away refuses the logout until it has connected
    again, which may be never: session_logout_task() in usr/initiator.c of open-iscsi.

    Raises Unavailable (LOGOUT_TIMEOUT) when the kernel refuses.
    """
    with host_lock(lock, LOCK_TIMEOUT_S):
        with closing(kernel()) as connection:
            error = KernelSession(connection, disks.sys, session.sid).end()
        if error and exists(session.folder):
            raise Unavailable(
                f"the kernel did not end the session with {session.target}: {os.strerror(-error)}",
                reason="LOGOUT_TIMEOUT",
                target=session.target,
            )
        restart_iscsid(run)
