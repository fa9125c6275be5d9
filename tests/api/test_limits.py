"""Every string, list and map of every request has a limit; a longer one is refused.

`REQUESTS` has a valid request of every method; each of its fields in turn is made too long. A field
that is not in a request here is never read (`NEVER_READ`), or is not a string, list or map.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import replication_pb2, snapshot_pb2, volume_pb2

from tests.api.running import connect, create, publish
from tests.api.test_roles import METHODS
from tests.channel import unix_channel_aio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from tests.api.running import Front

VOLUME, HOST = "volumes/data", "hosts/take"
ULID = "01jd00000000000000000000aa"
OPERATION = f"operations/{ULID}"
LABELS = {"tier": "gold"}
PAGE: dict[str, Any] = {"page_token": ""}
LIST = PAGE | {"filter": "id = x", "order_by": ""}
UUID = "6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
ABOUT_HOST = {
    "iqn": "iqn.2026-01.org.example:more",
    "nqn": "nqn.2026-01.org.example:more",
    "addresses": ["10.0.0.9"],
    "labels": LABELS,
}
POLICY = {
    "calendar": "daily",
    "grid": "7x1d",
    "selector": LABELS,
    "max_delay_seconds": 60,
}
SENDS = {"peer": "peer", "calendar": "daily", "selector": LABELS, "volumes": [VOLUME]}
NEW = {"capacity_bytes": 1 << 30, "access_modes": [1], "source": {"volume": VOLUME}}
FILESYSTEM = {"state": 2, "type": "ext4", "uuid": UUID, "operation": ULID}
CHANGED = {"properties": {"compression": "lz4"}, "labels": LABELS, "hosts": ["take"]}

# fmt: off
REQUESTS: dict[str, dict[str, Any]] = {
    "GetCapacity": {"root": "tank/zfsilo", "properties": {"compression": "lz4"}},
    "ListOrphans": PAGE,
    "RemoveOrphans": {"names": ["zvol/tank/zfsilo/none"]},
    "RotateSecrets": {"volume": VOLUME, "host": HOST},
    "RenewCertificate": {"request": ""},
    "GetVolume": {"name": VOLUME},
    "ListVolumes": LIST,
    "StatsVolume": {"name": VOLUME},
    "ProbeVolume": {"name": VOLUME},
    "SyncVolume": {"name": VOLUME},
    "CreateVolume": {"volume_id": "more", "volume": CHANGED | NEW},
    "UpdateVolume": {
        "volume": {"name": VOLUME} | CHANGED,
        "update_mask": {"paths": ["labels", "hosts", "properties"]},
    },
    "DeleteVolume": {"name": VOLUME},
    "UndeleteVolume": {"name": VOLUME, "uid": "a" * 32},
    "RotateVolumeKey": {"name": VOLUME},
    "ExportVolumeKey": {"name": VOLUME},
    "PromoteVolume": {"name": VOLUME},
    "DemoteVolume": {"name": VOLUME, "peer": "peer"},
    "ReplicateVolume": {"name": VOLUME, "peer": "peer"},
    "EndReplication": {"name": VOLUME, "peer": "peer"},
    "GetReplica": {"name": VOLUME, "uid": "a" * 32},
    "ReceiveReplica": {
        "name": "volumes/replica", "uid": "a" * 32, "filesystem": FILESYSTEM,
        "snapshot_uid": "b" * 32, "snapshot_guid": "17", "base_guid": "18", "attempt": ULID,
        "mode": "MODE_FILESYSTEM", "capacity_bytes": 1 << 30, "volblocksize": 16384,
        "term": 1, "term_store": "c" * 32,
    },
    "AdoptVolume": {"dataset": "tank/zfsilo/none", "volume_id": "more"},
    "PublishVolume": {"name": VOLUME, "host": HOST, "client_operation": ULID},
    "UnpublishVolume": {"name": VOLUME, "host": HOST, "client_operation": ULID},
    "ListPublications": {"volume": VOLUME, "host": HOST} | PAGE,
    "FetchConnection": {"name": VOLUME, "host": HOST},
    "ReportFilesystem": {"name": VOLUME, "host": HOST, "filesystem": FILESYSTEM},
    "AttachVolume": {
        "server": "give", "volume": "data", "local_name": "data", "staging_path": "/mnt/staged",
        "path": "/mnt/used", "fs_type": "ext4", "mount_options": ["noatime"],
    },
    "DetachVolume": {"name": VOLUME, "path": "/mnt/staged"},
    "ConnectVolume": {"server": "give", "volume": "data", "local_name": "data"},
    "DisconnectVolume": {"name": VOLUME},
    "StageVolume": {
        "name": VOLUME, "path": "/mnt", "fs_type": "ext4", "mount_options": ["noatime"],
    },
    "UnstageVolume": {"name": VOLUME, "path": "/mnt"},
    "MountVolume": {"name": "volumes/log", "path": "/mnt"},
    "UnmountVolume": {"name": VOLUME, "path": "/mnt"},
    "GrowVolume": {"name": VOLUME},
    "CreateSnapshot": {"snapshot_id": "monday", "volume": VOLUME, "labels": LABELS},
    "GetSnapshot": {"name": "snapshots/none"},
    "ListSnapshots": LIST | {"volume": VOLUME},
    "ReadSnapshotBlocks": {"name": "snapshots/none", "base": "snapshots/older"},
    "DeleteSnapshot": {"name": "snapshots/none"},
    "CreateSnapshotGroup": {"group_id": "both", "volumes": [VOLUME], "labels": LABELS},
    "GetSnapshotGroup": {"name": "snapshotGroups/none"},
    "ListSnapshotGroups": LIST,
    "DeleteSnapshotGroup": {"name": "snapshotGroups/none"},
    "CreateSnapshotPolicy": {"policy_id": "nightly", "policy": POLICY},
    "GetSnapshotPolicy": {"name": "snapshotPolicies/none"},
    "ListSnapshotPolicies": LIST,
    "UpdateSnapshotPolicy": {
        "policy": POLICY | {"name": "snapshotPolicies/hourly"},
        "update_mask": {"paths": ["calendar", "grid", "selector", "max_delay_seconds"]},
    },
    "DeleteSnapshotPolicy": {"name": "snapshotPolicies/none"},
    "RunSnapshotPolicy": {"name": "snapshotPolicies/none"},
    "CreateReplicationPolicy": {"policy_id": "nightly", "policy": SENDS},
    "GetReplicationPolicy": {"name": "replicationPolicies/none"},
    "ListReplicationPolicies": LIST,
    "UpdateReplicationPolicy": {
        "policy": SENDS | {"name": "replicationPolicies/hourly"},
        "update_mask": {"paths": ["peer", "calendar", "selector", "volumes"]},
    },
    "DeleteReplicationPolicy": {"name": "replicationPolicies/none"},
    "RunReplicationPolicy": {"name": "replicationPolicies/none"},
    "GetHost": {"name": HOST},
    "ListHosts": LIST,
    "CreateHost": {"host_id": "more", "host": ABOUT_HOST},
    "UpdateHost": {
        "host": ABOUT_HOST | {"name": HOST},
        "update_mask": {"paths": ["labels", "iqn", "nqn", "addresses"]},
    },
    "DeleteHost": {"name": "hosts/none"},
    "RegisterHost": {"host": ABOUT_HOST | {"name": "hosts/more"}},
    "IntroduceHost": {"server": "give"},
    "GetOperation": {"name": OPERATION},
    "ListOperations": LIST,
    "WaitOperation": {"name": OPERATION, "timeout": {"seconds": 1}},
    "WatchOperations": {"filter": ""},
    "CancelOperation": {"name": OPERATION},
    "RepairOperation": {"name": OPERATION},
    "AbandonOperation": {"name": OPERATION},
}
PATHS = {path.rpartition("/")[2]: path for path in METHODS if "zfsilo.v1" in path}
LONG, MANY = "a" * 5000, 2000
REFUSED = grpc.StatusCode.INVALID_ARGUMENT
MAX_MESSAGE = 1000  # characters of an error
DEADLINE_S = 20
# Output only fields, and etags, which are compared. A machine can only be set to "".
NEVER_READ = re.compile(
    r"etag|volume\.(id|uid|dataset|etag|operation|condition.*|publications|attachment.*|filesystem.*|key.*"
    r"|replica.*|peers|aside_of)"
    r"|policy\.(id|etag|volumes|selected|failures)|host\.(id|etag|authority|machine)|filesystem\.(host|origin)|.*_time.*"
)
# Fields that only another method reads.
ELSEWHERE = {
    ("CreateVolume", "volume.name"), ("CreateVolume", "volume.source.snapshot"),
    ("UpdateVolume", "volume.access_modes"), ("UpdateVolume", "volume.source.snapshot"),
    ("UpdateVolume", "volume.source.volume"), ("CreateHost", "host.name"),
    ("CreateSnapshotPolicy", "policy.name"), ("CreateReplicationPolicy", "policy.name"),
}


def fields_at(message: Message, path: str) -> Iterator[tuple[Message, Any]]:
    """Yield the field at a path of a request, with the message that contains it."""
    head, _dot, rest = path.partition(".")
    if rest:
        yield from fields_at(getattr(message, head), rest)
    else:
        yield message, message.DESCRIPTOR.fields_by_name[head]


def texts_of(kind: Descriptor, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all strings, lists and maps of a request."""
    for field in kind.fields:
        if field.is_repeated or field.type == field.TYPE_STRING:
            yield prefix + field.name
        elif field.message_type and not NEVER_READ.fullmatch(prefix + field.name):
            yield from texts_of(field.message_type, f"{prefix}{field.name}.")


