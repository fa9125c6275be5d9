"""Limits of the I/O of volumes in requests, and the request that applies them to new sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfsilod.engine import plans
from zfsilod.engine.steps.limits import SessionsLimited
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.host_facts import IoLimits
from zfsilod.model.names import transport_of
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from zfsilod.model.records import Volume
    from zfsilod.model.words import Transport

LIMITS = {f"limit_{name}": name for name in IoLimits.FIELDS}
"""The fields of IoLimits by their names in requests."""


def limits_of(request: Request[Any]) -> IoLimits:
    """Return the limits in the fields of a request."""
    return IoLimits(**{name: getattr(request, field) for field, name in LIMITS.items()})


def transport_in_use(volume: Volume) -> Transport:
    """Return the transport of the export of a volume, or of its next one."""
    return transport_of(volume.target) if volume.state == "PUBLISHED" else volume.transport


def check_limits_apply(volume: Volume, transport: Transport) -> None:
    """Raise InvalidArgument for limits of a volume over a transport that has none."""
    if transport != "ISCSI" and volume.limits:
        raise InvalidArgument(
            f"the I/O of {volume.id} cannot be limited over nvme: the kernel's NVMe target does "
            "the I/O of all volumes in the same threads; use iscsi, or set the limits to 0",
            reason="NVME_LIMITS",
            volume=volume.id,
        )


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
