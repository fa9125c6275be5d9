"""Moves a lost session to another portal of its target, with its disk and its mounts.

iscsid tries the portal of the login for ever, and has no command to change it. When it starts it
reads the portal of each session from the kernel, and reconnects as the node record of that portal
says: sync_session() in usr/iscsid.c of open-iscsi. The kernel takes another portal for a connection
that is bound to a socket: iscsi_set_param() and iscsi_if_transport_conn() in
drivers/scsi/scsi_transport_iscsi.c. So the connection is bound for a moment, its portal is set, it
is stopped as for a recovery, and iscsid is restarted.
"""

from __future__ import annotations

import os
from contextlib import closing

from zfsilod.host.disks import LOGGED_IN
from zfsilod.host.events import wait_for
from zfsilod.host.kernel_session import KernelSession, connect_netlink, restart_iscsid
from zfsilod.host.locks import host_lock
from zfsilod.model.errors import FailedPrecondition, Unavailable
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import portal_parts

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from zfsilod.host.disks import Disks, IscsiSession
    from zfsilod.host.node_records import Nodes
    from zfsilod.host.run import Runner
    from zfsilod.storage.paths import AnyPath

LOCK_TIMEOUT_S = 60
RECONNECT_S = 30
CONNECT_S = 5.0
PERSISTENT_ADDRESS, PERSISTENT_PORT = 17, 18  # ISCSI_PARAM_*
TRIES = 3  # iscsid may stop the connection between two messages, before a try of its own


class MovedSession:
    """The sessions of this host, and the node records that they follow."""

    def __init__(
        self,
        run: Runner,
        disks: Disks,
        nodes: Nodes,
        lock: AnyPath,
        *,
        kernel: Callable[[], socket.socket] = connect_netlink,
        portal: Callable[[str], socket.socket] | None = None,
    ) -> None:
        """`kernel`, `portal`: connect to the kernel's initiator, and to a portal of a server."""
        self._run = run
        self._disks = disks
        self._nodes = nodes
        self._lock = lock
        self._kernel = kernel
        self._portal = portal or connect_portal

    def follow(self, target: str) -> None:
        """Move the session with a target to a portal of its node records.

        Raises Unavailable (SESSION_RECOVERY) when no portal answers, or no login succeeds.
        """
        session = self._disks.session(target)
        portals = tuple(dict.fromkeys(self._nodes.files(target).values()))
        former = self._disks.portal(session) if session else ""
        if session is None or not portals or not former:
            raise FailedPrecondition(f"there is no session or node record of {target}")
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            for portal in portals:
                if self._set_portal(session, portal):
                    restart_iscsid(self._run)
                    if wait_for(lambda: session.state == LOGGED_IN, RECONNECT_S):
                        return
        raise Unavailable(
            f"the session with {target} was lost at {former}, and did not come back at "
            f"{', '.join(portals)}",
            reason="SESSION_RECOVERY",
            target=target,
        )

    def _set_portal(self, session: IscsiSession, portal: str) -> bool:
        """Set the portal of a session in the kernel; False when nothing answers at the portal."""
        try:
            bound = self._portal(portal)
        except OSError:
            return False
        address, port = portal_parts(portal)
        with closing(bound), closing(self._kernel()) as kernel:
            connection = KernelSession(kernel, self._disks.sys, session.sid)
            for _try in range(TRIES):
                error = connection.bind(bound.fileno())
                error = error or connection.set(PERSISTENT_ADDRESS, address)
                error = error or connection.set(PERSISTENT_PORT, str(port))
                connection.stop()
                if not error:
                    return True
        raise Unavailable(
            f"the kernel refused the portal {portal} for the session with {session.target}: "
            f"{os.strerror(-error)}",
            reason="SESSION_RECOVERY",
            target=session.target,
        )


def connect_portal(portal: str) -> socket.socket:
    """Return a connection to a portal. Raises OSError."""
    import socket  # as in connect_netlink

    address, port = portal_parts(portal)
    connection = socket.create_connection((address, port), timeout=CONNECT_S)
    connection.settimeout(None)
    return connection
