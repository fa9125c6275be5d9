"""Conversion of records to protobuf messages, and of message fields to records. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from zfsilo.v1 import host_pb2, operation_pb2, replication_pb2, snapshot_pb2, volume_pb2

from zfsilod.model.errors import InvalidArgument
from zfsilod.model.host_facts import Filesystem
from zfsilod.model.record import Pairs, pairs
from zfsilod.model.records import Publication
from zfsilod.model.ulid import ALPHABET
from zfsilod.model.ulid import LENGTH as ULID_LENGTH
from zfsilod.model.validation import check_id
from zfsilod.wire import enums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfsilod.model.policies import (
        PolicyOutcome,
        ReplicationOutcome,
        ReplicationPolicy,
        SnapshotPolicy,
    )
    from zfsilod.model.records import (
        Attachment,
        Host,
        Operation,
        Snapshot,
        SnapshotGroup,
        Volume,
        VolumeKey,
    )
    from zfsilod.model.replica import ReplicaFacts, Replication
    from zfsilod.service.drift import Check, DriftReport
    from zfsilod.service.replication import Transfer
    from zfsilod.storage.volume_view import VolumeView


# Records to messages


def volume(view: VolumeView) -> volume_pb2.Volume:
    """Return a volume as this host knows it."""
    record = view.volume or view.attachment
    assert record is not None, f"empty view: {view.id}"
    return volume_pb2.Volume(
        name=f"volumes/{view.id}",
        id=view.id,
        state=enums.VOLUME_STATES.number(view.state),
        etag=view.etag,
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
        operation=f"operations/{view.operation}" if view.operation else "",
        attachment=attachment(view.attachment) if view.attachment is not None else None,
        publications=list(map(publication, view.publications)) or None,
        conditions=view.conditions or None,
        condition_reasons=view.condition_reasons or None,
        key=_volume_key(view.volume_key) if view.volume_key else None,
        delete_time=_time(view.trashed.deleted_at) if view.trashed else None,
        purge_time=_time(view.trashed.purge_at) if view.trashed else None,
        replications=list(map(_replication, view.replications)) or None,
        **_volume_fields(view.volume) if view.volume is not None else {},
    )


def differences(report: DriftReport) -> list[volume_pb2.Difference]:
    """Return the differences in a drift report."""
    return [
        volume_pb2.Difference(
            volume=report.volume,
            fact=difference.fact,
            wanted=difference.wanted,
            problem=difference.problem,
            reason=difference.reason,
        )
        for difference in report.differences
    ]


def fact(checked: Check) -> volume_pb2.Fact:
    """Return a fact with the result of its probe."""
    return volume_pb2.Fact(
        kind=checked.kind,
        text=checked.text,
        wanted=checked.wanted,
        problem=checked.problem,
        truth=f"TRUTH_{checked.truth}",
        parameters=dict(checked.parameters),
    )


def _volume_fields(record: Volume) -> dict[str, Any]:
    """Return the fields that a volume has on its server."""
    source = None
    if record.source_snapshot:
        source = volume_pb2.VolumeSource(snapshot=f"snapshots/{record.source_snapshot}")
    elif record.source_volume:
        source = volume_pb2.VolumeSource(volume=f"volumes/{record.source_volume}")
    return {
        "uid": record.uid,
        "dataset": record.dataset,
        "capacity_bytes": record.capacity_bytes,
        "thin": record.thin,
        "mode": enums.MODES.number(record.mode),
        "volblocksize": record.volblocksize,
        # None: creating an empty map takes a third of the time of a volume.
        "properties": dict(record.properties) or None,
        "labels": dict(record.labels) or None,
        "hosts": record.hosts or None,
        "access_modes": [enums.ACCESS_MODES.number(mode) for mode in record.access_modes],
        "filesystem": filesystem(record.filesystem),
        "transport": enums.TRANSPORTS.number(record.transport),
        "tls": record.tls,
        "source": source,
        "limit_read_iops": record.limits.read_iops,
        "limit_write_iops": record.limits.write_iops,
        "limit_read_bytes": record.limits.read_bytes,
        "limit_write_bytes": record.limits.write_bytes,
        "encrypted": bool(record.key_uid),
        "replica": replica(record) if record.is_replica else None,
        "term": record.term,
        "peers": record.peers or None,
        "aside_of": record.aside_of,
    }


def replica(record: Volume, facts: ReplicaFacts | None = None) -> volume_pb2.Replica:
    """Return a replica, as its record has it, or with what its peer needs to go on."""
    known = record.replica
    message = volume_pb2.Replica(
        name=f"volumes/{record.id}",
        peer=known.peer,
        snapshot_guid=known.snapshot_guid,
        snapshot_time=_time(known.taken_at),
        receive_time=_time(known.received_at),
        encrypted=known.raw,
        term=record.term,
        term_store=record.term_store,
    )
    if facts is not None:
        message.snapshot_guid = facts.guid
        message.continuation = facts.token
        message.problem = facts.problem
        message.problem_reason = facts.reason
    return message


def role(record: Volume) -> volume_pb2.Replica:
    """Return only what a server is for a volume, for a peer that does not send it."""
    return volume_pb2.Replica(
        name=f"volumes/{record.id}",
        primary=not record.is_replica,
        term=record.term,
        term_store=record.term_store,
    )


def _replication(record: Replication) -> volume_pb2.Replication:
    return volume_pb2.Replication(
        peer=record.peer,
        snapshot=f"snapshots/{record.snapshot}" if record.snapshot else "",
        snapshot_time=_time(record.taken_at),
        pending=bool(record.pending_uid),
        due_time=_time(record.due_at),
    )


def _volume_key(record: VolumeKey) -> volume_pb2.VolumeKey:
    return volume_pb2.VolumeKey(
        volume_uid=record.id,
        rotation=record.rotation,
        create_time=_time(record.created_at),
        export_time=_time(record.exported_at) if record.exported_at else None,
    )


def snapshot(record: Snapshot, *, operation: str) -> snapshot_pb2.Snapshot:
    """Return a snapshot, with the operation that has its claim."""
    return snapshot_pb2.Snapshot(
        name=f"snapshots/{record.id}",
        id=record.id,
        volume=f"volumes/{record.volume}",
        volume_uid=record.volume_uid,
        size_bytes=record.size_bytes,
        mode=enums.MODES.number(record.mode),
        labels=dict(record.labels),
        group=f"snapshotGroups/{record.group}" if record.group else "",
        filesystem=filesystem(record.filesystem),
        etag=str(record.revision),
        create_time=_time(record.created_at),
        operation=f"operations/{operation}" if operation else "",
        policy=f"snapshotPolicies/{record.policy}" if record.policy else "",
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
        policy=f"snapshotPolicies/{record.policy}" if record.policy else "",
    )


def snapshot_policy(
    record: SnapshotPolicy, outcome: PolicyOutcome, volumes: list[str]
) -> snapshot_pb2.SnapshotPolicy:
    """Return a policy, with the ids of the volumes that it selects."""
    return snapshot_pb2.SnapshotPolicy(
        name=f"snapshotPolicies/{record.id}",
        id=record.id,
        calendar=record.calendar,
        grid=record.grid,
        selector=dict(record.selector),
        grouped=record.grouped,
        max_delay_seconds=record.max_delay_seconds,
        volumes=[f"volumes/{volume}" for volume in volumes],
        run_time=_time(outcome.ran_at),
        success_time=_time(outcome.succeeded_at),
        failures=outcome.all_failures,
        etag=str(record.revision),
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
    )


def replication_policy(
    record: ReplicationPolicy, outcome: ReplicationOutcome, selected: list[str]
) -> replication_pb2.ReplicationPolicy:
    """Return a policy, with the ids of the volumes that it selects."""
    return replication_pb2.ReplicationPolicy(
        name=f"replicationPolicies/{record.id}",
        id=record.id,
        peer=record.peer,
        calendar=record.calendar,
        selector=dict(record.selector),
        volumes=[f"volumes/{volume}" for volume in record.volumes],
        bytes_per_second=record.bytes_per_second,
        max_delay_seconds=record.max_delay_seconds,
        selected=[f"volumes/{volume}" for volume in selected],
        running=outcome.missed,
        run_time=_time(outcome.ran_at),
        success_time=_time(outcome.succeeded_at),
        failures=outcome.all_failures,
        etag=str(record.revision),
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
    )


def publication(record: Publication) -> volume_pb2.Publication:
    """Return a publication; its record contains no secrets."""
    return volume_pb2.Publication(
        volume=f"volumes/{record.volume}",
        host=f"hosts/{record.host}",
        initiator=record.initiator,
        transport=enums.TRANSPORTS.number(record.transport),
        tls=record.tls,
        access_mode=enums.ACCESS_MODES.number(record.access_mode),
        readonly=record.readonly,
        epoch=record.epoch,
        published_by=record.published_by,
        create_time=_time(record.created_at),
        rotation=record.rotation,
        rotation_due=record.rotation_due,
    )


def read_publication(message: volume_pb2.Publication) -> Publication:
    """Return the fields of a publication that its client needs."""
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
    """Return an attachment."""
    disk = record.disk
    return volume_pb2.Attachment(
        server=record.server,
        volume=record.volume,
        state=enums.VOLUME_STATES.number(record.state),
        disk=volume_pb2.Disk(target=disk.target, serial=disk.serial, size_bytes=disk.size_bytes),
        portals=record.portals,
        tls=record.tls,
        mode=enums.MODES.number(record.mode),
        epoch=record.epoch,
        readonly=record.readonly,
        restore=enums.RESTORES.number(record.restore),
        filesystem=filesystem(record.filesystem),
        staging_path=record.staging_path,
        mount_options=record.mount_options,
        stage_readonly=record.stage_readonly,
        mounts=[
            volume_pb2.Mount(path=mount.path, readonly=mount.readonly) for mount in record.mounts
        ],
        published_here=bool(record.published_here),
    )


def filesystem(record: Filesystem) -> volume_pb2.Filesystem:
    """Return a filesystem."""
    return volume_pb2.Filesystem(
        state=enums.FILESYSTEM_STATES.number(record.state),
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
        authority=record.authority,
        machine=record.machine,
        etag=str(record.revision),
        create_time=_time(record.created_at),
        update_time=_time(record.updated_at),
    )


def operation(record: Operation, *, planned: bool = False) -> operation_pb2.Operation:
    """Return an operation; a planned one is not stored and has no name."""
    stored: dict[str, Any] = {"state": operation_pb2.OPERATION_STATE_PLANNED}
    if not planned:
        stored = {
            "name": f"operations/{record.id}",
            "state": enums.OPERATION_STATES.number(record.state),
            "create_time": _time(record.created_at),
            "end_time": _time(record.ended_at),
            "progress": record.progress,
        }
    failure = record.failure
    return operation_pb2.Operation(
        kind=record.kind,
        subject=record.subject,
        title=record.title,
        caller=record.caller,
        actions=[
            operation_pb2.Action(
                step=action.description,
                up=action.up,
                status=enums.ACTION_STATUSES.number(action.status),
            )
            for action in record.actions
        ],
        revision=record.revision,
        error=operation_pb2.OperationError(
            name=failure.name,
            message=failure.message,
            reason=failure.reason,
            facts=dict(failure.facts),
            step=failure.step,
        )
        if failure is not None
        else None,
        **stored,
    )


def offered(volume: Volume, snapshot: Snapshot, base_guid: str, *, raw: bool, attempt: str) -> Any:
    """Return the request that offers a snapshot of a volume to a peer."""
    return volume_pb2.ReceiveReplicaRequest(
        name=f"volumes/{snapshot.volume}",
        uid=snapshot.volume_uid,
        capacity_bytes=snapshot.size_bytes,
        volblocksize=snapshot.volblocksize,
        mode=enums.MODES.number(snapshot.mode),
        filesystem=filesystem(snapshot.filesystem),
        snapshot_uid=snapshot.uid,
        snapshot_guid=snapshot.guid,
        base_guid=base_guid,
        raw=raw,
        snapshot_time=_time(snapshot.created_at),
        attempt=attempt,
        term=volume.term,
        term_store=volume.term_store,
    )


def transfer(sent: Transfer) -> operation_pb2.Transfer:
    """Return how far a stream is."""
    return operation_pb2.Transfer(
        sent_bytes=sent.sent_bytes, total_bytes=sent.total_bytes, bytes_per_second=sent.rate
    )


def _time(seconds: int) -> Timestamp | None:
    return Timestamp(seconds=seconds) if seconds else None  # 0: never


# Message fields to records


def volume_id(name: str) -> str:
    """Return the id in a volume's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "volumes"), "volume id")


