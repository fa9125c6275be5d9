"""Records to protobuf messages, and what of messages becomes records. Pure; all enums explicit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from zfsilo.v1 import host_pb2, operation_pb2, snapshot_pb2, volume_pb2

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import Publication
from zfsilod.model.ulid import ALPHABET
from zfsilod.model.validation import check_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilod.model.host_facts import FilesystemState
    from zfsilod.model.records import (
        AccessMode,
        Action,
        ActionStatus,
        Attachment,
        Failure,
        Host,
        Mode,
        Operation,
        OperationState,
        Restore,
        Snapshot,
        SnapshotGroup,
        Transport,
        Volume,
    )
    from zfsilod.requests.deletion import Dependents
    from zfsilod.service.drift import Check, DriftReport
    from zfsilod.storage.volume_view import VolumeView

N = TypeVar("N", bound=str)
ULID_LENGTH = 26


class Enum(Generic[N]):
    """Our names of something and its numbers on the wire."""

    def __init__(self, what: str, numbers: dict[N, int]) -> None:
        self._what = what
        self._numbers = numbers
        self._names = {number: name for name, number in numbers.items()}

    def number(self, name: str) -> Any:
        """Return the number of a name of ours; protobuf has a type of its own for each enum."""
        return self._numbers[name]  # type: ignore[index] # N is a set of texts

    def name(self, number: int, default: N | None = None) -> N:
        """Return the name of a number; 0 is the default. Raises InvalidArgument."""
        if number == 0 and default is not None:
            return default
        try:
            return self._names[number]
        except KeyError:
            raise InvalidArgument(
                f"{number} is no {self._what}: {', '.join(self._numbers)}", reason="BAD_ENUM"
            ) from None


MODES: Enum[Mode] = Enum(
    "mode", {"FILESYSTEM": volume_pb2.MODE_FILESYSTEM, "BLOCK": volume_pb2.MODE_BLOCK}
)
ACCESS_MODES: Enum[AccessMode] = Enum(
    "access mode",
    {
        "SINGLE_NODE_WRITER": volume_pb2.ACCESS_MODE_SINGLE_NODE_WRITER,
        "SINGLE_NODE_READER_ONLY": volume_pb2.ACCESS_MODE_SINGLE_NODE_READER_ONLY,
        "SINGLE_NODE_SINGLE_WRITER": volume_pb2.ACCESS_MODE_SINGLE_NODE_SINGLE_WRITER,
        "SINGLE_NODE_MULTI_WRITER": volume_pb2.ACCESS_MODE_SINGLE_NODE_MULTI_WRITER,
        "MULTI_NODE_READER_ONLY": volume_pb2.ACCESS_MODE_MULTI_NODE_READER_ONLY,
        "MULTI_NODE_SINGLE_WRITER": volume_pb2.ACCESS_MODE_MULTI_NODE_SINGLE_WRITER,
        "MULTI_NODE_MULTI_WRITER": volume_pb2.ACCESS_MODE_MULTI_NODE_MULTI_WRITER,
    },
)
TRANSPORTS: Enum[Transport] = Enum("transport", {"ISCSI": volume_pb2.TRANSPORT_ISCSI})
RESTORES: Enum[Restore] = Enum(
    "restore", {"BOOT": volume_pb2.RESTORE_BOOT, "NEVER": volume_pb2.RESTORE_NEVER}
)
FILESYSTEM_STATES: Enum[FilesystemState] = Enum(
    "state of a filesystem",
    {
        "NONE": volume_pb2.FILESYSTEM_STATE_NONE,
        "FORMATTING": volume_pb2.FILESYSTEM_STATE_FORMATTING,
        "CLONED": volume_pb2.FILESYSTEM_STATE_CLONED,
        "READY": volume_pb2.FILESYSTEM_STATE_READY,
    },
)
DEPENDENTS: Enum[Dependents] = Enum(
    "way with dependents",
    {"REFUSE": volume_pb2.DEPENDENTS_REFUSE, "KEEP": volume_pb2.DEPENDENTS_KEEP},
)
VOLUME_STATES: Enum[str] = Enum(
    "state",
    {
        "ABSENT": volume_pb2.STATE_ABSENT,
        "CREATED": volume_pb2.STATE_CREATED,
        "PUBLISHED": volume_pb2.STATE_PUBLISHED,
        "CONNECTED": volume_pb2.STATE_CONNECTED,
        "STAGED": volume_pb2.STATE_STAGED,
        "MOUNTED": volume_pb2.STATE_MOUNTED,
    },
)
OPERATION_STATES: Enum[OperationState] = Enum(
    "state of an operation",
    {
        "RUNNING": operation_pb2.OPERATION_STATE_RUNNING,
        "WAITING": operation_pb2.OPERATION_STATE_WAITING,
        "FAILED": operation_pb2.OPERATION_STATE_FAILED,
        "DONE": operation_pb2.OPERATION_STATE_DONE,
        "ROLLED_BACK": operation_pb2.OPERATION_STATE_ROLLED_BACK,
        "NEEDS_REPAIR": operation_pb2.OPERATION_STATE_NEEDS_REPAIR,
        "ABANDONED": operation_pb2.OPERATION_STATE_ABANDONED,
    },
)
ACTION_STATUSES: Enum[ActionStatus] = Enum(
    "action status",
    {
        "PENDING": operation_pb2.ACTION_STATUS_PENDING,
        "UNCHANGED": operation_pb2.ACTION_STATUS_UNCHANGED,
        "STARTED": operation_pb2.ACTION_STATUS_STARTED,
        "DONE": operation_pb2.ACTION_STATUS_DONE,
        "REVERTED": operation_pb2.ACTION_STATUS_REVERTED,
    },
)


# What we show


def volume(view: VolumeView) -> volume_pb2.Volume:
    """Return all that this host knows under a volume's name."""
    record = view.volume or view.attachment
    assert record is not None, f"a view of nothing: {view.id}"
    return volume_pb2.Volume(
        name=f"volumes/{view.id}",
        id=view.id,
        state=VOLUME_STATES.number(view.state),
        etag=view.etag,
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
        operation=f"operations/{view.operation}" if view.operation else "",
        attachment=attachment(view.attachment) if view.attachment is not None else None,
        publications=[publication(each) for each in view.publications] or None,
        conditions=view.conditions or None,
        delete_time=_time(view.trashed.deleted_at) if view.trashed else None,
        purge_time=_time(view.trashed.purge_at) if view.trashed else None,
        **_served(view.volume) if view.volume is not None else {},
    )


