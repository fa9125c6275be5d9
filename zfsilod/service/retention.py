"""Tells whether a retention may act now: only on a clock that can be trusted.

A clock that is wrong for a moment would end every retention at once. So nothing is removed in the
first hour after a start or after a leap of the clock, nor while the kernel says that the clock is
not synchronised.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfsilod.host.clock import HostClock

SETTLING_S = 3600
LEAP_S = 60  # more than a slewed clock gains between two passes

log = logging.getLogger(__name__)


class Retention:
    """The time for retentions; one for the life of the daemon."""

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self._offset = self._read_offset()
        self._since = clock.uptime()
        self._logged = ""
        self._trusted = False

    async def now(self) -> int | None:
        """Return the time by which a retention may act; None when the clock is not trusted."""
        obstacle = await self._obstacle()
        self._trusted = not obstacle
        if obstacle != self._logged:
            self._logged = obstacle
            log.info(obstacle or "retentions act again: the clock is synchronised")
        return None if obstacle else int(self._clock.now())

    async def _obstacle(self) -> str:
        offset, uptime = self._read_offset(), self._clock.uptime()
        leap_s = offset - self._offset
        self._offset = offset
        if abs(leap_s) > LEAP_S:
            self._since = uptime
            log.warning("the clock leapt by %d s: no retention acts for an hour", leap_s)
        if uptime - self._since < SETTLING_S:
            return "no retention acts in the first hour after a start or a leap of the clock"
        if not await self._clock.is_synchronised():
            return "no retention acts while the clock is not synchronised (see timedatectl)"
        return ""

    @property
    def is_trusted(self) -> bool:
        """Whether the clock was trusted at the last look, and has not leapt since."""
        return self._trusted and abs(self._read_offset() - self._offset) <= LEAP_S

    def _read_offset(self) -> float:
        return self._clock.now() - self._clock.uptime()
