"""Authorization: the roles that may call each gRPC method, the polkit action of each D-Bus method.

A method without an entry is refused to every caller. Which resources a role may use them on is in
requests/rights.py. `python -m zfsilod.security.authorization`
prints the tables as Markdown.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, get_args

from zfsilod.model.errors import PermissionDenied
from zfsilod.model.identity import Role

if TYPE_CHECKING:
    from zfsilod.model.identity import Caller

ADMIN = ("admin",)
NODES = ("admin", "node")
MANAGERS = ("admin", "controller")
HOSTS = ("admin", "host")
READERS = ("admin", "controller", "reader")
REMOTE = ("admin", "controller", "host", "reader")
PEERS = ("admin", "replica")
ALL = ("admin", "controller", "host", "node", "reader")

ROLES: dict[str, tuple[str, ...]] = {
    "/grpc.health.v1.Health/Check": READERS,
    "/grpc.health.v1.Health/List": READERS,
    "/grpc.health.v1.Health/Watch": READERS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": READERS,
    "/zfsilo.v1.Service/GetServerInfo": ALL,
    "/zfsilo.v1.Service/ListOrphans": ADMIN,
    "/zfsilo.v1.Service/RemoveOrphans": ADMIN,
    "/zfsilo.v1.Service/RotateSecrets": HOSTS,  # its own
    "/zfsilo.v1.Service/RenewCertificate": (*REMOTE, "replica"),  # its own
    "/zfsilo.v1.Service/BindMachine": ADMIN,
    "/zfsilo.v1.Service/GetCapacity": READERS,
    "/zfsilo.v1.Service/GetStatus": READERS,
    # Hosts and nodes see a part only: visible_to in requests/rights.py.
    "/zfsilo.v1.VolumeService/GetVolume": ALL,
    "/zfsilo.v1.VolumeService/ListVolumes": REMOTE,
    "/zfsilo.v1.VolumeService/StatsVolume": ALL,
    "/zfsilo.v1.VolumeService/ProbeVolume": READERS,
    "/zfsilo.v1.VolumeService/SyncVolume": ADMIN,
    "/zfsilo.v1.VolumeService/SyncVolumes": ADMIN,
    "/zfsilo.v1.VolumeService/CreateVolume": MANAGERS,
    "/zfsilo.v1.VolumeService/UpdateVolume": MANAGERS,
    "/zfsilo.v1.VolumeService/AdoptVolume": ADMIN,
    "/zfsilo.v1.VolumeService/AdoptVolumes": ADMIN,
    "/zfsilo.v1.VolumeService/DeleteVolume": MANAGERS,
    "/zfsilo.v1.VolumeService/UndeleteVolume": MANAGERS,
    "/zfsilo.v1.VolumeService/RotateVolumeKey": ADMIN,
    "/zfsilo.v1.VolumeService/ExportVolumeKey": ADMIN,
    "/zfsilo.v1.VolumeService/ReplicateVolume": ADMIN,
    "/zfsilo.v1.VolumeService/EndReplication": ADMIN,
    "/zfsilo.v1.VolumeService/PromoteVolume": ADMIN,
    "/zfsilo.v1.VolumeService/DemoteVolume": ADMIN,
    # A peer has the replicas that it sends, below the dataset root, and nothing else.
    "/zfsilo.v1.VolumeService/GetReplica": PEERS,
    "/zfsilo.v1.VolumeService/ReceiveReplica": PEERS,
    # A host may publish to itself if the volume names it (check_publish_to_itself in
    # requests/rights.py), and act on its own publications.
    "/zfsilo.v1.VolumeService/PublishVolume": (*MANAGERS, "host"),
    "/zfsilo.v1.VolumeService/UnpublishVolume": (*MANAGERS, "host"),
    "/zfsilo.v1.VolumeService/ListPublications": REMOTE,
    "/zfsilo.v1.VolumeService/FetchConnection": HOSTS,
    "/zfsilo.v1.VolumeService/ReportFilesystem": HOSTS,
    # No daemon commands another host: the client's own administrators, and its CSI plugin below
    # csi.allowed_paths.
    "/zfsilo.v1.VolumeService/AttachVolume": NODES,
    "/zfsilo.v1.VolumeService/DetachVolume": NODES,
    "/zfsilo.v1.VolumeService/ConnectVolume": NODES,
    "/zfsilo.v1.VolumeService/DisconnectVolume": NODES,
    "/zfsilo.v1.VolumeService/StageVolume": NODES,
    "/zfsilo.v1.VolumeService/UnstageVolume": NODES,
    "/zfsilo.v1.VolumeService/MountVolume": NODES,
    "/zfsilo.v1.VolumeService/UnmountVolume": NODES,
    "/zfsilo.v1.VolumeService/GrowVolume": NODES,
    "/zfsilo.v1.SnapshotService/CreateSnapshot": MANAGERS,
    "/zfsilo.v1.SnapshotService/GetSnapshot": READERS,
    "/zfsilo.v1.SnapshotService/ListSnapshots": READERS,
    # It reads the whole snapshot from the disks, which a reader may not cause.
    "/zfsilo.v1.SnapshotService/ReadSnapshotBlocks": MANAGERS,
    "/zfsilo.v1.SnapshotService/DeleteSnapshot": MANAGERS,
    "/zfsilo.v1.SnapshotService/CreateSnapshotGroup": MANAGERS,
    "/zfsilo.v1.SnapshotService/GetSnapshotGroup": READERS,
    "/zfsilo.v1.SnapshotService/ListSnapshotGroups": READERS,
    "/zfsilo.v1.SnapshotService/DeleteSnapshotGroup": MANAGERS,
    # A policy deletes snapshots, of volumes of others too.
    "/zfsilo.v1.SnapshotService/CreateSnapshotPolicy": ADMIN,
    "/zfsilo.v1.SnapshotService/GetSnapshotPolicy": READERS,
    "/zfsilo.v1.SnapshotService/ListSnapshotPolicies": READERS,
    "/zfsilo.v1.SnapshotService/UpdateSnapshotPolicy": ADMIN,
    "/zfsilo.v1.SnapshotService/DeleteSnapshotPolicy": ADMIN,
    "/zfsilo.v1.SnapshotService/RunSnapshotPolicy": ADMIN,
    # A policy sends volumes to another server, as ReplicateVolume does.
    "/zfsilo.v1.ReplicationService/CreateReplicationPolicy": ADMIN,
    "/zfsilo.v1.ReplicationService/GetReplicationPolicy": READERS,
    "/zfsilo.v1.ReplicationService/ListReplicationPolicies": READERS,
    "/zfsilo.v1.ReplicationService/UpdateReplicationPolicy": ADMIN,
    "/zfsilo.v1.ReplicationService/DeleteReplicationPolicy": ADMIN,
    "/zfsilo.v1.ReplicationService/RunReplicationPolicy": ADMIN,
    "/zfsilo.v1.HostService/GetHost": READERS,
    "/zfsilo.v1.HostService/ListHosts": READERS,
    "/zfsilo.v1.HostService/CreateHost": ADMIN,
    "/zfsilo.v1.HostService/UpdateHost": ADMIN,
    "/zfsilo.v1.HostService/DeleteHost": ADMIN,
    "/zfsilo.v1.HostService/RegisterHost": HOSTS,  # itself
    "/zfsilo.v1.HostService/IntroduceHost": NODES,
    "/zfsilo.v1.OperationService/GetOperation": READERS,
    "/zfsilo.v1.OperationService/ListOperations": READERS,
    "/zfsilo.v1.OperationService/WaitOperation": READERS,
    "/zfsilo.v1.OperationService/WatchOperations": READERS,
    "/zfsilo.v1.OperationService/CancelOperation": ADMIN,
    "/zfsilo.v1.OperationService/RepairOperation": ADMIN,
    "/zfsilo.v1.OperationService/AbandonOperation": ADMIN,
}

# Calls that bring foreign data onto a host are accepted on its unix sockets only. Their inverses
# are open to a remote administrator, so that a host can always be drained.
LOCAL_REQUESTS = ("Attach", "Connect", "Stage", "Mount")
LOCAL = frozenset(
    (
        *(f"/zfsilo.v1.VolumeService/{request}Volume" for request in LOCAL_REQUESTS),
        "/zfsilo.v1.VolumeService/ExportVolumeKey",  # the key is shown on its server alone
        "/zfsilo.v1.Service/BindMachine",  # who is there knows whether it was moved or cloned
    )
)

READ, MANAGE, DESTROY = (f"org.zfsilo1.{action}" for action in ("read", "manage", "destroy"))

# The polkit action that a D-Bus caller other than root needs. Properties are read only. Everybody
# may introspect interfaces; the names of objects need READ.
ACTIONS: dict[str, str] = {
    "org.freedesktop.DBus.ObjectManager.GetManagedObjects": READ,
    "org.freedesktop.DBus.Properties.Get": READ,
    "org.freedesktop.DBus.Properties.GetAll": READ,
    "org.freedesktop.DBus.Properties.Set": READ,
    "org.zfsilo1.Manager.CreateVolume": MANAGE,
    "org.zfsilo1.Manager.UndeleteVolume": MANAGE,
    "org.zfsilo1.Manager.AdoptVolume": MANAGE,
    "org.zfsilo1.Manager.GetVolume": READ,
    "org.zfsilo1.Manager.ListVolumes": READ,
    "org.zfsilo1.Manager.Attach": MANAGE,
    "org.zfsilo1.Manager.Connect": MANAGE,
    "org.zfsilo1.Manager.GetCapacity": READ,
    "org.zfsilo1.Manager.GetStatus": READ,
    "org.zfsilo1.Manager.ListOrphans": READ,
    "org.zfsilo1.Manager.RemoveOrphans": DESTROY,
    "org.zfsilo1.Manager.RegisterHost": MANAGE,
    "org.zfsilo1.Manager.BindMachine": DESTROY,
    "org.zfsilo1.Manager.GetSnapshot": READ,
    "org.zfsilo1.Manager.ListSnapshots": READ,
    "org.zfsilo1.Manager.CreateSnapshotPolicy": DESTROY,
    "org.zfsilo1.Manager.GetSnapshotPolicy": READ,
    "org.zfsilo1.Manager.ListSnapshotPolicies": READ,
    "org.zfsilo1.Manager.CreateReplicationPolicy": MANAGE,
    "org.zfsilo1.Manager.GetReplicationPolicy": READ,
    "org.zfsilo1.Manager.ListReplicationPolicies": READ,
    "org.zfsilo1.Manager.GetHost": READ,
    "org.zfsilo1.Manager.ListHosts": READ,
    "org.zfsilo1.Manager.DeleteHost": DESTROY,
    "org.zfsilo1.Manager.GetOperation": READ,
    "org.zfsilo1.Manager.ListOperations": READ,
    "org.zfsilo1.Volume.Snapshot": MANAGE,
    "org.zfsilo1.Volume.Delete": DESTROY,
    "org.zfsilo1.Volume.Update": MANAGE,
    "org.zfsilo1.Volume.Resize": MANAGE,
    "org.zfsilo1.Volume.Publish": MANAGE,
    "org.zfsilo1.Volume.Unpublish": MANAGE,
    "org.zfsilo1.Volume.RotateSecrets": MANAGE,
    "org.zfsilo1.Volume.RotateKey": MANAGE,
    "org.zfsilo1.Volume.Replicate": MANAGE,
    "org.zfsilo1.Volume.EndReplication": MANAGE,
    "org.zfsilo1.Volume.Promote": DESTROY,
    "org.zfsilo1.Volume.Demote": DESTROY,
    "org.zfsilo1.Volume.SetAside": DESTROY,
    "org.zfsilo1.Volume.Detach": MANAGE,
    "org.zfsilo1.Volume.Disconnect": MANAGE,
    "org.zfsilo1.Volume.Stage": MANAGE,
    "org.zfsilo1.Volume.Unstage": MANAGE,
    "org.zfsilo1.Volume.Mount": MANAGE,
    "org.zfsilo1.Volume.Unmount": MANAGE,
    "org.zfsilo1.Volume.Grow": MANAGE,
    "org.zfsilo1.Volume.Sync": MANAGE,
    "org.zfsilo1.Volume.Stats": READ,
    "org.zfsilo1.Volume.Probe": READ,
    "org.zfsilo1.Snapshot.Delete": DESTROY,
    "org.zfsilo1.SnapshotPolicy.Run": MANAGE,
    "org.zfsilo1.SnapshotPolicy.Update": DESTROY,
    "org.zfsilo1.SnapshotPolicy.Delete": DESTROY,
    "org.zfsilo1.ReplicationPolicy.Run": MANAGE,
    "org.zfsilo1.ReplicationPolicy.Update": MANAGE,
    "org.zfsilo1.ReplicationPolicy.Delete": MANAGE,
    "org.zfsilo1.Host.Update": MANAGE,
    "org.zfsilo1.Operation.Cancel": MANAGE,
    "org.zfsilo1.Operation.Repair": MANAGE,
    "org.zfsilo1.Operation.Abandon": DESTROY,
}


def authorize(caller: Caller, method: str) -> None:
    """Raise PermissionDenied unless the caller's role may call a method."""
    roles = ROLES.get(method, ())
    if caller.role not in roles:
        raise PermissionDenied(
            f"{caller} may not call {method.rpartition('/')[2]}",
            reason="ROLE",
            role=caller.role,
            method=method,
            # The least powerful role of users that may.
            needs=next((role for role in ("reader", "controller") if role in roles), "admin"),
        )
    if method in LOCAL and not caller.local:
        raise PermissionDenied(
            f"{method.rpartition('/')[2]} is not allowed over the network; call it on the host",
            reason="LOCAL",
            method=method,
        )


