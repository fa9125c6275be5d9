"""What the requests on policies of all kinds share: their checks and their plans.

A policy is a record only: its timer and its runs follow (service/policy_timers.py, policies.py).
"""

from __future__ import annotations

import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zfsilod.model.validation import check_etag, check_id
from zfsilod.requests.request import Plan, View, drop, put

if TYPE_CHECKING:
    from zfsilod.model.policies import RunOutcome, TimedPolicy
    from zfsilod.requests.context import Context
    from zfsilod.storage.transaction import Transaction

P = TypeVar("P", bound="TimedPolicy")
R = TypeVar("R", bound="RunOutcome")
MAX_ID = 40  # the ids of the snapshots of a policy have the time and the volume too
MAX_POLICIES = 100  # of each kind
MAX_DELAY_S = 86400
CALENDAR = re.compile(r"[A-Za-z0-9*][A-Za-z0-9 *:,./~_+-]{0,199}")


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


def check_delay(seconds: int) -> int:
    """Return the random delay of a timer when it is valid. Raises InvalidArgument."""
    if not 0 <= seconds <= MAX_DELAY_S:
        raise InvalidArgument(f"max_delay_seconds must be 0 to {MAX_DELAY_S}")
    return seconds


def check_new(view: View, policy_id: str, what_for: str) -> None:
    """Raise InvalidArgument for an invalid id, FailedPrecondition without a dataset root."""
    if len(check_id(policy_id, "policy id")) > MAX_ID:
        raise InvalidArgument(
            f"policy id {policy_id[:80]!r} has more than {MAX_ID} characters", reason="BAD_ID"
        )
    if not view.settings.root:
        raise FailedPrecondition(
            f"this host has no volumes of its own to {what_for}: set server.root",
            reason="NO_ROOT",
        )


def creation(view: View, new: TimedPolicy, fields: tuple[str, ...], title: str) -> Plan:
    """Return the plan that stores a new policy, or that of an equal one, which changes nothing."""
    kind = type(new)
    existing = view.txn.get(kind, new.id)
    if existing is not None:
        differing = [name for name in fields if getattr(existing, name) != getattr(new, name)]
        if differing:
            raise AlreadyExists(
                f"policy {new.id} exists with another {', '.join(differing)}", policy=new.id
            )
        return Plan(title=title, claims=(claim_of(new),))
    if sum(1 for _policy in view.txn.scan(kind)) >= MAX_POLICIES:
        raise ResourceExhausted(
            f"there are {MAX_POLICIES} {kind.NOUN.replace('policy', 'policies')} already",
            reason="TOO_MANY",
        )
    new = new.but(uid=uuid.uuid4().hex, created_at=view.now, updated_at=view.now)
    return Plan(title=title, claims=(claim_of(new),), commit=(put(new),))


def check_mask(mask: tuple[str, ...], fields: tuple[str, ...]) -> None:
    """Raise InvalidArgument when an update mask is empty, or has other fields."""
    unknown = set(mask) - set(fields)
    if unknown or not mask:
        raise InvalidArgument(
            f"invalid update mask {', '.join(sorted(unknown)) or '(empty)'}: allowed are "
            f"{', '.join(fields)}",
            reason="BAD_MASK",
        )


def change(
    view: View, policy: TimedPolicy, changed: TimedPolicy, title: str, *, select_all: bool
) -> Plan:
    """Return the plan that stores a changed policy.

    Raises InvalidArgument (SELECTS_ALL) when it loses its last label or name, unless `select_all`.
    """
    if changed.selects_all and not (policy.selects_all or select_all):
        raise InvalidArgument(
            f"without that, policy {policy.id} would select every volume; delete it, or create it "
            "with --update and without a selection to select them all (select_all)",
            reason="SELECTS_ALL",
            policy=policy.id,
        )
    changes = (put(changed.but(updated_at=view.now)),)
    return Plan(title=title, claims=(claim_of(changed),), commit=changes)


def deletion(policy: TimedPolicy, outcome: RunOutcome, title: str) -> Plan:
    """Return the plan that deletes a policy."""
    return Plan(title=title, claims=(claim_of(policy),), commit=(drop(policy), drop(outcome)))


def need_policy(txn: Transaction, kind: type[P], policy_id: str, etag: str = "") -> P:
    """Return a policy of a kind. Raises NotFound, and Busy when it has changed since the etag."""
    policy = txn.get(kind, check_id(policy_id, "policy id"))
    if policy is None:
        raise NotFound(f"there is no {kind.NOUN} {policy_id}", policy=policy_id)
    check_etag(etag, policy.revision)
    return policy


def outcome_of(txn: Transaction, kind: type[R], policy_id: str) -> R:
    """Return the outcome of the last run of a policy, an empty one before the first."""
    return txn.get(kind, policy_id) or kind(id=policy_id)


def claim_of(policy: TimedPolicy) -> str:
    """Return the claim to a policy."""
    return f"{policy.bucket()}/{policy.id}"
