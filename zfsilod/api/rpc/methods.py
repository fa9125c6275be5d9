"""All methods of zfsilo.v1 with their implementations, for every front end.

The implementations are in service.py, volumes.py, volume_keys.py, publications.py, attachments.py,
replicas.py, snapshots.py, snapshot_policies.py, replication_policies.py, hosts.py and
operations.py; a method without one fails at start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zfsilod.api.rpc.attachments import AttachmentMethods
from zfsilod.api.rpc.hosts import HostMethods
from zfsilod.api.rpc.operations import OperationMethods
from zfsilod.api.rpc.publications import PublicationMethods
from zfsilod.api.rpc.replicas import ReplicaMethods
from zfsilod.api.rpc.replication_policies import ReplicationPolicyMethods
from zfsilod.api.rpc.service import ServiceMethods
from zfsilod.api.rpc.snapshot_blocks import SnapshotBlockMethods
from zfsilod.api.rpc.snapshot_policies import SnapshotPolicyMethods
from zfsilod.api.rpc.snapshots import SnapshotMethods
from zfsilod.api.rpc.volume_keys import VolumeKeyMethods
from zfsilod.api.rpc.volumes import VolumeMethods
from zfsilod.wire.stub import HOSTS, OPERATIONS, REPLICATIONS, SERVICE, SNAPSHOTS, VOLUMES

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from zfsilod.api.rpc.pages import Pages
    from zfsilod.security.join_file import Files


class ApiMethod(NamedTuple):
    """A method of a service, and the coroutine function or generator function that answers it."""

    descriptor: MethodDescriptor
    work: Any


def all_methods(pages: Pages, files: Files) -> list[ApiMethod]:
    """Return the methods of all services."""
    return [
        *methods_of(SERVICE, ServiceMethods(pages, files)),
        *methods_of(
            VOLUMES,
            VolumeMethods(pages),
            VolumeKeyMethods(),
            PublicationMethods(pages),
            AttachmentMethods(),
            ReplicaMethods(),
        ),
        *methods_of(
            SNAPSHOTS,
            SnapshotMethods(pages),
            SnapshotBlockMethods(),
            SnapshotPolicyMethods(pages),
        ),
        *methods_of(REPLICATIONS, ReplicationPolicyMethods(pages)),
        *methods_of(HOSTS, HostMethods(pages)),
        *methods_of(OPERATIONS, OperationMethods(pages)),
    ]


def methods_of(service: ServiceDescriptor, *parts: Any) -> list[ApiMethod]:
    """Return the methods of a service; each is implemented by one of the parts."""
    methods = []
    for method in service.methods:
        works = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
        assert len(works) == 1, f"{len(works)} implementations of {method.full_name}"
        methods.append(ApiMethod(method, works[0]))
    return methods
