"""What each property on the bus is read from: one line each. The types are in the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dbus_next import Variant

from zfsilod.api.dbus.contract import HOST, MANAGER, NAME, OPERATION, SNAPSHOT, VOLUME, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.records import Operation, Publication
    from zfsilod.storage.volume_view import VolumeView


class About(NamedTuple):
    """What the Manager says of the daemon."""

    version: str
    features: list[str]


class Shown(NamedTuple):
    """A view of a volume, with the operation at work on it."""

    view: VolumeView
    operation: Operation | None


class Progress(NamedTuple):
    """An operation, or one that only would be."""

    operation: Operation
    planned: bool


def clean(value: Any) -> Any:
    """Return a value whose texts the bus can carry: it closes the connection that sends another."""
    if isinstance(value, str):
        if value.isascii() and "\0" not in value:
            return value
        return value.encode(errors="replace").decode().replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return Variant(value.type, clean(value.value)) if isinstance(value, Variant) else value


def capacity_of(found: VolumeView) -> int:
    """Return the size of a volume, as far as this host knows."""
    stored, attached = found.volume, found.attachment
    if stored is not None:
        return stored.capacity_bytes
    return attached.disk.size_bytes if attached else 0


def _uid(shown: Shown) -> str:
    stored, attached = shown.view.volume, shown.view.attachment
    return stored.uid if stored else attached.disk.serial if attached else ""


def _filesystem(shown: Shown) -> list[str]:
    """The server's word counts: it keeps the record that is never lost."""
    record = shown.view.volume or shown.view.attachment
    assert record is not None
    return [record.filesystem.state, record.filesystem.type, record.filesystem.uuid]


def _publication(each: Publication) -> dict[str, Variant]:
    texts = {
        "initiator": each.initiator,
        "transport": each.transport,
        "access_mode": each.access_mode,
        "published_by": each.published_by,
    }
    return {name: Variant("s", text) for name, text in texts.items()} | {
        "readonly": Variant("b", each.readonly),
        "epoch": Variant("t", each.epoch),
        "created_at": Variant("t", each.created_at),
    }


def _mounts(shown: Shown) -> dict[str, dict[str, Variant]]:
    attached = shown.view.attachment
    return {
        each.path: {"readonly": Variant("b", each.readonly)}
        for each in (attached.mounts if attached else ())
    }


def _of(side: str, name: str, *, otherwise: Any = "") -> Callable[[Shown], Any]:
    """Return a reader of a field of the volume or the attachment, where there is one."""

    def read(shown: Shown) -> Any:
        record = getattr(shown.view, side)
        return otherwise if record is None else getattr(record, name)

    return read


def _either(name: str) -> Callable[[Shown], Any]:
    """Return a reader of a field that volume and attachment have, the volume first."""
    return lambda shown: getattr(shown.view.volume or shown.view.attachment, name)


def _error(seen: Progress) -> list[object]:
    failure = seen.operation.failure
    if failure is None:
        return ["", "", "", {}]
    facts = dict(failure.facts) | ({"step": failure.step} if failure.step else {})
    return [f"{NAME}.Error.{failure.name}", failure.message, failure.reason, facts]


def _step(seen: Progress) -> str:
    action = None if seen.operation.ended else seen.operation.next_action
    return action.text if action else ""


READERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    MANAGER: {
        "Version": lambda server: server.version,
        "Features": lambda server: server.features,
    },
    VOLUME: {
        "Id": lambda shown: shown.view.id,
        "Uid": _uid,
        "CapacityBytes": lambda shown: capacity_of(shown.view),
        "State": lambda shown: shown.view.state,
        "Mode": _either("mode"),
        "Thin": _of("volume", "thin", otherwise=False),
        "Dataset": _of("volume", "dataset"),
        "Properties": lambda shown: dict(_of("volume", "properties", otherwise=())(shown)),
        "Labels": lambda shown: dict(_of("volume", "labels", otherwise=())(shown)),
        "Hosts": _of("volume", "hosts", otherwise=()),
        "AccessModes": _of("volume", "access_modes", otherwise=()),
        "Filesystem": _filesystem,
        "Publications": lambda shown: {p.host: _publication(p) for p in shown.view.publications},
        "Server": _of("attachment", "server"),
        "ServerVolume": _of("attachment", "volume"),
        "Restore": _of("attachment", "restore"),
        "StagingPath": _of("attachment", "staging_path"),
        "Mounts": _mounts,
        "Conditions": lambda shown: shown.view.conditions,
        "Operation": lambda s: path_of("operation", s.view.operation) if s.view.operation else "/",
        "Etag": lambda shown: shown.view.etag,
        "CreatedAt": _either("created_at"),
        "UpdatedAt": _either("updated_at"),
    },
    SNAPSHOT: {
        "Id": lambda snapshot: snapshot.id,
        "Volume": lambda snapshot: snapshot.volume,
        "VolumeUid": lambda snapshot: snapshot.volume_uid,
        "SizeBytes": lambda snapshot: snapshot.size_bytes,
        "Mode": lambda snapshot: snapshot.mode,
        "Group": lambda snapshot: snapshot.group,
        "Labels": lambda snapshot: dict(snapshot.labels),
        "Etag": lambda snapshot: str(snapshot.revision),
        "CreatedAt": lambda snapshot: snapshot.created_at,
    },
    HOST: {
        "Id": lambda host: host.id,
        "Iqn": lambda host: host.iqn,
        "Nqn": lambda host: host.nqn,
        "Addresses": lambda host: host.addresses,
        "Labels": lambda host: dict(host.labels),
        "MaxAttachments": lambda host: host.max_attachments,
        "Etag": lambda host: str(host.revision),
        "CreatedAt": lambda host: host.created_at,
        "UpdatedAt": lambda host: host.updated_at,
    },
    OPERATION: {
        "Id": lambda seen: seen.operation.id,
        "Kind": lambda seen: seen.operation.kind,
        "Subject": lambda seen: seen.operation.subject,
        "Title": lambda seen: seen.operation.title,
        "Caller": lambda seen: seen.operation.caller,
        "State": lambda seen: "PLANNED" if seen.planned else seen.operation.state,
        "Error": _error,
        "Progress": lambda seen: seen.operation.progress,
        "Step": _step,
        "Actions": lambda seen: [(m.way, m.step.text, m.status) for m in seen.operation.actions],
        "CreatedAt": lambda seen: seen.operation.created_at,
        "EndedAt": lambda seen: seen.operation.ended_at,
    },
}
