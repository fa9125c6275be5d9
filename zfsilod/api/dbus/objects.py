"""The objects on the bus, read from the store when they are asked for: none is kept."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from dbus_next import DBusError, ErrorType, Variant

from zfsilod.api.dbus.contract import (
    HOST,
    KINDS,
    MANAGER,
    NAME,
    OPERATION,
    ROOT,
    SNAPSHOT,
    VOLUME,
    interfaces,
    path_of,
    split,
)
from zfsilod.api.dbus.properties import READERS, About, Progress, Shown, clean
from zfsilod.model.errors import InvalidArgument, NotFound
from zfsilod.model.records import Host, Operation, Snapshot
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.service.service import Service
    from zfsilod.storage.store import Transaction

MAX_OBJECTS = 5000
MAX_PLANNED = 64
TOO_MANY = f"there are more than {MAX_OBJECTS} objects: page with {MANAGER}.ListVolumes"


class Object(NamedTuple):
    """An object of ours at one moment: path, interface and what its properties are read from."""

    path: str
    interface: str
    seen: Any

    def get(self, name: str) -> Variant:
        """Return a property. Raises KeyError."""
        signature = interfaces()[self.interface].properties[name].signature
        return Variant(signature, clean(READERS[self.interface][name](self.seen)))

    def all(self, *emits: str) -> dict[str, Variant]:
        """Return all properties, or those whose changes are told like this."""
        known = interfaces()[self.interface].properties
        return {name: self.get(name) for name in known if known[name].emits in emits or not emits}


class Objects:
    """Finds objects by their path, and lists them."""

    def __init__(self, service: Service, version: str) -> None:
        roles = ["server", "client"] if service.context.settings.root else ["client"]
        self.about = About(version, [*roles, "iscsi"])
        self.service = service
        self._planned: OrderedDict[str, Operation] = OrderedDict()

    def plan(self, operation: Operation) -> str:
        """Keep an operation that only would be for a while, and return its path."""
        self._planned[operation.id] = operation
        if len(self._planned) > MAX_PLANNED:
            self._planned.popitem(last=False)
        return path_of("operation", operation.id)

    def find(self, path: str) -> Object | None:
        """Return the object at a path, or None."""
        if path == ROOT:
            return Object(path, MANAGER, self.about)
        kind, name = split(path) or ("", "")
        if name in self._planned and kind == "operation":
            return Object(path, OPERATION, Progress(self._planned[name], planned=True))
        with self.service.context.store.read() as txn:
            return _object(txn, kind, name) if kind else None

    def need(self, path: str) -> Object:
        """Return the object at a path. Raises UnknownObject."""
        found = self.find(path)
        if found is None:
            raise unknown(path)
        return found

    def managed(self) -> list[Object]:
        """Return all objects below the manager. Raises LimitsExceeded."""
        with self.service.context.store.read() as txn:
            found = list(islice(_below(txn), MAX_OBJECTS + 1))
        if len(found) > MAX_OBJECTS:
            raise DBusError(ErrorType.LIMITS_EXCEEDED, TOO_MANY)
        return found

    def children(self, path: str) -> list[str] | None:
        """Return the names of the nodes below a path, None when there are too many to tell."""
        if path == "/":
            return ["org"]
        if path == "/org":
            return [NAME.partition(".")[2]]
        if path == ROOT:
            return sorted(KINDS)
        kind = path.removeprefix(f"{ROOT}/")
        if kind not in KINDS:
            return []
        with self.service.context.store.read() as txn:
            found = list(islice(_names(txn, kind), MAX_OBJECTS + 1))
        paths = (path_of(kind, name) for name in found)
        return [each.rpartition("/")[2] for each in paths] if len(found) <= MAX_OBJECTS else None


def unknown(path: str) -> DBusError:
    """Return the error for a path without an object."""
    return DBusError(ErrorType.UNKNOWN_OBJECT, f"there is no object {path}")


def volume(found: VolumeView, operation: Operation | None) -> Object:
    """Return the object of a volume."""
    return Object(path_of("volume", found.id), VOLUME, Shown(found, operation))


def snapshot(found: Snapshot) -> Object:
    """Return the object of a snapshot."""
    return Object(path_of("snapshot", found.id), SNAPSHOT, found)


def host(found: Host) -> Object:
    """Return the object of a host."""
    return Object(path_of("host", found.id), HOST, found)


def operation(found: Operation) -> Object:
    """Return the object of an operation."""
    return Object(path_of("operation", found.id), OPERATION, Progress(found, planned=False))


def _object(txn: Transaction, kind: str, name: str) -> Object | None:
    if kind == "volume":
        try:
            found = volume_view(txn, name)
        except (NotFound, InvalidArgument):  # what is no id names nothing
            return None
        return _volume(txn, found)
    if kind == "snapshot":
        taken = txn.get(Snapshot, name)
        return snapshot(taken) if taken else None
    if kind == "host":
        record = txn.get(Host, name)
        return host(record) if record else None
    stored = txn.get(Operation, name)
    return operation(stored) if stored else None


def _volume(txn: Transaction, found: VolumeView) -> Object:
    return volume(found, txn.get(Operation, found.operation) if found.operation else None)


def _below(txn: Transaction) -> Iterator[Object]:
    return chain(
        (_volume(txn, each) for each in volume_views(txn)),
        map(snapshot, txn.scan(Snapshot)),
        map(host, txn.scan(Host)),
        map(operation, txn.live()),
    )


def _names(txn: Transaction, kind: str) -> Iterator[str]:
    match kind:
        case "volume":
            return (each.id for each in volume_views(txn))
        case "snapshot":
            return (each.id for each in txn.scan(Snapshot))
        case "host":
            return (each.id for each in txn.scan(Host))
    return (each.id for each in txn.live())