def host_id(name: str) -> str:
    """Return the id in a host's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "hosts"), "host id")


def snapshot_id(name: str) -> str:
    """Return the id in a snapshot's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "snapshots"), "snapshot id")


def group_id(name: str) -> str:
    """Return the id in a snapshot group's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "snapshotGroups"), "group id")


def policy_id(name: str) -> str:
    """Return the id in a snapshot policy's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "snapshotPolicies"), "policy id")


def replication_policy_id(name: str) -> str:
    """Return the id in a replication policy's name, else raise InvalidArgument."""
    return check_id(_id_in(name, "replicationPolicies"), "policy id")


def operation_id(name: str) -> str:
    """Return the ULID in an operation's name, else raise InvalidArgument."""
    return _check_ulid(_id_in(name, "operations"))


def ulid(text: str) -> str:
    """Return the ULID of another host's operation, "" for none. Raises InvalidArgument."""
    return text and _check_ulid(text)


def read_filesystem(message: volume_pb2.Filesystem) -> Filesystem:
    """Return a filesystem as its server reports it."""
    return Filesystem(
        state=enums.FILESYSTEM_STATES.name(message.state),
        type=message.type,
        uuid=message.uuid,
        operation=message.operation,
        host=message.host,
        origin=message.origin,
    )


def as_pairs(mapping: Mapping[str, str]) -> Pairs:
    """Return a map of a message as pairs of a record."""
    return pairs(dict(mapping))


def _check_ulid(text: str) -> str:
    if len(text) != ULID_LENGTH or not set(text) <= set(ALPHABET):
        raise InvalidArgument(
            f"invalid operation id {text[:80]!r}: expected a ULID", reason="BAD_NAME"
        )
    return text


def _id_in(name: str, collection: str) -> str:
    head, slash, resource_id = name.partition("/")
    if head != collection or not slash:
        raise InvalidArgument(
            f"invalid resource name {name[:160]!r}: expected {collection}/ID", reason="BAD_NAME"
        )
    return resource_id
