"""Moves a lost session to another portal of its target, with its disk and its mounts.

iscsid tries the portal of the login for ever, and has no command to change it. When it starts it
reads the portal of each session from the kernel, finds the node record of that portal, and takes
the address to connect to from the record: sync_session() in usr/iscsid.c of open-iscsi. So a record
at the former portal names the present one, iscsid is restarted, and the session returns there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.host.disks import LOGGED_IN
from zfsilod.host.events import wait_for
from zfsilod.host.locks import host_lock
from zfsilod.host.session_secrets import restart_iscsid
from zfsilod.model.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from zfsilod.host.disks import Disks
    from zfsilod.host.node_records import Nodes
    from zfsilod.host.run import Runner

LOCK_TIMEOUT_S = 60
RECONNECT_S = 30


class MovedSession:
    """The sessions of this host, and the node records that they follow."""

    def __init__(self, run: Runner, disks: Disks, nodes: Nodes, lock: Path) -> None:
        self._run = run
        self._disks = disks
        self._nodes = nodes
        self._lock = lock

    def follow(self, target: str) -> None:
        """Move the session with a target to a portal of its node records."""
        session = self._disks.session(target)
        files = self._nodes.files(target)
        former = self._disks.portal(session) if session else ""
        if session is None or not files or not former:
            raise FailedPrecondition(f"there is no session or node record of {target}")
        with host_lock(self._lock, LOCK_TIMEOUT_S):
            for file in files:
                bridge = self._nodes.bridge(file, former)
                try:
                    restart_iscsid(self._run)
                    if wait_for(lambda: session.state == LOGGED_IN, RECONNECT_S):
                        return
                finally:
                    self._nodes.remove_bridge(bridge)
        raise Unavailable(
            f"the session with {target} was lost at {former}, and did not come back at "
            f"{', '.join(dict.fromkeys(files.values()))}",
            reason="SESSION_RECOVERY",
            target=target,
        )
