"""The D-Bus methods: mutations as a table of requests, queries as functions."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from zfsilod.api.dbus.contract import HOST, MANAGER, OPERATION, SNAPSHOT, VOLUME, path_of
from zfsilod.api.dbus.options import check_choice, read_options
from zfsilod.api.dbus.properties import capacity_of
from zfsilod.model.host_facts import SECTIONS
from zfsilod.model.records import Host, Operation, Snapshot
from zfsilod.model.ulid import first_ulid
from zfsilod.model.validation import check_id
from zfsilod.model.words import STATES, OperationState
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.clones import need_snapshot
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost, UpdateHost
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.snapshots import CreateSnapshot, DeleteSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume, need_host
from zfsilod.requests.whole_paths import AttachVolume, DetachVolume
from zfsilod.service.drift import check_facts
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.ownership import bind_machine
from zfsilod.service.pool_scan import ZvolToAdopt, find_zvol
from zfsilod.service.status import MAX_ATTENTION, host_status
from zfsilod.storage.volume_view import page, volume_view

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dbus_next import Variant

    from zfsilod.api.dbus.objects import Objects
    from zfsilod.model.identity import Caller
    from zfsilod.requests.request import Request
    from zfsilod.service.service import Service
    from zfsilod.storage.volume_view import VolumeView

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
NOT_IN_MASK = ("id", "etag", "limit_bytes")  # fields that an update mask never contains


class Mutation(NamedTuple):
    """A method that submits a request: the fields of its arguments, and its options."""

    request: type[Request[Any]] | type[ZvolToAdopt]
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()
    fixed: tuple[tuple[str, object], ...] = ()


# The first argument of a method of an object other than the Manager is the id of the object.
MUTATIONS = {
    f"{MANAGER}.CreateVolume": Mutation(
        CreateVolume,
        ("id", "capacity_bytes"),
        (
            "limit_bytes",
            "thin",
            "mode",
            "properties",
            "labels",
            "hosts",
            "access_modes",
            "transport",
            "encrypt",
            "source_snapshot",
            "source_volume",
        ),
    ),
    f"{MANAGER}.UndeleteVolume": Mutation(UndeleteVolume, ("id",), ("uid",)),
    f"{MANAGER}.AdoptVolume": Mutation(ZvolToAdopt, ("dataset",), ("id", "accept_copy")),
    f"{MANAGER}.Attach": Mutation(
        AttachVolume,
        ("server", "volume", "path"),
        (
            "local_name",
            "state",
            "restore",
            "publish_if_needed",
            "transport",
            "epoch",
            "staging_path",
            "fs_type",
            "mount_options",
            "readonly",
        ),
    ),
    f"{MANAGER}.Connect": Mutation(
        Connect,
        ("server", "volume"),
        ("local_name", "restore", "publish_if_needed", "transport", "epoch"),
    ),
    f"{MANAGER}.RegisterHost": Mutation(
        CreateHost,
        ("id",),
        ("iqn", "nqn", "addresses", "labels", "max_attachments"),
        (("register", True),),
    ),
    f"{MANAGER}.RemoveOrphans": Mutation(RemoveOrphans, ("names",), ("force",)),
    f"{MANAGER}.DeleteHost": Mutation(DeleteHost, ("id",), ("etag",)),
    f"{HOST}.Update": Mutation(
        UpdateHost, ("id",), ("iqn", "nqn", "addresses", "labels", "max_attachments", "etag")
    ),
    f"{VOLUME}.Snapshot": Mutation(CreateSnapshot, ("volume", "id"), ("labels",)),
    f"{SNAPSHOT}.Delete": Mutation(DeleteSnapshot, ("id",), ("etag",)),
    f"{VOLUME}.Delete": Mutation(
        DeleteVolume, ("id",), ("etag", "dependents", "record_only", "unpublish")
    ),
    f"{VOLUME}.Update": Mutation(
        UpdateVolume,
        ("id",),
        ("capacity_bytes", "limit_bytes", "properties", "labels", "hosts", "etag"),
    ),
    f"{VOLUME}.Resize": Mutation(UpdateVolume, ("id", "capacity_bytes"), ("limit_bytes", "etag")),
    f"{VOLUME}.Publish": Mutation(
        Publish, ("volume", "host"), ("access_mode", "readonly", "transport", "force")
    ),
    f"{VOLUME}.Unpublish": Mutation(Unpublish, ("volume", "host"), ("fence", "grace_s")),
    f"{VOLUME}.RotateSecrets": Mutation(RotateSecrets, ("volume", "host"), ("force",)),
    f"{VOLUME}.Detach": Mutation(DetachVolume, ("id",), ("state", "force")),
    f"{VOLUME}.Disconnect": Mutation(Disconnect, ("id",), ("force",)),
    f"{VOLUME}.Stage": Mutation(Stage, ("id", "path"), ("fs_type", "mount_options", "readonly")),
    f"{VOLUME}.Unstage": Mutation(Unstage, ("id", "path"), ("force",)),
    f"{VOLUME}.Mount": Mutation(MountAt, ("id", "path"), ("readonly",)),
    f"{VOLUME}.Unmount": Mutation(UnmountFrom, ("id", "path"), ("force",)),
    f"{VOLUME}.Grow": Mutation(Grow, ("id",)),
    f"{VOLUME}.Sync": Mutation(SyncVolume, ("id",)),
}


class Methods:
    """Calls of methods, on the service and the objects."""

    def __init__(self, service: Service, objects: Objects) -> None:
        self.service = service
        self.objects = objects

    async def call(self, method: str, arguments: list[Any], caller: Caller) -> list[Any]:
        """Call a method by its full name; the first argument is the id of its object, if any."""
        mutation = MUTATIONS.get(method)
        if mutation is None:
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


def make_request(
    mutation: Mutation, arguments: list[Any], options: dict[str, Any]
) -> Request[Any] | ZvolToAdopt:
    """Return the request of a call."""
    values = (tuple(value) if isinstance(value, list) else value for value in arguments)
    fields: dict[str, Any] = dict(zip(mutation.arguments, values, strict=True))
    fields |= options | dict(mutation.fixed)
    if mutation.request in (AttachVolume, Connect):
        fields.setdefault("id", fields["volume"])
    if "mask" in mutation.request.FIELDS:
        fields["mask"] = tuple(name for name in fields if name not in NOT_IN_MASK)
    return mutation.request(**fields)


def _only_plan(options: dict[str, Variant]) -> bool:
    return bool(read_options(options, ("validate_only",)).get("validate_only"))


def _limit(fields: dict[str, Any]) -> int:
    return min(fields.get("page_size") or PAGE_SIZE, MAX_PAGE_SIZE)


def _after(fields: dict[str, Any]) -> str:
    token = str(fields.get("page_token", ""))
    return token and check_id(token, "page token")
