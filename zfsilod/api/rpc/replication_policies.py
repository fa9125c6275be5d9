"""ReplicationService: replication policies."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import replication_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.errors import DeadlineExceeded, NotFound
from zfsilod.model.policies import ReplicationOutcome, ReplicationPolicy
from zfsilod.requests.policies import need_policy, outcome_of
from zfsilod.requests.replication_policies import (
    CreateReplicationPolicy,
    DeleteReplicationPolicy,
    UpdateReplicationPolicy,
)
from zfsilod.storage.selection import selected, volume_labels
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.requests.request import Request
    from zfsilod.storage.transaction import Transaction

FIELDS = ("id", "peer")
MAX_VOLUMES = 1000  # in one message


class ReplicationPolicyMethods:
    """The methods of zfsilo.v1.ReplicationService."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateReplicationPolicy(
        self, message: replication_pb2.CreateReplicationPolicyRequest, call: Call
    ) -> replication_pb2.MutateReplicationPolicyResponse:
        request = CreateReplicationPolicy(id=message.policy_id, **_values(message.policy))
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def GetReplicationPolicy(
        self, message: replication_pb2.GetReplicationPolicyRequest, call: Call
    ) -> replication_pb2.ReplicationPolicy:
        policy_id = convert.replication_policy_id(message.name)
        return await call.scan(partial(_find, policy_id=policy_id))

    async def ListReplicationPolicies(
        self, message: replication_pb2.ListReplicationPoliciesRequest, call: Call
    ) -> replication_pb2.ListReplicationPoliciesResponse:
        page = self._pages.parse("ListReplicationPolicies", message)
        wanted = filters.parse(message.filter, FIELDS)

        def read(txn: Transaction) -> tuple[list[replication_pb2.ReplicationPolicy], str]:
            return collect(
                txn.scan(ReplicationPolicy, page.after),
                page,
                key=lambda policy: policy.id,
                wanted=lambda policy: wanted(lambda field: (getattr(policy, field),)),
                show=partial(_message, txn, volume_labels(txn)),
            )

        policies, after = await call.scan(read)
        return replication_pb2.ListReplicationPoliciesResponse(
            policies=policies, next_page_token=self._pages.token(page, after)
        )

    async def UpdateReplicationPolicy(
        self, message: replication_pb2.UpdateReplicationPolicyRequest, call: Call
    ) -> replication_pb2.MutateReplicationPolicyResponse:
        request = UpdateReplicationPolicy(
            id=convert.replication_policy_id(message.policy.name),
            mask=tuple(message.update_mask.paths),
            etag=message.etag,
            select_all=message.select_all,
            **_values(message.policy),
        )
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def DeleteReplicationPolicy(
        self, message: replication_pb2.DeleteReplicationPolicyRequest, call: Call
    ) -> replication_pb2.MutateReplicationPolicyResponse:
        policy_id = convert.replication_policy_id(message.name)
        request = DeleteReplicationPolicy(id=policy_id, etag=message.etag)
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def RunReplicationPolicy(
        self, message: replication_pb2.RunReplicationPolicyRequest, call: Call
    ) -> replication_pb2.RunReplicationPolicyResponse:
        policy_id = convert.replication_policy_id(message.name)
        policies = call.service.replication_policies
        planned = message.validate_only
        work = policies.plan if planned else policies.run
        try:
            done = await call.shielded(work(policy_id, caller=call.caller))
        except DeadlineExceeded:
            raise DeadlineExceeded(
                f"replication policy {policy_id} still runs, and goes on: zfsiloctl replication "
                f"show {policy_id}",
                reason="STILL_RUNNING",
            ) from None
        done.check(policy_id)
        return replication_pb2.RunReplicationPolicyResponse(
            policy=await call.scan(partial(_find, policy_id=policy_id)),
            operations=[convert.operation(one, planned=planned) for one in done.operations],
        )


async def _change(
    call: Call, request: Request[Any], policy_id: str, *, validate_only: bool
) -> replication_pb2.MutateReplicationPolicyResponse:
    operation = await call.change(request, validate_only=validate_only)
    response = replication_pb2.MutateReplicationPolicyResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):
            response.policy.CopyFrom(await call.scan(partial(_find, policy_id=policy_id)))
    return response


def _values(policy: replication_pb2.ReplicationPolicy) -> dict[str, Any]:
    """Return the parameters of a policy, by the fields of the requests."""
    return {
        "peer": policy.peer,
        "calendar": policy.calendar,
        "selector": convert.as_pairs(policy.selector),
        "volumes": tuple(map(convert.volume_id, policy.volumes)),
        "bytes_per_second": policy.bytes_per_second,
        "max_delay_seconds": policy.max_delay_seconds,
    }


def _find(txn: Transaction, policy_id: str) -> replication_pb2.ReplicationPolicy:
    policy = need_policy(txn, ReplicationPolicy, policy_id)
    return _message(txn, volume_labels(txn), policy)


def _message(
    txn: Transaction, labels: dict[str, set[tuple[str, str]]], record: ReplicationPolicy
) -> replication_pb2.ReplicationPolicy:
    outcome = outcome_of(txn, ReplicationOutcome, record.id)
    return convert.replication_policy(record, outcome, selected(record, labels)[:MAX_VOLUMES])
