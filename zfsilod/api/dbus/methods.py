"""What each method on the bus does: the requests as a table, the questions as functions."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from zfsilod.api.dbus.contract import HOST, MANAGER, OPERATION, SNAPSHOT, VOLUME, path_of
from zfsilod.api.dbus.properties import capacity_of
from zfsilod.model.errors import InvalidArgument
from zfsilod.model.record import pairs
from zfsilod.model.records import (
    STATES,
    AccessMode,
    Host,
    Mode,
    Operation,
    OperationState,
    Restore,
    Snapshot,
    Transport,
)
from zfsilod.requests import orphans
from zfsilod.requests.attach import Connect, Grow, MountAt, Stage
from zfsilod.requests.clones import need_snapshot
from zfsilod.requests.deletion import DeleteVolume, Dependents, UndeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost, UpdateHost
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.request import check_id
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.snapshots import CreateSnapshot, DeleteSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume, UpdateVolume, need_host, need_volume
from zfsilod.storage.volume_view import page, volume_view

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dbus_next import Variant

    from zfsilod.api.dbus.objects import Objects
    from zfsilod.requests.request import Request
    from zfsilod.service.service import Service
    from zfsilod.storage.volume_view import VolumeView

PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
NOT_CHANGES = ("id", "etag", "limit_bytes")  # fields that an update mask never names


class Option(NamedTuple):
    """A key of an a{sv}: its type, and the values it may have (none: any)."""

    signature: str
    choices: tuple[str, ...] = ()
    field: str = ""  # of the request, when it has another name there


OPTIONS = {
    "access_mode": Option("s", get_args(AccessMode)),
    "access_modes": Option("as", get_args(AccessMode)),
    "addresses": Option("as"),
    "capacity_bytes": Option("t"),
    "dependents": Option("s", get_args(Dependents)),
    "epoch": Option("t"),
    "etag": Option("s"),
    "fence": Option("b"),
    "force": Option("b"),
    "fs_type": Option("s"),
    "grace_s": Option("u"),
    "hosts": Option("as"),
    "iqn": Option("s"),
    "labels": Option("a{ss}"),
    "limit_bytes": Option("t"),
    "local_name": Option("s", field="id"),
    "max_attachments": Option("u"),
    "mode": Option("s", get_args(Mode)),
    "mount_options": Option("as"),
    "nqn": Option("s"),
    "page_size": Option("u"),
    "page_token": Option("s"),
    "properties": Option("a{ss}"),
    "publish_if_needed": Option("b"),
    "readonly": Option("b"),
    "restore": Option("s", get_args(Restore)),
    "source_snapshot": Option("s"),
    "source_volume": Option("s"),
    "state": Option("s"),  # of a volume or an operation: each list has its own
    "subject": Option("s"),
    "thin": Option("b"),
    "transport": Option("s", get_args(Transport)),
    "uid": Option("s"),
    "validate_only": Option("b"),
    "volume": Option("s"),
}


class Mutation(NamedTuple):
    """A method that begins a request: the fields that its arguments are, and its options."""

    request: type[Request]
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()
    fixed: tuple[tuple[str, object], ...] = ()


# The first argument of a method of a volume or host is the object itself.
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
            "source_snapshot",
            "source_volume",
        ),
    ),
    f"{MANAGER}.UndeleteVolume": Mutation(UndeleteVolume, ("id",), ("uid",)),
    f"{MANAGER}.Connect": Mutation(
        Connect, ("server", "volume"), ("local_name", "restore", "publish_if_needed", "epoch")
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
    f"{VOLUME}.Delete": Mutation(DeleteVolume, ("id",), ("etag", "dependents")),
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
    f"{VOLUME}.Disconnect": Mutation(Disconnect, ("id",), ("force",)),
    f"{VOLUME}.Stage": Mutation(Stage, ("id", "path"), ("fs_type", "mount_options", "readonly")),
    f"{VOLUME}.Unstage": Mutation(Unstage, ("id", "path"), ("force",)),
    f"{VOLUME}.Mount": Mutation(MountAt, ("id", "path"), ("readonly",)),
    f"{VOLUME}.Unmount": Mutation(UnmountFrom, ("id", "path"), ("force",)),
    f"{VOLUME}.Grow": Mutation(Grow, ("id",)),
    f"{VOLUME}.Sync": Mutation(SyncVolume, ("id",)),
}


class Methods:
    """The methods, over the service and the objects."""

    def __init__(self, service: Service, objects: Objects) -> None:
        self.service = service
        self.objects = objects

    async def call(self, method: str, arguments: list[Any], caller: str) -> list[Any]:
        """Call a method by its full name; the id of its object, if it has one, comes first."""
        mutation = MUTATIONS.get(method)
        if mutation is not None:
            return [await self._begin(mutation, arguments[:-1], arguments[-1], caller)]
        return await QUESTIONS[method](self, *arguments)

    async def _begin(
        self, mutation: Mutation, arguments: list[Any], options: dict[str, Variant], caller: str
    ) -> str:
        fields = read_options(options, (*mutation.options, "validate_only"))
        planned = fields.pop("validate_only", False)
        if mutation.request is Publish:
            fields.setdefault("access_mode", self._usual_access(arguments[0]))
        request = make_request(mutation, arguments, fields)
        if isinstance(request, SyncVolume):
            (await self.service.survey(request.id)).check()
        if planned:
            return self.objects.plan(await self.service.plan(request, caller=caller))
        operation = await self.service.submit(request, caller=caller)
        return path_of("operation", operation.id)

    def _usual_access(self, volume_id: str) -> AccessMode:
        """Return how a volume is published when the caller does not say."""
        writer: AccessMode = "SINGLE_NODE_WRITER"
        with self.service.store.read() as txn:
            allowed = need_volume(txn, volume_id).access_modes
        return writer if writer in allowed else allowed[0]

    async def get_volume(self, volume_id: str) -> list[Any]:
        with self.service.store.read() as txn:
            return [path_of("volume", volume_view(txn, volume_id).id)]

    async def list_volumes(self, options: dict[str, Variant]) -> list[Any]:
        asked = read_options(options, ("page_size", "page_token", "state", "labels"))
        state, labels = asked.get("state"), set(asked.get("labels", ()))
        _check_choice("state", state, STATES)

        def wanted(each: VolumeView) -> bool:
            carried = set(each.volume.labels) if each.volume else set()
            return state in (None, each.state) and labels <= carried

        after, limit = _after(asked), _limit(asked)

        def read() -> tuple[list[VolumeView], str]:
            with self.service.store.read() as txn:
                return page(txn, after=after, limit=limit, wanted=wanted)

        found, following = await asyncio.to_thread(read)
        rows = [(v.id, path_of("volume", v.id), v.state, capacity_of(v)) for v in found]
        return [rows, following]

    async def get_snapshot(self, snapshot_id: str) -> list[Any]:
        with self.service.store.read() as txn:
            return [path_of("snapshot", need_snapshot(txn, snapshot_id).id)]

    async def list_snapshots(self, options: dict[str, Variant]) -> list[Any]:
        asked = read_options(options, ("page_size", "page_token", "volume"))
        volume = asked.get("volume")
        found, following = await self._page(
            Snapshot, asked, lambda each: volume in (None, each.volume)
        )
        rows = [(s.id, path_of("snapshot", s.id), s.volume, s.size_bytes) for s in found]
        return [rows, following]

    async def get_host(self, host_id: str) -> list[Any]:
        with self.service.store.read() as txn:
            return [path_of("host", need_host(txn, host_id).id)]

    async def list_hosts(self, options: dict[str, Variant]) -> list[Any]:
        asked = read_options(options, ("page_size", "page_token"))
        found, following = await self._page(Host, asked, lambda _each: True)
        return [[(each.id, path_of("host", each.id), each.iqn) for each in found], following]

    async def get_operation(self, operation_id: str) -> list[Any]:
        return [path_of("operation", self.service.operation(operation_id).id)]

    async def list_operations(self, options: dict[str, Variant]) -> list[Any]:
        asked = read_options(options, ("page_size", "page_token", "state", "subject"))
        state, subject = asked.get("state"), asked.get("subject")
        _check_choice("state", state, get_args(OperationState))

        def wanted(each: Operation) -> bool:
            return state in (None, each.state) and subject in (None, each.subject)

        found, following = await self._page(Operation, asked, wanted)
        rows = [(path_of("operation", o.id), o.kind, o.subject, o.state) for o in found]
        return [rows, following]

    async def list_orphans(self) -> list[Any]:
        found = await orphans.find(self.service)
        return [[(each.name, each.text, list(each.users)) for each in found]]

    async def get_capacity(self, root: str) -> list[Any]:
        room = await self.service.capacity(root)
        return [room.available_bytes, room.total_bytes]

    async def stats(self, volume_id: str) -> list[Any]:
        return [await self.service.stats(volume_id)]

    async def cancel(self, operation_id: str) -> list[Any]:
        await self.service.cancel(operation_id)
        return []

    async def repair(self, operation_id: str) -> list[Any]:
        await self.service.repair(operation_id)
        return []

    async def abandon(self, operation_id: str) -> list[Any]:
        return [list((await self.service.abandon(operation_id)).behind)]

    async def _page(
        self, kind: type[Any], asked: dict[str, Any], wanted: Callable[[Any], bool]
    ) -> tuple[list[Any], str]:
        """Return one page of records, and where the next begins; away from the event loop."""
        after, limit = _after(asked), _limit(asked)

        def read() -> list[Any]:
            with self.service.store.read() as txn:
                return list(islice(filter(wanted, txn.scan(kind, after)), limit + 1))

        found = await asyncio.to_thread(read)
        return found[:limit], found[limit - 1].id if len(found) > limit else ""


QUESTIONS: dict[str, Callable[..., Coroutine[Any, Any, list[Any]]]] = {
    f"{MANAGER}.GetVolume": Methods.get_volume,
    f"{MANAGER}.ListVolumes": Methods.list_volumes,
    f"{MANAGER}.GetSnapshot": Methods.get_snapshot,
    f"{MANAGER}.ListSnapshots": Methods.list_snapshots,
    f"{MANAGER}.GetHost": Methods.get_host,
    f"{MANAGER}.ListHosts": Methods.list_hosts,
    f"{MANAGER}.GetOperation": Methods.get_operation,
    f"{MANAGER}.ListOperations": Methods.list_operations,
    f"{MANAGER}.GetCapacity": Methods.get_capacity,
    f"{MANAGER}.ListOrphans": Methods.list_orphans,
    f"{VOLUME}.Stats": Methods.stats,
    f"{OPERATION}.Cancel": Methods.cancel,
    f"{OPERATION}.Repair": Methods.repair,
    f"{OPERATION}.Abandon": Methods.abandon,
}


def make_request(mutation: Mutation, arguments: list[Any], options: dict[str, Any]) -> Request:
    """Return the request that a call asks for."""
    given = (tuple(each) if isinstance(each, list) else each for each in arguments)
    fields = dict(zip(mutation.arguments, given, strict=True)) | options | dict(mutation.fixed)
    if mutation.request is Connect:
        fields.setdefault("id", fields["volume"])
    if "mask" in mutation.request.FIELDS:
        fields["mask"] = tuple(name for name in fields if name not in NOT_CHANGES)
    return mutation.request(**fields)


def read_options(options: dict[str, Variant], known: tuple[str, ...]) -> dict[str, Any]:
    """Return options as fields of a request. Raises InvalidArgument naming the key."""
    for key in options:
        if key not in known:
            allowed = ", ".join(known)
            raise _bad(key, f"there is no option {key[:80]!r} here: it may be {allowed}")
    return {OPTIONS[key].field or key: _option(key, value) for key, value in options.items()}


def _option(key: str, given: Variant) -> Any:
    option, value = OPTIONS[key], given.value
    if given.signature != option.signature:
        raise _bad(key, f"the option {key} is of type {given.signature}, not {option.signature}")
    chosen = value if option.signature == "as" else [value]
    if option.choices and not chosen:
        raise _bad_choice(key, value, option.choices)
    for choice in chosen if option.choices else ():
        _check_choice(key, choice, option.choices)
    if option.signature == "a{ss}":
        return pairs(value)
    return tuple(value) if option.signature == "as" else value


def _check_choice(key: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise _bad_choice(key, value, choices)


def _bad_choice(key: str, value: object, choices: tuple[str, ...]) -> InvalidArgument:
    return _bad(key, f"the option {key} is {value!r}: it may be {', '.join(choices)}")


def _bad(key: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_OPTION", option=key[:80])


def _limit(asked: dict[str, Any]) -> int:
    return min(asked.get("page_size") or PAGE_SIZE, MAX_PAGE_SIZE)


def _after(asked: dict[str, Any]) -> str:
    token = str(asked.get("page_token", ""))
    return token and check_id(token, "page token")
