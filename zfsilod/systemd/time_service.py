"""The clock of this host, as systemd-timedated(8) describes it.

The daemon may not call adjtimex(2): ProtectClock= denies it even to a reader. timedated does, for
any service that synchronises the clock, and stops when nobody has asked it for a while.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dbus_next import Message, MessageType

from zfsilod.host.clock import HostClock

if TYPE_CHECKING:
    from dbus_next.aio import MessageBus

TIMEDATE = "org.freedesktop.timedate1"
CALL_DEADLINE_S = 25  # the bus starts timedated first
KEPT_S = 600.0  # how long an answer is used

log = logging.getLogger(__name__)


class SystemClock(HostClock):
    """The clock; asks timedated whether it is synchronised."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._asked_at = 0.0  # by `uptime`
        self._answer: bool | None = None

    async def is_synchronised(self) -> bool:
        """Tell whether the kernel calls the clock synchronised; False when it cannot be known."""
        if self._answer is None or self.uptime() - self._asked_at >= KEPT_S:
            self._answer = await self._ask()
            self._asked_at = self.uptime()
        return self._answer

    async def _ask(self) -> bool:
        question = Message(
            destination=TIMEDATE,
            path="/org/freedesktop/timedate1",
            interface="org.freedesktop.DBus.Properties",
            member="Get",
            signature="ss",
            body=[TIMEDATE, "NTPSynchronized"],
        )
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                reply = await self._bus.call(question)
        except TimeoutError:
            log.warning("systemd-timedated did not answer")
            return False
        if reply is None or reply.message_type == MessageType.ERROR or reply.signature != "v":
            text = reply.body[0] if reply and reply.body else "no answer"
            log.warning("systemd-timedated does not know the state of the clock: %s", text)
            return False
        return reply.body[0].value is True
