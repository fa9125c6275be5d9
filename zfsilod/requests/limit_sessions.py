"""The request that applies the limits of volumes to sessions that began since."""

from __future__ import annotations

from zfsilod.engine import plans
from zfsilod.engine.steps.limits import SessionsLimited
from zfsilod.requests.request import Plan, Request, View


class LimitSessions(Request[None]):
    """Apply the limits to all sessions of the kernel's iSCSI target: a new one begins without."""

    descends = True
    kind = "limit-sessions"

    @property
    def subject(self) -> str:
        return "sessions"

    def plan(self, view: View, inputs: None) -> Plan:
        return Plan(
            title="apply the limits to new sessions",
            claims=("sessions/limits",),
            actions=plans.up([SessionsLimited()]),
        )
