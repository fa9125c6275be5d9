"""What is told on the bus when an operation changed: the objects it is about, and its end."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from zfsilod.api.dbus import objects
from zfsilod.api.dbus.contract import KINDS, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.api.dbus.objects import Object, Objects
    from zfsilod.model.records import Change, Operation

MAX_TOLD = 10_000
# Where the records that are shown lie, by the object that shows them.
SHOWN = {
    "volume": "volume",
    "attachment": "volume",
    "publication": "volume",
    "host": "host",
    "snapshot": "snapshot",
}


class Signals:
    """Tells every change of an operation once, however often it is announced."""

    def __init__(
        self, found: Objects, emit: Callable[[str, str, str, str, list[Any]], None]
    ) -> None:
        self._objects = found
        self._emit = emit
        self._told: OrderedDict[str, int] = OrderedDict()

    def changed(self, operation: Operation) -> None:
        """Tell what changed with an operation."""
        told = self._told.get(operation.id)
        if told is not None and told >= operation.revision:
            return
        self._told[operation.id] = operation.revision
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)
        shown = objects.operation(operation)
        self._appeared(shown) if told is None else self._altered(shown)
        for kind, name in _about(operation):
            self._tell(kind, name, operation)
        if operation.ended or operation.state == "NEEDS_REPAIR":
            end = [shown.path, operation.subject, operation.state]
            self._emit(ROOT, MANAGER, "OperationFinished", "oss", end)
        if operation.ended:
            self._vanished(shown.path, shown.interface)

    def _tell(self, kind: str, name: str, operation: Operation) -> None:
        """Tell what an operation did to a volume or host, as it is now."""
        path = path_of(kind, name)
        shown = self._objects.find(path)
        changes = [each for each in _changes(operation) if (kind, name) == _object_of(each)]
        if shown is None:
            if changes:
                self._vanished(path, KINDS[kind])
        elif _is_new(shown, changes):
            self._appeared(shown)
        else:
            self._altered(shown)

    def _appeared(self, shown: Object) -> None:
        body = [shown.path, {shown.interface: shown.all()}]
        self._emit(ROOT, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body)

    def _altered(self, shown: Object) -> None:
        body = [shown.interface, shown.all("true"), []]
        self._emit(shown.path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def _vanished(self, path: str, interface: str) -> None:
        self._emit(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [interface]])


def _about(operation: Operation) -> list[tuple[str, str]]:
    """Return kind and id of every volume and host that an operation is about or changed."""
    kind, _slash, name = operation.subject.partition("s/")
    subject = [(kind, name)] if kind in KINDS else []
    return list(dict.fromkeys([*subject, *filter(None, map(_object_of, _changes(operation)))]))


def _changes(operation: Operation) -> tuple[Change, ...]:
    """Return the changes of records that came with the end of an operation."""
    if operation.ended:
        return operation.commit if operation.state == "DONE" else operation.revert
    return ()


def _object_of(change: Change) -> tuple[str, str] | None:
    """Return kind and id of the object that shows a record."""
    kind = SHOWN.get(change.bucket)
    return (kind, change.key.partition("/")[0]) if kind else None


def _is_new(shown: Object, changes: list[Change]) -> bool:
    """Tell whether an object appeared with these changes: none of its records was there before."""
    new = {each.bucket for each in changes if each.record and not each.record.revision}
    if shown.interface != KINDS["volume"]:
        return bool(new)
    sides = {side for side in ("volume", "attachment") if getattr(shown.seen.view, side)}
    return bool(sides) and sides <= new
