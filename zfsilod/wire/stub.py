"""Clients of the gRPC interface, built from the protobuf descriptors without generated stubs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import (
    host_pb2,
    operation_pb2,
    replication_pb2,
    service_pb2,
    snapshot_pb2,
    volume_pb2,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

SERVICE = service_pb2.DESCRIPTOR.services_by_name["Service"]
VOLUMES = volume_pb2.DESCRIPTOR.services_by_name["VolumeService"]
SNAPSHOTS = snapshot_pb2.DESCRIPTOR.services_by_name["SnapshotService"]
REPLICATIONS = replication_pb2.DESCRIPTOR.services_by_name["ReplicationService"]
HOSTS = host_pb2.DESCRIPTOR.services_by_name["HostService"]
OPERATIONS = operation_pb2.DESCRIPTOR.services_by_name["OperationService"]
SERVICES = (SERVICE, VOLUMES, SNAPSHOTS, REPLICATIONS, HOSTS, OPERATIONS)


def path_of(method: MethodDescriptor) -> str:
    """Return the path of a method: /zfsilo.v1.VolumeService/GetVolume."""
    return f"/{method.containing_service.full_name}/{method.name}"


class Stub:
    """The methods of one service: `Stub(channel, VOLUMES).GetVolume(request, timeout=5)`.

    With a `grpc.Channel` calls are blocking, with a `grpc.aio.Channel` they are awaited.
    """

    def __init__(self, channel: Any, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._service = service

    def __getattr__(self, name: str) -> Any:
        """Return a method, built on first use: building all of them takes 4 ms."""
        method = self._service.methods_by_name.get(name)
        if method is None:
            raise AttributeError(f"the service has no method {name}")
        channel = self._channel
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = self.__dict__[name] = kind(
            path_of(method),
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call


class Api:
    """All services over one channel."""

    def __init__(self, channel: Any) -> None:
        self.service = Stub(channel, SERVICE)
        self.volumes = Stub(channel, VOLUMES)
        self.snapshots = Stub(channel, SNAPSHOTS)
        self.replications = Stub(channel, REPLICATIONS)
        self.hosts = Stub(channel, HOSTS)
        self.operations = Stub(channel, OPERATIONS)
