"""Policies that timers start: what those of all kinds have, and those of replication. No I/O."""

from __future__ import annotations

from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Pairs, Stored

if TYPE_CHECKING:
    from typing import ClassVar


class TimedPolicy(Stored):
    """What is done with which volumes, and when."""

    NOUN: ClassVar[str]  # "snapshot policy"
    UNIT: ClassVar[str]  # of its timer and its service, before the @
    DOES: ClassVar[str]  # "snapshots": in the description of the timer
    id: str
    uid: str = ""  # never reused; "": of a store that had none, as in its snapshots
    calendar: str  # OnCalendar= of systemd.timer(5)
    selector: Pairs = ()  # labels that a volume has; (): every volume
    max_delay_seconds: int = 0  # RandomizedDelaySec= of systemd.timer(5)
    created_at: int = 0
    updated_at: int = 0

    @property
    def selects_all(self) -> bool:
        """Whether it selects every volume."""
        return not self.selector

    @property
    def timer(self) -> str:
        """The name of its timer."""
        return f"{self.UNIT}@{self.id}.timer"

    @property
    def timer_text(self) -> str:
        """The description of its timer; another one when the timer has to be another."""
        delay = f", up to {self.max_delay_seconds} s later" if self.max_delay_seconds else ""
        return f"zfsilo: {self.DOES} of policy {self.id} ({self.calendar}{delay})"


class RunOutcome(Stored):
    """The outcome of the last run of a policy."""

    id: str  # of the policy
    ran_at: int = 0
    succeeded_at: int = 0  # of the last run without a failure
    failures: tuple[str, ...] = ()  # of the last run
    missed: bool = False  # it runs, failed while the pool was held, or was cut off: it follows
    timer_failure: str = ""  # why the timer could not be started

    @property
    def all_failures(self) -> tuple[str, ...]:
        """The sentences that an administrator sees."""
        return (*self.failures, *filter(None, [self.timer_failure]))

    @property
    def failed(self) -> int:
        """The number of its failures."""
        return len(self.all_failures)


class SnapshotPolicy(TimedPolicy, tag="SnapshotPolicy"):
    """When snapshots of which volumes are taken, and which of them are kept."""

    NOUN: ClassVar[str] = "snapshot policy"
    UNIT: ClassVar[str] = "zfsilo-snapshot"
    DOES: ClassVar[str] = "snapshots"
    grid: str  # rules of retention_grid.py
    grid_version: int = 0  # later grids have larger ones; also in the marks of its snapshots
    grouped: bool = False  # all volumes at one moment, in one snapshot group


class PolicyOutcome(RunOutcome, tag="PolicyOutcome"):
    """The outcome of the last run of a snapshot policy, and of its last deletions."""

    prune_failures: tuple[str, ...] = ()  # of the last deletions by the grid

    @property
    def all_failures(self) -> tuple[str, ...]:
        """The failures of the last run, of the last deletions, and of the timer."""
        return (*self.failures, *self.prune_failures, *filter(None, [self.timer_failure]))


class ReplicationPolicy(TimedPolicy, tag="ReplicationPolicy"):
    """When which volumes are sent to a peer."""

    NOUN: ClassVar[str] = "replication policy"
    UNIT: ClassVar[str] = "zfsilo-replicate"
    DOES: ClassVar[str] = "replication"
    peer: str  # a server of servers.d
    volumes: tuple[str, ...] = ()  # ids, besides those that the labels select
    bytes_per_second: int = 0  # of all its streams together; 0: no limit

    @property
    def selects_all(self) -> bool:
        """Whether it selects every volume."""
        return not self.selector and not self.volumes


class ReplicationOutcome(RunOutcome, tag="ReplicationOutcome"):
    """The outcome of the last run of a replication policy."""
