"""Clients of the gRPC interface, made from the descriptors: no generated stubs, no server code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2, snapshot_pb2, volume_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

SERVICE = service_pb2.DESCRIPTOR.services_by_name["Service"]
VOLUMES = volume_pb2.DESCRIPTOR.services_by_name["VolumeService"]
SNAPSHOTS = snapshot_pb2.DESCRIPTOR.services_by_name["SnapshotService"]
HOSTS = host_pb2.DESCRIPTOR.services_by_name["HostService"]
OPERATIONS = operation_pb2.DESCRIPTOR.services_by_name["OperationService"]
SERVICES = (SERVICE, VOLUMES, SNAPSHOTS, HOSTS, OPERATIONS)


def path_of(method: MethodDescriptor) -> str:
    """Return a method's name on the wire: /zfsilo.v1.VolumeService/GetVolume."""
    return f"/{method.containing_service.full_name}/{method.name}"


class Stub:
    """The methods of one service: `Stub(channel, VOLUMES).GetVolume(request, timeout=5)`.

    Of a `grpc.Channel` they are blocking, of a `grpc.aio.Channel` they are awaited.
    """

    def __init__(self, channel: Any, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._service = service

    def __getattr__(self, name: str) -> Any:
        """Return a method, made when it is first used: all of them would take 4 ms."""
        method = self._service.methods_by_name.get(name)
        if method is None:
            raise AttributeError(f"the service has no method {name}")
        call = self.__dict__[name] = _call(self._channel, method)
        return call


class Api:
    """All services over one channel."""

    def __init__(self, channel: Any) -> None:
        self.service = Stub(channel, SERVICE)
        self.volumes = Stub(channel, VOLUMES)
        self.snapshots = Stub(channel, SNAPSHOTS)
        self.hosts = Stub(channel, HOSTS)
        self.operations = Stub(channel, OPERATIONS)


class Streaming:
    """A channel that treats every call as a stream, which on the wire is the same.

    Of a call with one answer, grpc for Python tells the initial metadata only together with the
    answer; of a stream it does as it comes. A change has its operation's name there.
    """

    def __init__(self, channel: Any) -> None:
        self.unary_unary = channel.unary_stream
        self.unary_stream = channel.unary_stream


def _call(channel: Any, method: MethodDescriptor) -> Any:
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    return kind(
        path_of(method),
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
