"""SnapshotService: snapshot policies."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from zfsilo.v1 import snapshot_pb2

from zfsilod.api.rpc import filter as filters
from zfsilod.api.rpc.pages import Pages, collect
from zfsilod.model.errors import NotFound
from zfsilod.model.policies import PolicyOutcome, SnapshotPolicy
from zfsilod.requests.policies import need_policy, outcome_of
from zfsilod.requests.snapshot_policies import (
    CreateSnapshotPolicy,
    DeleteSnapshotPolicy,
    UpdateSnapshotPolicy,
)
from zfsilod.storage.selection import selected, volume_labels
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.api.rpc.call import Call
    from zfsilod.requests.request import Request
    from zfsilod.storage.transaction import Transaction

FIELDS = ("id",)
MAX_VOLUMES = 1000  # in one message


class SnapshotPolicyMethods:
    """The methods of zfsilo.v1.SnapshotService on policies."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def CreateSnapshotPolicy(
        self, message: snapshot_pb2.CreateSnapshotPolicyRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotPolicyResponse:
        request = CreateSnapshotPolicy(id=message.policy_id, **_values(message.policy))
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def GetSnapshotPolicy(
        self, message: snapshot_pb2.GetSnapshotPolicyRequest, call: Call
    ) -> snapshot_pb2.SnapshotPolicy:
        return await call.scan(partial(_find, policy_id=convert.policy_id(message.name)))

    async def ListSnapshotPolicies(
        self, message: snapshot_pb2.ListSnapshotPoliciesRequest, call: Call
    ) -> snapshot_pb2.ListSnapshotPoliciesResponse:
        page = self._pages.parse("ListSnapshotPolicies", message)
        wanted = filters.parse(message.filter, FIELDS)

        def read(txn: Transaction) -> tuple[list[snapshot_pb2.SnapshotPolicy], str]:
            return collect(
                txn.scan(SnapshotPolicy, page.after),
                page,
                key=lambda policy: policy.id,
                wanted=lambda policy: wanted(lambda _field: (policy.id,)),
                show=partial(_message, txn, volume_labels(txn)),
            )

        policies, after = await call.scan(read)
        return snapshot_pb2.ListSnapshotPoliciesResponse(
            policies=policies, next_page_token=self._pages.token(page, after)
        )

    async def UpdateSnapshotPolicy(
        self, message: snapshot_pb2.UpdateSnapshotPolicyRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotPolicyResponse:
        request = UpdateSnapshotPolicy(
            id=convert.policy_id(message.policy.name),
            mask=tuple(message.update_mask.paths),
            etag=message.etag,
            select_all=message.select_all,
            **_values(message.policy),
        )
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def DeleteSnapshotPolicy(
        self, message: snapshot_pb2.DeleteSnapshotPolicyRequest, call: Call
    ) -> snapshot_pb2.MutateSnapshotPolicyResponse:
        request = DeleteSnapshotPolicy(id=convert.policy_id(message.name), etag=message.etag)
        return await _change(call, request, request.id, validate_only=message.validate_only)

    async def RunSnapshotPolicy(
        self, message: snapshot_pb2.RunSnapshotPolicyRequest, call: Call
    ) -> snapshot_pb2.RunSnapshotPolicyResponse:
        policy_id, policies = convert.policy_id(message.name), call.service.policies
        planned = message.validate_only
        work = policies.plan if planned else policies.run
        done = await call.shielded(work(policy_id, caller=call.caller))
        done.check(policy_id)
        return snapshot_pb2.RunSnapshotPolicyResponse(
            policy=await call.scan(partial(_find, policy_id=policy_id)),
            operations=[convert.operation(one, planned=planned) for one in done.operations],
        )


async def _change(
    call: Call, request: Request[Any], policy_id: str, *, validate_only: bool
) -> snapshot_pb2.MutateSnapshotPolicyResponse:
    operation = await call.change(request, validate_only=validate_only)
    response = snapshot_pb2.MutateSnapshotPolicyResponse(operation=operation)
    if not validate_only:
        with suppress(NotFound):
            response.policy.CopyFrom(await call.scan(partial(_find, policy_id=policy_id)))
    return response


def _values(policy: snapshot_pb2.SnapshotPolicy) -> dict[str, Any]:
    """Return the parameters of a policy, by the fields of the requests."""
    return {
        "calendar": policy.calendar,
        "grid": policy.grid,
        "selector": convert.as_pairs(policy.selector),
        "grouped": policy.grouped,
        "max_delay_seconds": policy.max_delay_seconds,
    }


def _find(txn: Transaction, policy_id: str) -> snapshot_pb2.SnapshotPolicy:
    policy = need_policy(txn, SnapshotPolicy, policy_id)
    return _message(txn, volume_labels(txn), policy)


def _message(
    txn: Transaction, labels: dict[str, set[tuple[str, str]]], record: SnapshotPolicy
) -> snapshot_pb2.SnapshotPolicy:
    outcome = outcome_of(txn, PolicyOutcome, record.id)
    return convert.snapshot_policy(record, outcome, selected(record, labels)[:MAX_VOLUMES])