def differences(found: DriftReport) -> list[volume_pb2.Difference]:
    """Return what differs of a volume."""
    return [
        volume_pb2.Difference(
            volume=found.volume,
            fact=each.fact,
            wanted=each.wanted,
            problem=each.problem,
            reason=each.reason,
        )
        for each in found.differences
    ]


def fact(found: Check) -> volume_pb2.Fact:
    """Return a fact that was looked at."""
    return volume_pb2.Fact(
        kind=found.kind,
        text=found.text,
        wanted=found.wanted,
        problem=found.problem,
        truth=f"TRUTH_{found.truth}",
        parameters=dict(found.parameters),
    )


def _served(record: Volume) -> dict[str, Any]:
    """Return the fields of a volume that this host serves."""
    return {
        "uid": record.uid,
        "dataset": record.dataset,
        "capacity_bytes": record.capacity_bytes,
        "thin": record.thin,
        "mode": MODES.number(record.mode),
        "volblocksize": record.volblocksize,
        # None: an empty map costs protobuf a third of all that a volume takes.
        "properties": dict(record.properties) or None,
        "labels": dict(record.labels) or None,
        "hosts": record.hosts or None,
        "access_modes": [ACCESS_MODES.number(each) for each in record.access_modes],
        "filesystem": filesystem(record.filesystem),
        "source": _source(record),
    }


def _source(record: Volume) -> volume_pb2.VolumeSource | None:
    if record.source_snapshot:
        return volume_pb2.VolumeSource(snapshot=f"snapshots/{record.source_snapshot}")
    if record.source_volume:
        return volume_pb2.VolumeSource(volume=f"volumes/{record.source_volume}")
    return None


def snapshot(record: Snapshot, *, operation: str) -> snapshot_pb2.Snapshot:
    """Return a snapshot, with the operation at work on it."""
    return snapshot_pb2.Snapshot(
        name=f"snapshots/{record.id}",
        id=record.id,
        volume=f"volumes/{record.volume}",
        volume_uid=record.volume_uid,
        size_bytes=record.size_bytes,
        mode=MODES.number(record.mode),
        labels=dict(record.labels),
        group=f"snapshotGroups/{record.group}" if record.group else "",
        filesystem=filesystem(record.filesystem),
        etag=str(record.revision),
        create_time=_time(record.created_at),
        operation=f"operations/{operation}" if operation else "",
    )


def snapshot_group(
    record: SnapshotGroup, members: list[snapshot_pb2.Snapshot]
) -> snapshot_pb2.SnapshotGroup:
    """Return a group with its snapshots."""
    return snapshot_pb2.SnapshotGroup(
        name=f"snapshotGroups/{record.id}",
        id=record.id,
        snapshots=members,
        labels=dict(record.labels),
        etag=str(record.revision),
        create_time=_time(record.created_at),
    )


def publication(record: Publication) -> volume_pb2.Publication:
    """Return a publication; its secrets are no part of the record."""
    return volume_pb2.Publication(
        volume=f"volumes/{record.volume}",
        host=f"hosts/{record.host}",
        initiator=record.initiator,
        transport=TRANSPORTS.number(record.transport),
        access_mode=ACCESS_MODES.number(record.access_mode),
        readonly=record.readonly,
        epoch=record.epoch,
        published_by=record.published_by,
        create_time=_time(record.created_at),
        rotation=record.rotation,
        rotation_due=record.rotation_due,
    )


def read_publication(message: volume_pb2.Publication) -> Publication:
    """Return what a host needs to know of a publication to it at a server."""
    volume, host = volume_id(message.volume), host_id(message.host)
    return Publication(
        id=f"{volume}/{host}",
        volume=volume,
        host=host,
        initiator=message.initiator,
        epoch=message.epoch,
        rotation=message.rotation,
        rotation_due=message.rotation_due,
    )


