"""D-Bus signals of changed operations and of the objects that they changed."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from zfsilod.api.dbus import objects
from zfsilod.api.dbus.contract import KINDS, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.api.dbus.objects import BusObject, Objects
    from zfsilod.model.records import Change, Operation

MAX_SIGNALLED = 10_000
MAX_SHOWN = 512  # objects whose last values are kept, so that only others are sent
# The kind of object that shows the records of a bucket.
KIND_BY_BUCKET = {
    "volume": "volume",
    "attachment": "volume",
    "publication": "volume",
    "host": "host",
    "snapshot": "snapshot",
    "snapshotpolicy": "policy",
    "replicationpolicy": "replication",
}


class Signals:
    """Emits the signals of each revision of an operation once."""

    def __init__(
        self, bus_objects: Objects, emit: Callable[[str, str, str, str, list[Any]], None]
    ) -> None:
        self._objects = bus_objects
        self._emit = emit
        self._signalled: OrderedDict[str, int] = OrderedDict()  # the last revision by operation
        self._shown: OrderedDict[str, dict[str, Any]] = OrderedDict()  # the last values by path

    def changed(self, operation: Operation) -> None:
        """Emit the signals of a changed operation."""
        last = self._signalled.get(operation.id)
        if last is not None and last >= operation.revision:
            return
        self._signalled[operation.id] = operation.revision
        if len(self._signalled) > MAX_SIGNALLED:
            self._signalled.popitem(last=False)
        shown = objects.operation(operation)
        self._added(shown) if last is None else self._changed(shown)
        kind, _slash, name = operation.subject.partition("s/")
        subject = (kind, name) if kind in KINDS else None
        for resource in dict.fromkeys([subject, *map(_resource, _changes(operation))]):
            if resource is not None:
                self._resource_changed(*resource, operation)
        if operation.ended or operation.state == "NEEDS_REPAIR":
            body = [shown.path, operation.subject, operation.state]
            self._emit(ROOT, MANAGER, "OperationFinished", "oss", body)
        if operation.ended:
            self._removed(shown.path, shown.interface)

    def _resource_changed(self, kind: str, name: str, operation: Operation) -> None:
        path = path_of(kind, name)
        shown = self._objects.find(path)
        changes = [change for change in _changes(operation) if _resource(change) == (kind, name)]
        if shown is None:
            if changes:
                self._removed(path, KINDS[kind])
        elif _is_new(shown, changes):
            self._added(shown)
        else:
            self._changed(shown)

    def _added(self, shown: BusObject) -> None:
        self._news(shown)
        body = [shown.path, {shown.interface: shown.all()}]
        self._emit(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body)

    def _changed(self, shown: BusObject) -> None:
        if news := self._news(shown):
            body = [shown.interface, news, []]
            self._emit(shown.path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _removed(self, path: str, interface: str) -> None:
        self._shown.pop(path, None)
        self._emit(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [interface]])

    def _news(self, shown: BusObject) -> dict[str, Any]:
        """Return the properties that differ from the last signal; all when it is not known."""
        values, last = shown.all("true"), self._shown.pop(shown.path, {})
        self._shown[shown.path] = values
        if len(self._shown) > MAX_SHOWN:
            self._shown.popitem(last=False)
        return {name: value for name, value in values.items() if last.get(name) != value}


def _changes(operation: Operation) -> tuple[Change, ...]:
    """Return the changes of records that were written with the end of an operation."""
    if operation.ended:
        return operation.commit if operation.state == "DONE" else operation.revert
    return ()


def _resource(change: Change) -> tuple[str, str] | None:
    """Return kind and id of the object that shows a changed record."""
    kind = KIND_BY_BUCKET.get(change.bucket)
    return (kind, change.key.partition("/")[0]) if kind else None


def _is_new(shown: BusObject, changes: list[Change]) -> bool:
    """Return whether these changes created all records that an object shows."""
    created = {change.bucket for change in changes if change.record and not change.record.revision}
    if shown.interface != KINDS["volume"]:
        return bool(created)
    sides = {side for side in ("volume", "attachment") if getattr(shown.source, side)}
    return bool(sides) and sides <= created
