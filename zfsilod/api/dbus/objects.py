"""The objects on the bus, read from the store for each call."""

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
    REPLICATION_POLICY,
    ROOT,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    escape,
    interfaces,
    path_of,
    split,
)
from zfsilod.api.dbus.properties import (
    READERS,
    ManagerInfo,
    ShownOperation,
    ShownPolicy,
    clean,
)
from zfsilod.model.errors import InvalidArgument, NotFound
from zfsilod.model.policies import (
    PolicyOutcome,
    ReplicationOutcome,
    ReplicationPolicy,
    SnapshotPolicy,
)
from zfsilod.model.records import Host, Operation, Snapshot
from zfsilod.requests.policies import outcome_of
from zfsilod.storage.volume_view import VolumeView, volume_view, volume_views

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilod.service.replication import Transfer
    from zfsilod.service.service import Service
    from zfsilod.storage.transaction import Transaction

MAX_OBJECTS = 5000
MAX_PLANNED = 64
TOO_MANY = f"more than {MAX_OBJECTS} objects: use {MANAGER}.ListVolumes"


class BusObject(NamedTuple):
    """A snapshot of an object: path, interface and the source of its properties."""

    path: str
    interface: str
    source: Any

    def get(self, name: str) -> Variant:
        """Return a property. Raises KeyError."""
        signature = interfaces()[self.interface].properties[name].signature
        return Variant(signature, clean(READERS[self.interface][name](self.source)))

    def all(self, *emits: str) -> dict[str, Variant]:
        """Return all properties, or those with these EmitsChangedSignal annotations."""
        properties = interfaces()[self.interface].properties
        names = (name for name, item in properties.items() if item.emits in emits or not emits)
        return {name: self.get(name) for name in names}


class Objects:
    """Finds objects by their path, and lists them."""

    def __init__(self, service: Service, version: str) -> None:
        roles = ["server", "client"] if service.context.settings.root else ["client"]
        self.info = ManagerInfo(version, [*roles, "iscsi", "nvme"])
        self.service = service
        self._planned: OrderedDict[str, Operation] = OrderedDict()

    def plan(self, operation: Operation) -> str:
        """Keep a planned operation for a while, and return its path."""
        self._planned[operation.id] = operation
        if len(self._planned) > MAX_PLANNED:
            self._planned.popitem(last=False)
        return path_of("operation", operation.id)

    def find(self, path: str) -> BusObject | None:
        """Return the object at a path, or None."""
        if path == ROOT:
            holds = self.service.context.ownership.holds
            return BusObject(path, MANAGER, self.info._replace(holds=holds))
        kind, name = split(path) or ("", "")
        if name in self._planned and kind == "operation":
            return BusObject(path, OPERATION, ShownOperation(self._planned[name], planned=True))
        with self.service.context.store.read() as txn:
            match kind:
                case "volume":
                    try:
                        return volume(volume_view(txn, name))
                    except (NotFound, InvalidArgument):  # an invalid id names no object
                        return None
                case "snapshot":
                    taken = txn.get(Snapshot, name)
                    return snapshot(taken) if taken else None
                case "policy":
                    kept = txn.get(SnapshotPolicy, name)
                    return policy(txn, kept) if kept else None
                case "replication":
                    sends = txn.get(ReplicationPolicy, name)
                    return replication_policy(txn, sends) if sends else None
                case "host":
                    record = txn.get(Host, name)
                    return host(record) if record else None
                case "operation":
                    stored = txn.get(Operation, name)
                    return self._operation(stored) if stored else None
        return None

    def _operation(self, record: Operation) -> BusObject:
        """Return the object of an operation, with its stream, if it has one now."""
        return operation(record, self.service.replicator.transfers.get(record.id))

    def need(self, path: str) -> BusObject:
        """Return the object at a path. Raises UnknownObject."""
        bus_object = self.find(path)
        if bus_object is None:
            raise unknown(path)
        return bus_object

    def managed(self) -> list[BusObject]:
        """Return all objects below the manager. Raises LimitsExceeded."""
        with self.service.context.store.read() as txn:
            below = chain(
                map(volume, volume_views(txn)),
                map(snapshot, txn.scan(Snapshot)),
                (policy(txn, kept) for kept in txn.scan(SnapshotPolicy)),
                (replication_policy(txn, kept) for kept in txn.scan(ReplicationPolicy)),
                map(host, txn.scan(Host)),
                map(self._operation, txn.live()),
            )
            managed = list(islice(below, MAX_OBJECTS + 1))
        if len(managed) > MAX_OBJECTS:
            raise DBusError(ErrorType.LIMITS_EXCEEDED, TOO_MANY)
        return managed

    def children(self, path: str) -> list[str] | None:
        """Return the names of the nodes below a path, or None for too many."""
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
            records: dict[str, Iterable[Any]] = {
                "volume": volume_views(txn),
                "snapshot": txn.scan(Snapshot),
                "policy": txn.scan(SnapshotPolicy),
                "replication": txn.scan(ReplicationPolicy),
                "host": txn.scan(Host),
                "operation": txn.live(),
            }
            names = [record.id for record in islice(records[kind], MAX_OBJECTS + 1)]
        return None if len(names) > MAX_OBJECTS else list(map(escape, names))


def unknown(path: str) -> DBusError:
    """Return the error for a path without an object."""
    return DBusError(ErrorType.UNKNOWN_OBJECT, f"object {path} does not exist")


def volume(view: VolumeView) -> BusObject:
    """Return the object of a volume."""
    return BusObject(path_of("volume", view.id), VOLUME, view)


def snapshot(record: Snapshot) -> BusObject:
    """Return the object of a snapshot."""
    return BusObject(path_of("snapshot", record.id), SNAPSHOT, record)


def policy(txn: Transaction, record: SnapshotPolicy) -> BusObject:
    """Return the object of a snapshot policy."""
    shown = ShownPolicy(record, outcome_of(txn, PolicyOutcome, record.id))
    return BusObject(path_of("policy", record.id), SNAPSHOT_POLICY, shown)


def replication_policy(txn: Transaction, record: ReplicationPolicy) -> BusObject:
    """Return the object of a replication policy."""
    shown = ShownPolicy(record, outcome_of(txn, ReplicationOutcome, record.id))
    return BusObject(path_of("replication", record.id), REPLICATION_POLICY, shown)


def host(record: Host) -> BusObject:
    """Return the object of a host."""
    return BusObject(path_of("host", record.id), HOST, record)


def operation(record: Operation, transfer: Transfer | None = None) -> BusObject:
    """Return the object of an operation."""
    shown = ShownOperation(record, planned=False, transfer=transfer)
    return BusObject(path_of("operation", record.id), OPERATION, shown)
