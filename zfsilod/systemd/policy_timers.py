"""The timers of policies: transient units zfsilo-snapshot@POLICY.timer, zfsilo-replicate@...

Each starts the service of its name, an instance of the template on disk. Persistent=yes keeps the
time of the last run in /var/lib/systemd/timers, so that a run that was due while the host was off
follows after the next start: systemd.timer(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbus_next import Variant

from zfsilod.model.errors import Unavailable
from zfsilod.model.policies import ReplicationPolicy, SnapshotPolicy
from zfsilod.systemd.launcher import LIVE_STATES, STATE

if TYPE_CHECKING:
    from zfsilod.model.policies import TimedPolicy
    from zfsilod.systemd.launcher import SystemdLauncher

TIMERS = [f"{kind.UNIT}@*.timer" for kind in (SnapshotPolicy, ReplicationPolicy)]
NAME, DESCRIPTION = 0, 1  # indexes in a unit of ListUnitsByPatterns
LOOKS = 100  # calls until a stopped timer is forgotten


class PolicyTimers:
    """The timers, through the connection of the launcher."""

    def __init__(self, launcher: SystemdLauncher) -> None:
        self._launcher = launcher

    async def present(self) -> dict[str, str]:
        """Return the descriptions of the active timers, by name."""
        units = await self._list(*TIMERS)
        return {unit[NAME]: unit[DESCRIPTION] for unit in units if unit[STATE] in LIVE_STATES}

    async def start(self, policy: TimedPolicy) -> None:
        """Start the timer of a policy. Raises Unavailable when systemd refuses."""
        body = [policy.timer, "replace", properties(policy), []]
        await self._launcher.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)

    async def stop(self, timer: str) -> None:
        """Stop a timer, and wait until systemd has forgotten the unit.

        systemd answers a call first and does its own work between two calls, so that a few calls
        are enough. Raises Unavailable when they are not.
        """
        await self._launcher.call("StopUnit", "ss", [timer, "replace"])
        for _look in range(LOOKS):
            if not await self._list(timer):
                return
        raise Unavailable(f"systemd did not stop {timer}")

    async def _list(self, *patterns: str) -> list[list[Any]]:
        reply = await self._launcher.call("ListUnitsByPatterns", "asas", [[], [*patterns]])
        units: list[list[Any]] = reply.body[0]
        return units


def properties(policy: TimedPolicy) -> list[list[Any]]:
    """Return the properties of the timer of a policy: org.freedesktop.systemd1(5)."""
    return [
        ["Description", Variant("s", policy.timer_text)],
        ["TimersCalendar", Variant("a(ss)", [["OnCalendar", policy.calendar]])],
        ["RandomizedDelayUSec", Variant("t", policy.max_delay_seconds * 1_000_000)],
        ["AccuracyUSec", Variant("t", 1_000_000)],
        ["Persistent", Variant("b", True)],  # noqa: FBT003 - the wire has no keywords
        ["CollectMode", Variant("s", "inactive-or-failed")],
    ]
