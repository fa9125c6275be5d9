"""Requests on replication policies: create, update and delete. They change records only.

A policy sends volumes by the requests of replication.py: service/replication_policies.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.policies import ReplicationOutcome, ReplicationPolicy
from zfsilod.model.validation import check_id, check_labels
from zfsilod.requests import policies
from zfsilod.requests.replication import check_rate
from zfsilod.requests.request import Plan, Request, View

if TYPE_CHECKING:
    from zfsilod.model.record import Pairs
    from zfsilod.requests.context import Context

FIELDS = ("peer", "calendar", "selector", "volumes", "bytes_per_second", "max_delay_seconds")
MAX_VOLUMES = 1000  # that a policy names


class CreateReplicationPolicy(Request[None]):
    """Create a replication policy; its timer follows."""

    kind = "create-replication-policy"
    on_pool = False
    resource = ("replicationPolicies", "id")
    id: str
    peer: str
    calendar: str
    selector: Pairs = ()
    volumes: tuple[str, ...] = ()
    bytes_per_second: int = 0
    max_delay_seconds: int = 0

    async def gather(self, context: Context, operation_id: str) -> None:
        await policies.check_calendar(context, self.calendar)
        check_peer(context, self.peer)

    def plan(self, view: View, inputs: None) -> Plan:
        policies.check_new(view, self.id, "send")
        values = {name: getattr(self, name) for name in FIELDS}
        new = checked(ReplicationPolicy(id=self.id, **values))
        return policies.creation(view, new, FIELDS, f"create replication policy {self.id}")


class UpdateReplicationPolicy(Request[None]):
    """Change the fields in `mask` of a replication policy."""

    kind = "update-replication-policy"
    on_pool = False
    resource = ("replicationPolicies", "id")
    id: str
    mask: tuple[str, ...]
    peer: str = ""
    calendar: str = ""
    selector: Pairs = ()
    volumes: tuple[str, ...] = ()
    bytes_per_second: int = 0
    max_delay_seconds: int = 0
    etag: str = ""
    select_all: bool = False  # it may lose its last label or name, and select every volume

    async def gather(self, context: Context, operation_id: str) -> None:
        if "calendar" in self.mask:
            await policies.check_calendar(context, self.calendar)
        if "peer" in self.mask:
            check_peer(context, self.peer)

    def plan(self, view: View, inputs: None) -> Plan:
        policy = policies.need_policy(view.txn, ReplicationPolicy, self.id, self.etag)
        policies.check_mask(self.mask, FIELDS)
        changed = checked(policy.but(**{name: getattr(self, name) for name in self.mask}))
        title = f"update replication policy {self.id}"
        return policies.change(view, policy, changed, title, select_all=self.select_all)


class DeleteReplicationPolicy(Request[None]):
    """Delete a replication policy. What is kept for its peer stays until the replication ends."""

    descends = True
    kind = "delete-replication-policy"
    on_pool = False
    resource = ("replicationPolicies", "id")
    id: str
    etag: str = ""

    def plan(self, view: View, inputs: None) -> Plan:
        policy = policies.need_policy(view.txn, ReplicationPolicy, self.id, self.etag)
        title = f"delete replication policy {self.id}, and keep its replicas"
        return policies.deletion(policy, ReplicationOutcome(id=self.id), title)


def check_peer(context: Context, peer: str) -> None:
    """Raise NotFound (NO_SERVER) when this host has not joined a server of this name."""
    context.servers.access(check_id(peer, "server name"))


def checked(policy: ReplicationPolicy) -> ReplicationPolicy:
    """Return the policy in its stored form when its fields are valid. Raises InvalidArgument."""
    policies.check_delay(policy.max_delay_seconds)
    check_rate(policy.bytes_per_second)
    if len(policy.volumes) > MAX_VOLUMES:
        raise InvalidArgument(f"the policy names more than {MAX_VOLUMES} volumes; use labels")
    volumes = {check_id(volume, "volume id") for volume in policy.volumes}
    return policy.but(selector=check_labels(policy.selector), volumes=tuple(sorted(volumes)))
