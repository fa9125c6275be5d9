"""The D-Bus methods that submit a request: its fields, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    REPLICATION_POLICY,
    SNAPSHOT,
    SNAPSHOT_POLICY,
    VOLUME,
)
from zfsilod.requests.attach import Grow, MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.hosts import CreateHost, DeleteHost, UpdateHost
from zfsilod.requests.io_limits import LIMITS
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.replication import EndReplication, ReplicateVolume
from zfsilod.requests.replication_policies import (
    CreateReplicationPolicy,
    DeleteReplicationPolicy,
    UpdateReplicationPolicy,
)
from zfsilod.requests.rotate_secrets import RotateSecrets
from zfsilod.requests.snapshot_policies import (
    CreateSnapshotPolicy,
    DeleteSnapshotPolicy,
    UpdateSnapshotPolicy,
)
from zfsilod.requests.snapshots import CreateSnapshot, DeleteSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volume_keys import RotateVolumeKey
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.requests.whole_paths import AttachVolume, DetachVolume
from zfsilod.service.pool_scan import ZvolToAdopt

if TYPE_CHECKING:
    from zfsilod.requests.request import Request

# Fields that an update mask never contains.
NOT_IN_MASK = ("id", "etag", "limit_bytes", "select_all")


class Mutation(NamedTuple):
    """A method that submits a request: the fields of its arguments, and its options."""

    request: type[Request[Any]] | type[ZvolToAdopt]
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()
    fixed: tuple[tuple[str, object], ...] = ()


# The first argument of a method of an object other than the Manager is the id of the object.
MUTATIONS = {
    f"{MANAGER}.CreateVolume": Mutation(
        CreateVolume,
        ("id", "capacity_bytes"),
        (
            "limit_bytes",
            "thin",
            "mode",
            "properties",
            "labels",
            "hosts",
            "access_modes",
            "transport",
            *LIMITS,
            "tls",
            "encrypt",
            "source_snapshot",
            "source_volume",
        ),
    ),
    f"{MANAGER}.UndeleteVolume": Mutation(UndeleteVolume, ("id",), ("uid",)),
    f"{MANAGER}.AdoptVolume": Mutation(ZvolToAdopt, ("dataset",), ("id", "accept_copy")),
    f"{MANAGER}.Attach": Mutation(
        AttachVolume,
        ("server", "volume", "path"),
        (
            "local_name",
            "state",
            "restore",
            "publish_if_needed",
            "transport",
            "tls",
            "epoch",
            "staging_path",
            "fs_type",
            "mount_options",
            "readonly",
        ),
    ),
    f"{MANAGER}.Connect": Mutation(
        Connect,
        ("server", "volume"),
        ("local_name", "restore", "publish_if_needed", "transport", "tls", "epoch"),
    ),
    f"{MANAGER}.RegisterHost": Mutation(
        CreateHost,
        ("id",),
        ("iqn", "nqn", "addresses", "labels", "max_attachments"),
        (("register", True),),
    ),
    f"{MANAGER}.RemoveOrphans": Mutation(RemoveOrphans, ("names",), ("force",)),
    f"{MANAGER}.DeleteHost": Mutation(DeleteHost, ("id",), ("etag",)),
    f"{MANAGER}.CreateSnapshotPolicy": Mutation(
        CreateSnapshotPolicy,
        ("id", "calendar", "grid"),
        ("selector", "grouped", "max_delay_seconds"),
    ),
    f"{SNAPSHOT_POLICY}.Update": Mutation(
        UpdateSnapshotPolicy,
        ("id",),
        ("calendar", "grid", "selector", "grouped", "max_delay_seconds", "select_all", "etag"),
    ),
    f"{SNAPSHOT_POLICY}.Delete": Mutation(DeleteSnapshotPolicy, ("id",), ("etag",)),
    f"{MANAGER}.CreateReplicationPolicy": Mutation(
        CreateReplicationPolicy,
        ("id", "peer", "calendar"),
        ("selector", "volumes", "bytes_per_second", "max_delay_seconds"),
    ),
    f"{REPLICATION_POLICY}.Update": Mutation(
        UpdateReplicationPolicy,
        ("id",),
        (
            "peer",
            "calendar",
            "selector",
            "volumes",
            "bytes_per_second",
            "max_delay_seconds",
            "select_all",
            "etag",
        ),
    ),
    f"{REPLICATION_POLICY}.Delete": Mutation(DeleteReplicationPolicy, ("id",), ("etag",)),
    f"{HOST}.Update": Mutation(
        UpdateHost, ("id",), ("iqn", "nqn", "addresses", "labels", "max_attachments", "etag")
    ),
    f"{VOLUME}.Snapshot": Mutation(CreateSnapshot, ("volume", "id"), ("labels",)),
    f"{SNAPSHOT}.Delete": Mutation(DeleteSnapshot, ("id",), ("etag",)),
    f"{VOLUME}.Delete": Mutation(
        DeleteVolume, ("id",), ("etag", "dependents", "record_only", "unpublish")
    ),
    f"{VOLUME}.Update": Mutation(
        UpdateVolume,
        ("id",),
        ("capacity_bytes", "limit_bytes", "properties", "labels", "hosts", *LIMITS, "etag"),
    ),
    f"{VOLUME}.Resize": Mutation(UpdateVolume, ("id", "capacity_bytes"), ("limit_bytes", "etag")),
    f"{VOLUME}.Publish": Mutation(
        Publish,
        ("volume", "host"),
        ("access_mode", "readonly", "transport", "tls", "force", "etag"),
    ),
    f"{VOLUME}.Unpublish": Mutation(Unpublish, ("volume", "host"), ("fence", "grace_s", "etag")),
    f"{VOLUME}.RotateSecrets": Mutation(RotateSecrets, ("volume", "host"), ("force",)),
    f"{VOLUME}.RotateKey": Mutation(RotateVolumeKey, ("id",), ("etag",)),
    f"{VOLUME}.Replicate": Mutation(ReplicateVolume, ("id", "peer"), ("rate",)),
    f"{VOLUME}.EndReplication": Mutation(EndReplication, ("id", "peer")),
    f"{VOLUME}.Detach": Mutation(DetachVolume, ("id",), ("state", "force", "etag")),
    f"{VOLUME}.Disconnect": Mutation(Disconnect, ("id",), ("force", "etag")),
    f"{VOLUME}.Stage": Mutation(
        Stage, ("id", "path"), ("fs_type", "mount_options", "readonly", "etag")
    ),
    f"{VOLUME}.Unstage": Mutation(Unstage, ("id", "path"), ("force", "etag")),
    f"{VOLUME}.Mount": Mutation(MountAt, ("id", "path"), ("readonly", "etag")),
    f"{VOLUME}.Unmount": Mutation(UnmountFrom, ("id", "path"), ("force", "etag")),
    f"{VOLUME}.Grow": Mutation(Grow, ("id",), ("etag",)),
    f"{VOLUME}.Sync": Mutation(SyncVolume, ("id",)),
}


def make_request(
    mutation: Mutation, arguments: list[Any], options: dict[str, Any]
) -> Request[Any] | ZvolToAdopt:
    """Return the request of a call."""
    values = (tuple(value) if isinstance(value, list) else value for value in arguments)
    fields: dict[str, Any] = dict(zip(mutation.arguments, values, strict=True))
    fields |= options | dict(mutation.fixed)
    if mutation.request in (AttachVolume, Connect):
        fields.setdefault("id", fields["volume"])
    if "mask" in mutation.request.FIELDS:
        fields["mask"] = tuple(name for name in fields if name not in NOT_IN_MASK)
    return mutation.request(**fields)
