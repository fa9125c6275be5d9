"""The status of a host for gRPC, HTTP and D-Bus: counts, space, what needs attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfsilod.model.errors import ZfsiloError
from zfsilod.model.pool_space import PoolSpace, nearly_full
from zfsilod.storage.summary import Attention, Summary

if TYPE_CHECKING:
    from zfsilod.service.service import Service

MAX_ATTENTION = 100  # problems in a reply


class HostStatus(NamedTuple):
    """The counts of the records, the space of the dataset root, and all problems, worst first."""

    root: str  # the dataset root; "" on a host that is not a server
    space: PoolSpace | None  # None: unknown, or not a server
    space_condition: str
    states: dict[str, int]  # volumes by state, as probed
    summary: Summary
    attention: list[Attention]


async def host_status(service: Service) -> HostStatus:
    """Compare the records of this host with its facts, and return its status."""
    broken = await service.stats.broken_sessions()
    health = await service.health.read(broken)
    context = service.context
    attention = [
        *(
            Attention(subject="", sentence=change.sentence, command=change.command)
            for change in context.identity_changes
        ),
        *health.attention,
        *health.summary.late(context.now()),
    ]
    root, space, condition = context.settings.root, None, ""
    if root:
        try:
            space = await service.capacity("")
        except ZfsiloError as error:
            attention.insert(0, Attention(subject="", sentence=error.message))
        else:
            condition = nearly_full(space, context.settings)
        if condition:
            attention.insert(0, Attention(subject="", sentence=condition))
    attention[:0] = [
        Attention(subject="", sentence=hold.sentence, command=hold.command)
        for hold in context.ownership.holds
    ]
    return HostStatus(root, space, condition, health.states, health.summary, _distinct(attention))


def _distinct(attention: list[Attention]) -> list[Attention]:
    """Leave out what an earlier sentence about the host says, as of its pool."""
    kept: list[Attention] = []
    said: list[str] = []
    for one in attention:
        if any(one.sentence in sentence for sentence in said):
            continue
        kept.append(one)
        if not one.subject:
            said.append(one.sentence)
    return kept
