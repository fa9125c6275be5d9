"""Closes open connections whose certificate or token is no longer valid.

`zfsiloctl pki revoke` and `token revoke` change the store from a process of their own, and a
certificate expires without any change: so the connections are checked every CHECK_S.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilod.model.errors import Unauthenticated

if TYPE_CHECKING:
    from zfsilod.gateway.backend import ApiSockets
    from zfsilod.security.authentication import Callers

CHECK_S = 0.5
AT_ONCE = 64  # connections that are checked in one turn of the loop


class RevocationWatch:
    """Checks the connections of remote callers."""

    def __init__(self, sockets: ApiSockets, callers: Callers) -> None:
        self._sockets = sockets
        self._callers = callers
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to check."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Stop to check."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            for number, (name, peer) in enumerate(self._sockets.remote(), 1):
                try:
                    self._callers.check(peer)
                except Unauthenticated as error:
                    self._sockets.disconnect(name, error.message)
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
