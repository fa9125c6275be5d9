"""Requests on snapshot policies: create, update and delete. They change records only.

A policy takes and deletes snapshots by the requests of snapshots.py: service/policies.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.model.retention_grid import parse_grid, show_grid
from zfsilod.model.validation import check_labels
from zfsilod.requests import policies
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs
    from zfsilod.requests.context import Context

FIELDS = ("calendar", "grid", "selector", "grouped", "max_delay_seconds")


class CreateSnapshotPolicy(Request[None]):
    """Create a snapshot policy; its timer follows."""

    kind = "create-snapshot-policy"
    on_pool = False
    resource = ("snapshotPolicies", "id")
    id: str
    calendar: str
    grid: str
    selector: Pairs = ()
    grouped: bool = False
    max_delay_seconds: int = 0

    async def gather(self, context: Context, operation_id: str) -> None:
        await policies.check_calendar(context, self.calendar)

    def plan(self, view: View, inputs: None) -> Plan:
        policies.check_new(view, self.id, "take snapshots of")
        values = {name: getattr(self, name) for name in FIELDS}
        new = checked(SnapshotPolicy(id=self.id, grid_version=view.now, **values))
        return policies.creation(view, new, FIELDS, f"create policy {self.id}")


class UpdateSnapshotPolicy(Request[None]):
    """Change the fields in `mask` of a snapshot policy."""

    kind = "update-snapshot-policy"
    on_pool = False
    resource = ("snapshotPolicies", "id")
    id: str
    mask: tuple[str, ...]
    calendar: str = ""
    grid: str = ""
    selector: Pairs = ()
    grouped: bool = False
    max_delay_seconds: int = 0
    etag: str = ""
    select_all: bool = False  # it may lose its last label, and select every volume

    async def gather(self, context: Context, operation_id: str) -> None:
        if "calendar" in self.mask:
            await policies.check_calendar(context, self.calendar)

    def plan(self, view: View, inputs: None) -> Plan:
        policy = policies.need_policy(view.txn, SnapshotPolicy, self.id, self.etag)
        policies.check_mask(self.mask, FIELDS)
        changed = checked(policy.but(**{name: getattr(self, name) for name in self.mask}))
        if "grid" in self.mask:  # also the same one: of a restored store it is confirmed
            changed = changed.but(grid_version=max(policy.grid_version + 1, view.now))
        title = f"update policy {self.id}"
        return policies.change(view, policy, changed, title, select_all=self.select_all)


class DeleteSnapshotPolicy(Request[None]):
    """Delete a snapshot policy. Its snapshots are kept, and nothing prunes them any more."""

    descends = True
    kind = "delete-snapshot-policy"
    on_pool = False
    resource = ("snapshotPolicies", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        policy = policies.need_policy(view.txn, SnapshotPolicy, self.id, self.etag)
        title = f"delete policy {self.id}, and keep its snapshots"
        return policies.deletion(policy, PolicyOutcome(id=self.id), title)


def checked(policy: SnapshotPolicy) -> SnapshotPolicy:
    """Return the policy in its stored form when its fields are valid. Raises InvalidArgument."""
    policies.check_delay(policy.max_delay_seconds)
    return policy.but(
        grid=show_grid(parse_grid(policy.grid)), selector=check_labels(policy.selector)
    )
