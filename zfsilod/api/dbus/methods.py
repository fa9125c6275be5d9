"""The D-Bus methods: mutations submit the request of mutations.py, queries are functions."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

from zfsilod.api.dbus.contract import (
    MANAGER,
    OPERATION,
    REPLICATION_POLICY,
    SNAPSHOT_POLICY,
    VOLUME,
    path_of,
)
from zfsilod.api.dbus.mutations import MUTATIONS, make_request
from zfsilod.api.dbus.options import check_choice, read_options
from zfsilod.api.dbus.properties import capacity_of
from zfsilod.model.host_facts import SECTIONS
from zfsilod.model.policies import ReplicationPolicy, SnapshotPolicy
from zfsilod.model.records import Host, Operation, Snapshot
from zfsilod.model.ulid import first_ulid
from zfsilod.model.validation import check_id
from zfsilod.model.words import STATES, OperationState
from zfsilod.requests.clones import need_snapshot
from zfsilod.requests.policies import need_policy
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import need_host
from zfsilod.service.drift import check_facts
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.ownership import bind_machine
from zfsilod.service.pool_scan import ZvolToAdopt, find_zvol
from zfsilod.service.status import MAX_ATTENTION, host_status
from zfsilod.storage.volume_view import page, volume_view

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dbus_next import Variant

    from zfsilod.api.dbus.mutations import Mutation
    from zfsilod.api.dbus.objects import Objects
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.policy_runs import PolicyRunner
    from zfsilod.service.service import Service
    from zfsilod.storage.volume_view import VolumeView

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


class Methods:
    """Calls of methods, on the service and the objects."""

    def __init__(self, service: Service, objects: Objects) -> None:
        self.service = service
        self.objects = objects

    async def call(self, method: str, arguments: list[Any], caller: Caller) -> list[Any]:
        """Call a method by its full name; the first argument is the id of its object, if any."""
        mutation = MUTATIONS.get(method)
        if mutation is None:
            if method in RUNS:
                return await RUNS[method](self, *arguments, caller=caller)
            return await QUERIES[method](self, *arguments)
        *arguments, options = arguments
        fields = read_options(options, (*mutation.options, "validate_only"))
        only_plan = fields.pop("validate_only", False)
        request = await self._request(mutation, arguments, fields)
        if isinstance(request, SyncVolume):
            (await self.service.reconciler.report(request.id, store=not only_plan)).check()
        if only_plan:
            return [self.objects.plan(await self.service.plan(request, caller=caller))]
        operation = await self.service.submit(request, caller=caller)
        return [path_of("operation", operation.id)]

    async def _request(
        self, mutation: Mutation, arguments: list[Any], fields: dict[str, Any]
    ) -> Request[Any]:
        """Return the request of a call; that of an adoption depends on the zvol."""
        request = make_request(mutation, arguments, fields)
        if isinstance(request, ZvolToAdopt):
            return await find_zvol(
                self.service.context,
                request.dataset,
                request.id,
                accept_copy=request.accept_copy,
            )
        return request

    async def get_volume(self, volume_id: str) -> list[Any]:
        with self.service.context.store.read() as txn:
            return [path_of("volume", volume_view(txn, volume_id).id)]

    async def list_volumes(self, options: dict[str, Variant]) -> list[Any]:
        fields = read_options(options, ("page_size", "page_token", "state", "labels"))
        state, labels = fields.get("state"), set(fields.get("labels", ()))
        check_choice("state", state, STATES)

        def wanted(view: VolumeView) -> bool:
            own_labels = set(view.volume.labels) if view.volume else set()
            return state in (None, view.state) and labels <= own_labels

        after, limit = _after(fields), _limit(fields)

        def read() -> tuple[list[VolumeView], str]:
            with self.service.context.store.read() as txn:
                return page(txn, after=after, limit=limit, wanted=wanted)

        views, next_page = await asyncio.to_thread(read)
        rows = [(v.id, path_of("volume", v.id), v.state, capacity_of(v)) for v in views]
        return [rows, next_page]

    async def get_snapshot(self, snapshot_id: str) -> list[Any]:
        with self.service.context.store.read() as txn:
            return [path_of("snapshot", need_snapshot(txn, snapshot_id).id)]

    async def list_snapshots(self, options: dict[str, Variant]) -> list[Any]:
        fields = read_options(options, ("page_size", "page_token", "volume"))
        volume = fields.get("volume")
        snapshots, next_page = await self._page(
            Snapshot, fields, lambda snapshot: volume in (None, snapshot.volume)
        )
        rows = [(s.id, path_of("snapshot", s.id), s.volume, s.size_bytes) for s in snapshots]
        return [rows, next_page]

    async def get_policy(self, policy_id: str) -> list[Any]:
        with self.service.context.store.read() as txn:
            return [path_of("policy", need_policy(txn, SnapshotPolicy, policy_id).id)]

    async def list_policies(self) -> list[Any]:
        with self.service.context.store.read() as txn:
            policies = list(txn.scan(SnapshotPolicy))
        return [[(p.id, path_of("policy", p.id), p.calendar, p.grid) for p in policies]]

    async def run_policy(
        self, policy_id: str, options: dict[str, Variant], *, caller: Caller
    ) -> list[Any]:
        return await self._run(self.service.policies, policy_id, options, caller)

    async def get_replication_policy(self, policy_id: str) -> list[Any]:
        with self.service.context.store.read() as txn:
            policy = need_policy(txn, ReplicationPolicy, policy_id)
        return [path_of("replication", policy.id)]

    async def list_replication_policies(self) -> list[Any]:
        with self.service.context.store.read() as txn:
            policies = list(txn.scan(ReplicationPolicy))
        return [[(p.id, path_of("replication", p.id), p.peer, p.calendar) for p in policies]]

    async def run_replication_policy(
        self, policy_id: str, options: dict[str, Variant], *, caller: Caller
    ) -> list[Any]:
        return await self._run(self.service.replication_policies, policy_id, options, caller)

    async def _run(
        self,
        policies: PolicyRunner[Any, Any],
        policy_id: str,
        options: dict[str, Variant],
        caller: Caller,
    ) -> list[Any]:
        if _only_plan(options):
            planned = await policies.plan(policy_id, caller=caller)
            return [[self.objects.plan(operation) for operation in planned.operations]]
        done = await policies.run(policy_id, caller=caller)
        done.check(policy_id)
        return [[path_of("operation", operation.id) for operation in done.operations]]

    async def get_host(self, host_id: str) -> list[Any]:
        with self.service.context.store.read() as txn:
            return [path_of("host", need_host(txn, host_id).id)]

    async def list_hosts(self, options: dict[str, Variant]) -> list[Any]:
        fields = read_options(options, ("page_size", "page_token"))
        hosts, next_page = await self._page(Host, fields, lambda _host: True)
        return [[(host.id, path_of("host", host.id), host.iqn) for host in hosts], next_page]

    async def get_operation(self, operation_id: str) -> list[Any]:
        return [path_of("operation", self.service.operation(operation_id).id)]

    async def list_operations(self, options: dict[str, Variant]) -> list[Any]:
        fields = read_options(options, ("page_size", "page_token", "since", "state", "subject"))
        state, subject = fields.get("state"), fields.get("subject")
        check_choice("state", state, get_args(OperationState))
        fields["page_token"] = max(_after(fields), first_ulid(fields.get("since", 0)))

        def wanted(operation: Operation) -> bool:
            return state in (None, operation.state) and subject in (None, operation.subject)

        operations, next_page = await self._page(Operation, fields, wanted)
        rows = [(path_of("operation", o.id), o.kind, o.subject, o.state) for o in operations]
        return [rows, next_page]

    async def list_orphans(self) -> list[Any]:
        rows = await find_orphans(self.service.context)
        return [[(orphan.name, orphan.text, list(orphan.users)) for orphan in rows]]

    async def bind_machine(
        self,
        cloned: bool,  # noqa: FBT001 - as on the bus
        options: dict[str, Variant],
    ) -> list[Any]:
        only = _only_plan(options)
        await bind_machine(self.service.context, cloned=cloned, validate_only=only)
        return []

    async def get_capacity(self, root: str) -> list[Any]:
        capacity = await self.service.capacity(root)
        return [capacity.available_bytes, capacity.total_bytes]

    async def stats(self, volume_id: str) -> list[Any]:
        return [await self.service.usage(volume_id)]

    async def probe(self, volume_id: str) -> list[Any]:
        context = self.service.context
        with context.store.read() as txn:
            view = volume_view(txn, volume_id)
        facts = await context.look(partial(check_facts, view, context.machine, context.settings))
        rows = [(SECTIONS.get(f.kind, f.kind), f.text, f.wanted, f.truth, f.problem) for f in facts]
        return [rows]

    async def get_status(self) -> list[Any]:
        status = await host_status(self.service)
        summary, space = status.summary, status.space
        figures = {
            "publications": summary.publications.total(),
            "hosts": summary.hosts,
            "promised_bytes": summary.promised_bytes,
        }
        if space:
            figures["available_bytes"] = space.available_bytes
            figures["total_bytes"] = space.total_bytes
        attention = [(one.subject, one.sentence, one.command) for one in status.attention]
        return [status.root, figures, status.states, attention[:MAX_ATTENTION]]

    async def cancel(self, operation_id: str, options: dict[str, Variant]) -> list[Any]:
        await self.service.cancel(operation_id, validate_only=_only_plan(options))
        return []

    async def repair(self, operation_id: str, options: dict[str, Variant]) -> list[Any]:
        await self.service.repair(operation_id, validate_only=_only_plan(options))
        return []

    async def abandon(self, operation_id: str, options: dict[str, Variant]) -> list[Any]:
        only = _only_plan(options)
        return [list((await self.service.abandon(operation_id, validate_only=only)).behind)]

    async def _page(
        self, kind: type[Any], fields: dict[str, Any], wanted: Callable[[Any], bool]
    ) -> tuple[list[Any], str]:
        """Return one page of records and the token of the next page; reads in a thread."""
        after, limit = _after(fields), _limit(fields)

        def read() -> list[Any]:
            with self.service.context.store.read() as txn:
                return list(islice(filter(wanted, txn.scan(kind, after)), limit + 1))

        records = await asyncio.to_thread(read)
        return records[:limit], records[limit - 1].id if len(records) > limit else ""


QUERIES: dict[str, Callable[..., Coroutine[Any, Any, list[Any]]]] = {
    f"{MANAGER}.GetVolume": Methods.get_volume,
    f"{MANAGER}.ListVolumes": Methods.list_volumes,
    f"{MANAGER}.GetSnapshot": Methods.get_snapshot,
    f"{MANAGER}.ListSnapshots": Methods.list_snapshots,
    f"{MANAGER}.GetSnapshotPolicy": Methods.get_policy,
    f"{MANAGER}.ListSnapshotPolicies": Methods.list_policies,
    f"{MANAGER}.GetReplicationPolicy": Methods.get_replication_policy,
    f"{MANAGER}.ListReplicationPolicies": Methods.list_replication_policies,
    f"{MANAGER}.GetHost": Methods.get_host,
    f"{MANAGER}.ListHosts": Methods.list_hosts,
    f"{MANAGER}.GetOperation": Methods.get_operation,
    f"{MANAGER}.ListOperations": Methods.list_operations,
    f"{MANAGER}.GetCapacity": Methods.get_capacity,
    f"{MANAGER}.GetStatus": Methods.get_status,
    f"{MANAGER}.ListOrphans": Methods.list_orphans,
    f"{MANAGER}.BindMachine": Methods.bind_machine,
    f"{VOLUME}.Stats": Methods.stats,
    f"{VOLUME}.Probe": Methods.probe,
    f"{OPERATION}.Cancel": Methods.cancel,
    f"{OPERATION}.Repair": Methods.repair,
    f"{OPERATION}.Abandon": Methods.abandon,
}
# Methods that submit several requests, in the name of their caller.
RUNS: dict[str, Callable[..., Coroutine[Any, Any, list[Any]]]] = {
    f"{SNAPSHOT_POLICY}.Run": Methods.run_policy,
    f"{REPLICATION_POLICY}.Run": Methods.run_replication_policy,
}


def only_plan(arguments: list[Any]) -> bool:
    """Tell whether the options of a call, its last argument, ask for a dry run."""
    return bool(arguments) and _only_plan(arguments[-1])


def _only_plan(options: dict[str, Variant]) -> bool:
    return bool(read_options(options, ("validate_only",)).get("validate_only"))


def _limit(fields: dict[str, Any]) -> int:
    return min(fields.get("page_size") or PAGE_SIZE, MAX_PAGE_SIZE)


def _after(fields: dict[str, Any]) -> str:
    token = str(fields.get("page_token", ""))
    return token and check_id(token, "page token")
