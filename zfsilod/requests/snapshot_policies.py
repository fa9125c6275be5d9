"""Requests on snapshot policies: create, update and delete. They change records only.

A policy takes and deletes snapshots by the requests of snapshots.py: service/policies.py.
"""

from __future__ import annotations

import re
import uuid
from functools import partial
from typing import TYPE_CHECKING

from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zfsilod.model.records import PolicyOutcome, SnapshotPolicy
from zfsilod.model.retention_grid import parse_grid, show_grid
from zfsilod.model.validation import check_etag, check_id, check_labels
from zfsilod.requests.request import Plan, Request, View, drop, put

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

FIELDS = ("calendar", "grid", "selector", "grouped", "max_delay_seconds")
MAX_ID = 40  # the ids of its snapshots have the time and the volume too
MAX_POLICIES = 100
MAX_DELAY_S = 86400
CALENDAR = re.compile(r"[A-Za-z0-9*][A-Za-z0-9 *:,./~_+-]{0,199}")


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
        await check_calendar(context, self.calendar)

    def plan(self, view: View, inputs: None) -> Plan:
        if len(check_id(self.id, "policy id")) > MAX_ID:
            raise InvalidArgument(
                f"policy id {self.id[:80]!r} has more than {MAX_ID} characters", reason="BAD_ID"
            )
        if not view.settings.root:
            raise FailedPrecondition(
                "this host has no volumes of its own to take snapshots of: set server.root",
                reason="NO_ROOT",
            )
        existing = view.txn.get(SnapshotPolicy, self.id)
        values = {name: getattr(self, name) for name in FIELDS}
        new = checked(
            SnapshotPolicy(id=self.id, created_at=view.now, updated_at=view.now, **values)
        )
        if existing is not None:
            differing = [name for name in FIELDS if getattr(existing, name) != getattr(new, name)]
            if differing:
                raise AlreadyExists(
                    f"policy {self.id} exists with another {', '.join(differing)}", policy=self.id
                )
            return Plan(title=f"create policy {self.id}", claims=(claim_of(self.id),))
        if sum(1 for _policy in view.txn.scan(SnapshotPolicy)) >= MAX_POLICIES:
            raise ResourceExhausted(
                f"there are {MAX_POLICIES} snapshot policies already", reason="TOO_MANY"
            )
        return Plan(
            title=f"create policy {self.id}",
            claims=(claim_of(self.id),),
            commit=(put(new.but(uid=uuid.uuid4().hex)),),
        )


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

    async def gather(self, context: Context, operation_id: str) -> None:
        if "calendar" in self.mask:
            await check_calendar(context, self.calendar)

    def plan(self, view: View, inputs: None) -> Plan:
        policy = need_policy(view.txn, self.id)
        check_etag(self.etag, policy.revision)
        unknown = set(self.mask) - set(FIELDS)
        if unknown or not self.mask:
            raise InvalidArgument(
                f"invalid update mask {', '.join(sorted(unknown)) or '(empty)'}: allowed are "
                f"{', '.join(FIELDS)}",
                reason="BAD_MASK",
            )
        changes = {name: getattr(self, name) for name in self.mask}
        return Plan(
            title=f"update policy {self.id}",
            claims=(claim_of(self.id),),
            commit=(put(checked(policy.but(**changes, updated_at=view.now))),),
        )


class DeleteSnapshotPolicy(Request[None]):
    """Delete a snapshot policy. Its snapshots are kept, and nothing prunes them any more."""

    descends = True
    kind = "delete-snapshot-policy"
    on_pool = False
    resource = ("snapshotPolicies", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        policy = need_policy(view.txn, self.id)
        check_etag(self.etag, policy.revision)
        return Plan(
            title=f"delete policy {self.id}, and keep its snapshots",
            claims=(claim_of(self.id),),
            commit=(drop(policy), drop(PolicyOutcome(id=self.id))),
        )


async def check_calendar(context: Context, calendar: str) -> None:
    """Raise InvalidArgument when systemd does not take this text for OnCalendar=."""
    problem = "it has other characters than a calendar of systemd.time(7)"
    if CALENDAR.fullmatch(calendar):
        problem = await context.look(partial(context.machine.calendar_problem, calendar))
    if problem:
        raise InvalidArgument(
            f"invalid calendar {calendar[:80]!r}: {problem}; use one such as daily or "
            "'Mon..Fri 02:30' (systemd-analyze calendar)",
            reason="BAD_CALENDAR",
        )


def checked(policy: SnapshotPolicy) -> SnapshotPolicy:
    """Return the policy in its stored form when its fields are valid. Raises InvalidArgument."""
    if not 0 <= policy.max_delay_seconds <= MAX_DELAY_S:
        raise InvalidArgument(f"max_delay_seconds must be 0 to {MAX_DELAY_S}")
    return policy.but(
        grid=show_grid(parse_grid(policy.grid)), selector=check_labels(policy.selector)
    )


def need_policy(txn: Transaction, policy_id: str) -> SnapshotPolicy:
    """Return a snapshot policy. Raises NotFound."""
    policy = txn.get(SnapshotPolicy, check_id(policy_id, "policy id"))
    if policy is None:
        raise NotFound(f"there is no snapshot policy {policy_id}", policy=policy_id)
    return policy


def outcome_of(txn: Transaction, policy_id: str) -> PolicyOutcome:
    """Return the outcome of the last run of a policy, an empty one before the first."""
    return txn.get(PolicyOutcome, policy_id) or PolicyOutcome(id=policy_id)


def claim_of(policy_id: str) -> str:
    """Return the claim to a policy."""
    return f"snapshotpolicy/{policy_id}"
