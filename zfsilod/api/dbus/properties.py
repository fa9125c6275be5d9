"""The values of D-Bus properties: one reader each. Their types are in the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dbus_next import Variant

from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    NAME,
    OPERATION,
    REPLICATION_POLICY,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
    path_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfsilod.model.ownership import Hold
    from zfsilod.model.policies import RunOutcome, TimedPolicy
    from zfsilod.model.records import Operation, Publication
    from zfsilod.service.replication import Transfer
    from zfsilod.storage.volume_view import VolumeView


class ManagerInfo(NamedTuple):
    """The values of the Manager's properties."""

    version: str
    features: list[str]
    holds: tuple[Hold, ...] = ()


class ShownOperation(NamedTuple):
    """An operation, stored or only planned, and how far its stream is."""

    operation: Operation
    planned: bool
    transfer: Transfer | None = None  # None: there is no stream now


class ShownPolicy(NamedTuple):
    """A policy, and the outcome of its last run."""

    policy: TimedPolicy
    outcome: RunOutcome


def clean(value: Any) -> Any:
    """Return a value with strings that are valid on D-Bus; an invalid one closes the connection."""
    if isinstance(value, str):
        if value.isascii() and "\0" not in value:
            return value
        return value.encode(errors="replace").decode().replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return Variant(value.type, clean(value.value)) if isinstance(value, Variant) else value


def capacity_of(view: VolumeView) -> int:
    """Return the size of a volume, as known on this host."""
    if view.volume is not None:
        return view.volume.capacity_bytes
    return view.attachment.disk.size_bytes if view.attachment else 0


def _filesystem(view: VolumeView) -> list[str]:
    """Return the filesystem; the server's record has precedence, as it is never lost."""
    record = view.volume or view.attachment
    assert record is not None
    return [record.filesystem.state, record.filesystem.type, record.filesystem.uuid]


def _publication(record: Publication) -> dict[str, Variant]:
    return {
        "initiator": Variant("s", record.initiator),
        "transport": Variant("s", record.transport),
        "tls": Variant("b", record.tls),
        "access_mode": Variant("s", record.access_mode),
        "published_by": Variant("s", record.published_by),
        "readonly": Variant("b", record.readonly),
        "epoch": Variant("t", record.epoch),
        "created_at": Variant("t", record.created_at),
    }


def _of(side: str, name: str, *, default: Any = "") -> Callable[[VolumeView], Any]:
    """Return a reader of a field of the volume or the attachment, if the view has one."""

    def read(view: VolumeView) -> Any:
        record = getattr(view, side)
        return default if record is None else getattr(record, name)

    return read


def _limit(name: str) -> Callable[[VolumeView], int]:
    """Return a reader of a limit of the I/O of a volume; 0 on a client, and without a limit."""
    return lambda view: getattr(view.volume.limits, name) if view.volume else 0


def _either(name: str) -> Callable[[VolumeView], Any]:
    """Return a reader of a field that volume and attachment have; the volume has precedence."""
    return lambda view: getattr(view.volume or view.attachment, name)


def _error(shown: ShownOperation) -> list[object]:
    failure = shown.operation.failure
    if failure is None:
        return ["", "", "", {}]
    facts = dict(failure.facts) | ({"step": failure.step} if failure.step else {})
    return [f"{NAME}.Error.{failure.name}", failure.message, failure.reason, facts]


def _step(shown: ShownOperation) -> str:
    action = None if shown.operation.ended else shown.operation.next_action
    return action.description if action else ""


def _transfer(shown: ShownOperation) -> list[int]:
    sent = shown.transfer
    return [sent.sent_bytes, sent.total_bytes, sent.rate] if sent is not None else [0, 0, 0]