def as_markdown() -> str:
    """Return the tables as Markdown."""
    roles = get_args(Role)
    rows = [
        f"| gRPC | {' | '.join(roles)} |",
        f"|---|{'|'.join('---' for _role in roles)}|",
    ]
    for allowed, methods in _by_roles().items():
        marks = ("yes" if role in allowed else "" for role in roles)
        rows.append(f"| {', '.join(methods)} | {' | '.join(marks)} |")
    rows += ["", "| polkit | D-Bus |", "|---|---|"]
    for action in (READ, MANAGE, DESTROY):
        named = [_short(name) for name, needed in ACTIONS.items() if needed == action]
        rows.append(f"| `{action}` | {', '.join(named)} |")
    return "\n".join(rows) + "\n"


def _by_roles() -> dict[frozenset[str], list[str]]:
    """Return the methods by the roles that may call them, the most open ones first."""
    methods_of: dict[frozenset[str], list[str]] = {}
    for path, roles in ROLES.items():
        name = path.rpartition("/")[2] + ("*" if path in LOCAL else "")
        methods_of.setdefault(frozenset(roles), []).append(name)
    order = sorted(methods_of, key=lambda allowed: (-len(allowed), sorted(allowed)))
    return {allowed: methods_of[allowed] for allowed in order}


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