def overdo(holder: Message, field: Any) -> None:
    """Make a field too long: a string by characters, a list or map by entries."""
    now = getattr(holder, field.name)
    if not field.is_repeated:
        head, slash, _tail = now.rpartition("/")
        setattr(holder, field.name, f"{head}{slash}{LONG}")
    elif field.message_type and field.message_type.GetOptions().map_entry:
        for number in range(MANY):
            now[f"a{number}"] = "b"
    elif field.type == field.TYPE_STRING:
        now.extend([now[0] if now else "a"] * MANY)
    else:
        now.extend([now[0]] * MANY)


def read_fields(kind: Descriptor | None, example: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the paths of the fields that an example sets."""
    paths = set()
    assert kind is not None
    for name, value in example.items():
        field = kind.fields_by_name[name]
        nested = field.message_type and isinstance(value, dict) and not field.is_repeated
        paths |= (
            read_fields(field.message_type, value, f"{prefix}{name}.")
            if nested
            else {prefix + name}
        )
    return paths


CASES = sorted(
    (name, field)
    for name, example in REQUESTS.items()
    for kind in (METHODS[PATHS[name]].input_type,)
    for field in read_fields(kind, example) & set(texts_of(kind))
)


# Fields that are only compared with existing values, where a long one matches none. A path counts
# once in a mask. Certificates: tests/api/test_certs.py.
COMPARED = {
    ("RenewCertificate", "request"), ("UndeleteVolume", "uid"), ("UnstageVolume", "path"),
    ("UnmountVolume", "path"), ("UpdateHost", "update_mask.paths"),
    ("UpdateVolume", "update_mask.paths"), ("UpdateSnapshotPolicy", "update_mask.paths"),
    ("UpdateReplicationPolicy", "update_mask.paths"),
}


def request(name: str) -> Any:
    """Return the example of a request, with `validate_only` if it has that field."""
    kind = METHODS[PATHS[name]].input_type
    dry = {"validate_only": True} if "validate_only" in kind.fields_by_name else {}
    return GetMessageClass(kind)(**REQUESTS[name], **dry)


async def ask(front: Front, name: str, message: Message) -> tuple[grpc.StatusCode, str]:
    """Call a method, and return the code and the message of its result."""
    method = METHODS[PATHS[name]]
    channel = unix_channel_aio(front.path)
    front.channels.append(channel)
    parse = GetMessageClass(method.output_type).FromString
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(PATHS[name], type(message).SerializeToString, parse)(message, timeout=DEADLINE_S)
    try:
        await (call.read() if method.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    call.cancel()
    return grpc.StatusCode.OK, ""


def test_every_text_of_every_request_has_an_example() -> None:
    for name, path in PATHS.items():
        kind = METHODS[path].input_type
        texts = {text for text in texts_of(kind) if not NEVER_READ.fullmatch(text)}
        texts -= {field for method, field in ELSEWHERE if method == name}
        assert texts <= read_fields(kind, REQUESTS.get(name, {})), name


async def test_fields_beyond_their_limit_are_refused(front: Front) -> None:
    api = front.root()
    for name in ("data", "log"):
        await api.volumes.CreateVolume(create(name))
        await api.volumes.PublishVolume(publish(name=f"volumes/{name}"))
        await api.volumes.ConnectVolume(connect(volume=name))
    await api.volumes.StageVolume(volume_pb2.StageVolumeRequest(name="volumes/log"))
    policy = snapshot_pb2.SnapshotPolicy(calendar="daily", grid="7x1d")
    await api.snapshots.CreateSnapshotPolicy(
        snapshot_pb2.CreateSnapshotPolicyRequest(policy_id="hourly", policy=policy)
    )
    sends = replication_pb2.ReplicationPolicy(peer="peer", calendar="daily")
    await api.replications.CreateReplicationPolicy(
        replication_pb2.CreateReplicationPolicyRequest(policy_id="hourly", policy=sends)
    )
    for name in REQUESTS:
        code, said = await ask(front, name, request(name))
        assert code != REFUSED, f"{name}: {said}"
    for name, path in CASES:
        message = request(name)
        for holder, field in list(fields_at(message, path)):
            overdo(holder, field)
        code, said = await ask(front, name, message)
        assert code == REFUSED or (name, path) in COMPARED, f"{name} {path}: {code} {said[:200]}"
        assert len(said) < MAX_MESSAGE, f"{name} {path} is repeated: {said[:200]}"
