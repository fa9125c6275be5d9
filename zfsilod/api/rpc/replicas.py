"""VolumeService: replication to a peer, and the replicas of this server that peers send."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from zfsilo.v1 import volume_pb2

from zfsilod.api.rpc.publications import check_filesystem
from zfsilod.api.rpc.volumes import change_volume
from zfsilod.model.errors import AlreadyExists, InvalidArgument, NotFound, ZfsiloError
from zfsilod.model.names import is_uid
from zfsilod.model.records import Operation, Volume
from zfsilod.model.validation import check_id
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.requests.replication import EndReplication, ReplicateVolume
from zfsilod.wire import convert, enums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.api.rpc.call import Call
    from zfsilod.model.host_facts import Filesystem
    from zfsilod.model.identity import Caller
    from zfsilod.model.replica import ReplicaFacts
    from zfsilod.storage.transaction import Transaction

OF_OTHERS = ("OTHER_VOLUME", "NOT_OURS")  # reasons whose error may name a volume of others
MAX_TIME = 253402300799  # 9999-12-31T23:59:59Z: google/protobuf/timestamp.proto

log = logging.getLogger(__name__)


class ReplicaMethods:
    """ReplicateVolume, EndReplication, GetReplica, ReceiveReplica."""

    async def ReplicateVolume(
        self, message: volume_pb2.ReplicateVolumeRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = ReplicateVolume(
            id=convert.volume_id(message.name),
            peer=check_id(message.peer, "server name"),
            rate=message.bytes_per_second if message.HasField("bytes_per_second") else None,
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def EndReplication(
        self, message: volume_pb2.EndReplicationRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = EndReplication(
            id=convert.volume_id(message.name), peer=check_id(message.peer, "server name")
        )
        return await change_volume(call, request, request.id, validate_only=message.validate_only)

    async def GetReplica(
        self, message: volume_pb2.GetReplicaRequest, call: Call
    ) -> volume_pb2.Replica:
        volume_id = convert.volume_id(message.name)
        if not is_uid(message.uid):
            raise InvalidArgument("the uid is not one of a volume", reason="BAD_REPLICA")
        if message.wait:
            await _receive_ended(call, volume_id, message.uid)
        volume = call.read(partial(_own_replica, call, volume_id, message.uid))
        context = call.service.context
        find = partial(context.machine.replicas.find, volume.dataset, uid=volume.uid)
        with _neutral(call, volume_id):
            facts: ReplicaFacts = await context.look(find)
        problem, reason = call.service.streams.problem(volume_id)
        return convert.replica(volume, facts.but(problem=problem, reason=reason))

    async def ReceiveReplica(
        self, message: volume_pb2.ReceiveReplicaRequest, call: Call
    ) -> volume_pb2.MutateVolumeResponse:
        request = ReceiveReplica(
            id=convert.volume_id(message.name),
            peer=call.caller.peer,
            uid=message.uid,
            capacity_bytes=message.capacity_bytes,
            volblocksize=message.volblocksize,
            mode=enums.MODES.name(message.mode),
            filesystem=_filesystem(message.filesystem),
            snapshot_uid=message.snapshot_uid,
            snapshot_guid=message.snapshot_guid,
            base_guid=message.base_guid,
            raw=message.raw,
            taken_at=_time(message.snapshot_time.seconds),
            stream=convert.ulid(message.attempt),
        )
        with _neutral(call, request.id):
            if message.validate_only:
                operation = await call.change(request, validate_only=True)
            else:
                operation = await call.receive(request)
        if call.caller.role != "admin":
            operation.ClearField("actions")  # they contain names of this server
        return volume_pb2.MutateVolumeResponse(operation=operation)


async def _receive_ended(call: Call, volume_id: str, uid: str) -> None:
    """Wait until the operation on a replica has ended, at most until the deadline of the call."""
    operation_id = call.read(partial(_running, call, volume_id, uid))
    if operation_id:
        try:
            await call.service.ended(operation_id, call.left_s)
        except ZfsiloError:
            return  # the caller reads what there is, and asks again


def _running(call: Call, volume_id: str, uid: str, txn: Transaction) -> str:
    """Return the operation on a replica of the caller; "": there is none.

    A first receive has no record yet, so the operation itself must be the caller's.
    """
    claimant = txn.claimant(f"volume/{volume_id}")
    operation = txn.get(Operation, claimant) if claimant else None
    if operation is None:
        return ""
    is_first = operation.kind == ReceiveReplica.kind and call.caller.overrides(operation.rights)
    volume = txn.get(Volume, volume_id)
    return operation.id if is_first or _is_own(call.caller, volume, uid) else ""


@contextmanager
def _neutral(call: Call, volume_id: str) -> Iterator[None]:
    """Refuse a peer without a word about the volume or dataset of others that is in its way."""
    try:
        yield
    except ZfsiloError as error:
        if call.caller.role == "admin" or error.reason not in OF_OTHERS:
            raise
        log.info("the replica of %s is refused to %s: %s", volume_id, call.caller, error.message)
        raise AlreadyExists(
            f"this server has another volume with the id {volume_id}, or with its uid: rename or "
            "delete one of both; the journal of this server names it",
            reason="OTHER_VOLUME",
            volume=volume_id,
        ) from None


def _is_own(caller: Caller, volume: Volume | None, uid: str) -> bool:
    """Tell whether a volume is a replica that a caller sends."""
    if volume is None or not volume.is_replica or volume.uid != uid:
        return False
    return caller.role == "admin" or volume.replica.peer == caller.peer


def _own_replica(call: Call, volume_id: str, uid: str, txn: Transaction) -> Volume:
    """Return the replica that a caller sends. It does not learn whether another volume exists."""
    volume = txn.get(Volume, volume_id)
    if volume is None or not _is_own(call.caller, volume, uid):
        raise NotFound(f"there is no replica {volume_id} of this caller", volume=volume_id)
    return volume


def _time(seconds: int) -> int:
    """Return the time of a snapshot. Raises InvalidArgument for one that has no date."""
    if not 0 <= seconds <= MAX_TIME:
        raise InvalidArgument("the time of the snapshot is not valid", reason="BAD_REPLICA")
    return seconds


def _filesystem(message: volume_pb2.Filesystem) -> Filesystem:
    """Return the filesystem of a snapshot. Its origin and host are of the other server."""
    if message.type or message.uuid:
        check_filesystem(message)
    convert.ulid(message.operation)
    filesystem = convert.read_filesystem(message)
    return filesystem.but(operation="", host="", origin="")
