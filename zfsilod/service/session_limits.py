"""Applies the limits of volumes to new sessions.

The kernel sends no event when an initiator logs in, so the daemon looks every few seconds, as
watch.py says, where limits are set. Until then a new session has no limits.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import DAEMON
from zfsilod.requests.io_limits import LimitSessions

if TYPE_CHECKING:
    import asyncio

    from zfsilod.service.service import Service

WAIT_S = 60.0
RETRY_S = 60.0  # after a failure

log = logging.getLogger(__name__)


class SessionLimits:
    """Looks for sessions to which limits do not apply."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.due = 0.0  # time.monotonic() of the next look
        self.task: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Start to apply the limits to new sessions, if there are any."""
        context = self._service.context
        if not context.settings.root or context.ownership.holds or time.monotonic() < self.due:
            return
        is_applying = self.task is not None and not self.task.done()
        if not is_applying and not await context.look(context.machine.limits.has_all_sessions):
            self.task = self._service.executor.spawn(self._apply())

    async def _apply(self) -> None:
        try:
            operation = await self._service.submit(LimitSessions(), caller=DAEMON)
            await self._service.wait(operation.id, WAIT_S)
        except ZfsiloError as error:
            self.due = time.monotonic() + RETRY_S
            log.warning("limits do not apply to new sessions: %s", error.message)
