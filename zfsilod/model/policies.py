"""Replication policies, and the outcomes of their runs. No I/O."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import RunOutcome, TimedPolicy

if TYPE_CHECKING:
    from typing import ClassVar


class ReplicationPolicy(TimedPolicy, tag="ReplicationPolicy"):
    """When which volumes are sent to a peer."""

    NOUN: ClassVar[str] = "replication policy"
    UNIT: ClassVar[str] = "zfsilo-replicate"
    DOES: ClassVar[str] = "replication"
    peer: str  # a server of servers.d
    volumes: tuple[str, ...] = ()  # ids, besides those that the labels select
    bytes_per_second: int = 0  # of all its streams together; 0: no limit


class ReplicationOutcome(RunOutcome, tag="ReplicationOutcome"):
    """The outcome of the last run of a replication policy; `missed` while it runs."""