# Of policies of all kinds.
_POLICY: dict[str, Callable[[ShownPolicy], Any]] = {
    "Id": lambda shown: shown.policy.id,
    "Calendar": lambda shown: shown.policy.calendar,
    "Selector": lambda shown: dict(shown.policy.selector),
    "MaxDelaySeconds": lambda shown: shown.policy.max_delay_seconds,
    "RunAt": lambda shown: shown.outcome.ran_at,
    "SucceededAt": lambda shown: shown.outcome.succeeded_at,
    "Failures": lambda shown: shown.outcome.all_failures,
    "Etag": lambda shown: str(shown.policy.revision),
    "CreatedAt": lambda shown: shown.policy.created_at,
    "UpdatedAt": lambda shown: shown.policy.updated_at,
}
READERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    MANAGER: {
        "Version": lambda info: info.version,
        "Features": lambda info: info.features,
        "Holds": lambda info: [(one.reason, one.sentence, one.command) for one in info.holds],
    },
    VOLUME: {
        "Id": lambda view: view.id,
        "Uid": lambda view: view.uid,
        "CapacityBytes": capacity_of,
        "State": lambda view: view.state,
        "Mode": _either("mode"),
        "Thin": _of("volume", "thin", default=False),
        "Dataset": _of("volume", "dataset"),
        "Properties": lambda view: dict(view.volume.properties) if view.volume else {},
        "Labels": lambda view: dict(view.volume.labels) if view.volume else {},
        "Hosts": _of("volume", "hosts", default=()),
        "AccessModes": _of("volume", "access_modes", default=()),
        "Transport": _of("volume", "transport"),
        "LimitReadIops": _limit("read_iops"),
        "LimitWriteIops": _limit("write_iops"),
        "LimitReadBytes": _limit("read_bytes"),
        "LimitWriteBytes": _limit("write_bytes"),
        "Tls": _of("volume", "tls", default=False),
        "Encrypted": lambda view: bool(view.volume and view.volume.key_uid),
        "Filesystem": _filesystem,
        "Publications": lambda view: {p.host: _publication(p) for p in view.publications},
        "Server": _of("attachment", "server"),
        "ServerVolume": _of("attachment", "volume"),
        "Restore": _of("attachment", "restore"),
        "StagingPath": _of("attachment", "staging_path"),
        "Mounts": lambda view: {
            mount.path: {"readonly": Variant("b", mount.readonly)}
            for mount in (view.attachment.mounts if view.attachment else ())
        },
        "Conditions": lambda view: view.conditions,
        "ConditionReasons": lambda view: view.condition_reasons,
        "Operation": lambda view: path_of("operation", view.operation) if view.operation else "/",
        "Etag": lambda view: view.etag,
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
    SNAPSHOT_POLICY: _POLICY
    | {
        "Grid": lambda shown: shown.policy.grid,
        "Grouped": lambda shown: shown.policy.grouped,
    },
    REPLICATION_POLICY: _POLICY
    | {
        "Peer": lambda shown: shown.policy.peer,
        "Volumes": lambda shown: shown.policy.volumes,
        "BytesPerSecond": lambda shown: shown.policy.bytes_per_second,
        "Running": lambda shown: shown.outcome.missed,
    },
    HOST: {
        "Id": lambda host: host.id,
        "Iqn": lambda host: host.iqn,
        "Nqn": lambda host: host.nqn,
        "Addresses": lambda host: host.addresses,
        "Labels": lambda host: dict(host.labels),
        "MaxAttachments": lambda host: host.max_attachments,
        "Authority": lambda host: host.authority,
        "Machine": lambda host: host.machine,
        "Etag": lambda host: str(host.revision),
        "CreatedAt": lambda host: host.created_at,
        "UpdatedAt": lambda host: host.updated_at,
    },
    OPERATION: {
        "Id": lambda shown: shown.operation.id,
        "Kind": lambda shown: shown.operation.kind,
        "Subject": lambda shown: shown.operation.subject,
        "Title": lambda shown: shown.operation.title,
        "Caller": lambda shown: shown.operation.caller,
        "State": lambda shown: "PLANNED" if shown.planned else shown.operation.state,
        "Error": _error,
        "Progress": lambda shown: shown.operation.progress,
        "Step": _step,
        "Transfer": _transfer,
        "Actions": lambda shown: [
            (action.way, action.description, action.status) for action in shown.operation.actions
        ],
        "CreatedAt": lambda shown: shown.operation.created_at,
        "EndedAt": lambda shown: shown.operation.ended_at,
    },
}