def attachment(record: Attachment) -> volume_pb2.Attachment:
    """Return how this host uses a volume of a server."""
    disk = record.disk
    return volume_pb2.Attachment(
        server=record.server,
        volume=record.volume,
        state=VOLUME_STATES.number(record.state),
        disk=volume_pb2.Disk(target=disk.target, serial=disk.serial, size_bytes=disk.size_bytes),
        portals=record.portals,
        mode=MODES.number(record.mode),
        epoch=record.epoch,
        readonly=record.readonly,
        restore=RESTORES.number(record.restore),
        filesystem=filesystem(record.filesystem),
        staging_path=record.staging_path,
        mount_options=record.mount_options,
        stage_readonly=record.stage_readonly,
        mounts=[volume_pb2.Mount(path=m.path, readonly=m.readonly) for m in record.mounts],
        published_here=bool(record.published_here),
    )


def filesystem(record: Filesystem) -> volume_pb2.Filesystem:
    """Return what is known of a filesystem."""
    return volume_pb2.Filesystem(
        state=FILESYSTEM_STATES.number(record.state),
        type=record.type,
        uuid=record.uuid,
        operation=record.operation,
        host=record.host,
        origin=record.origin,
    )


def host(record: Host) -> host_pb2.Host:
    """Return a host."""
    return host_pb2.Host(
        name=f"hosts/{record.id}",
        id=record.id,
        iqn=record.iqn,
        nqn=record.nqn,
        addresses=record.addresses,
        labels=dict(record.labels),
        max_attachments=record.max_attachments,
        etag=str(record.revision),
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
    )


def operation(record: Operation, *, planned: bool = False) -> operation_pb2.Operation:
    """Return an operation; a planned one was never stored, so it has no name."""
    told: dict[str, Any] = {"state": operation_pb2.OPERATION_STATE_PLANNED}
    if not planned:
        told = {
            "name": f"operations/{record.id}",
            "state": OPERATION_STATES.number(record.state),
            "create_time": _time(record.created_at),
            "end_time": _time(record.ended_at),
            "progress": record.progress,
        }
    return operation_pb2.Operation(
        kind=record.kind,
        subject=record.subject,
        title=record.title,
        caller=record.caller,
        actions=[_action(each) for each in record.actions],
        revision=record.revision,
        error=_failure(record.failure) if record.failure is not None else None,
        **told,
    )


def _action(record: Action) -> operation_pb2.Action:
    return operation_pb2.Action(
        step=record.description, up=record.up, status=ACTION_STATUSES.number(record.status)
    )


def _failure(record: Failure) -> operation_pb2.OperationError:
    return operation_pb2.OperationError(
        name=record.name,
        message=record.message,
        reason=record.reason,
        facts=dict(record.facts),
        step=record.step,
    )


def _time(seconds: int) -> Timestamp | None:
    return Timestamp(seconds=seconds) if seconds else None  # 0: never


# What we are told


def volume_id(name: str) -> str:
    """Return the id in a volume's name, else raise InvalidArgument."""
    return _id_in(name, "volumes", "volume id")


def host_id(name: str) -> str:
    """Return the id in a host's name, else raise InvalidArgument."""
    return _id_in(name, "hosts", "host id")


def snapshot_id(name: str) -> str:
    """Return the id in a snapshot's name, else raise InvalidArgument."""
    return _id_in(name, "snapshots", "snapshot id")


def group_id(name: str) -> str:
    """Return the id in the name of a group of snapshots, else raise InvalidArgument."""
    return _id_in(name, "snapshotGroups", "group id")


def operation_id(name: str) -> str:
    """Return the ULID in an operation's name, else raise InvalidArgument."""
    return _check_ulid(_behind(name, "operations"))


def ulid(text: str) -> str:
    """Return the ULID of another host's operation, or "" for none, else raise InvalidArgument."""
    return text and _check_ulid(text)


def read_filesystem(message: volume_pb2.Filesystem) -> Filesystem:
    """Return what a server says of a filesystem."""
    return Filesystem(
        state=FILESYSTEM_STATES.name(message.state),
        type=message.type,
        uuid=message.uuid,
        operation=message.operation,
        host=message.host,
        origin=message.origin,
    )


def as_pairs(mapping: Mapping[str, str]) -> Pairs:
    """Return a message's map as a record keeps it."""
    return pairs(dict(mapping))


def _check_ulid(text: str) -> str:
    if len(text) != ULID_LENGTH or not set(text) <= set(ALPHABET):
        raise InvalidArgument(f"{text[:80]!r} is no operation's ULID", reason="BAD_NAME")
    return text


def _id_in(name: str, collection: str, what: str) -> str:
    return check_id(_behind(name, collection), what)


def _behind(name: str, collection: str) -> str:
    head, slash, rest = name.partition("/")
    if head != collection or not slash:
        raise InvalidArgument(
            f"{name[:160]!r} is no name of that kind: {collection}/...", reason="BAD_NAME"
        )
    return rest
