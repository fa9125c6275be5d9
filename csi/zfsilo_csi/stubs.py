"""gRPC stubs of a zfsilod, built from the proto descriptors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import host_pb2, service_pb2, snapshot_pb2, volume_pb2

from zfsilo_csi.errors import CUT_OFF, Code, CsiError, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from zfsilo_csi.calls import CsiCall

OPERATION_METADATA = "zfsilo-operation"  # initial metadata: name of the operation of a mutation


class Zfsilod:
    """One zfsilod: `await daemon.volumes.GetVolume(request, call)`. Raises CsiError.

    `name` stands for the daemon in error messages.
    """

    def __init__(self, name: str, channel: Any) -> None:
        self.name = name
        self.service = ServiceStub(name, channel, _service(service_pb2, "Service"))
        self.volumes = ServiceStub(name, channel, _service(volume_pb2, "VolumeService"))
        self.hosts = ServiceStub(name, channel, _service(host_pb2, "HostService"))
        self.snapshots = ServiceStub(name, channel, _service(snapshot_pb2, "SnapshotService"))


class ServiceStub:
    """The methods of one service of one zfsilod."""

    def __init__(self, daemon: str, channel: Any, service: ServiceDescriptor) -> None:
        self._daemon = daemon
        self._methods = {
            method.name: _kind(channel, method)(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in service.methods
        }
        streams = {method.name for method in service.methods if method.server_streaming}
        self.__dict__.update(
            {name: partial(_stream, daemon, self._methods[name]) for name in streams}
        )

    def __getattr__(self, name: str) -> Any:
        method = self.__dict__["_methods"][name]
        daemon = self.__dict__["_daemon"]

        async def invoke(request: Any, call: CsiCall) -> Any:
            try:
                return await _invoke_once(daemon, method, request, call)
            except CsiError as error:
                if error.reason != CUT_OFF:
                    raise
            # The connection may predate a power cut of the server. Every method is idempotent.
            return await _invoke_once(daemon, method, request, call)

        return invoke


def _kind(channel: Any, method: MethodDescriptor) -> Any:
    return channel.unary_stream if method.server_streaming else channel.unary_unary


async def _stream(daemon: str, method: Any, request: Any, call: CsiCall) -> AsyncIterator[Any]:
    """Yield the responses of a stream. A caller that was cut off continues it, not the plugin."""
    pending = method(request, timeout=call.stream_s)
    try:
        async for response in pending:
            yield response
    except grpc.aio.AioRpcError as error:
        raise translated(error, daemon) from None
    finally:
        pending.cancel()


async def _invoke_once(daemon: str, method: Any, request: Any, call: CsiCall) -> Any:
    if call.left_s <= 0:
        raise CsiError(Code.ABORTED, f"deadline passed before {daemon} was called; retry the call")
    pending = method(request, timeout=call.left_s)
    try:
        response = await pending
    except grpc.aio.AioRpcError as error:
        call.note(operation=_operation(error.initial_metadata()))
        raise translated(error, daemon) from None
    call.note(operation=_operation(await pending.initial_metadata()))
    return response


def _service(module: Any, name: str) -> ServiceDescriptor:
    descriptor: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return descriptor


def _operation(metadata: Any) -> str:
    return next((str(value) for key, value in metadata or () if key == OPERATION_METADATA), "")
