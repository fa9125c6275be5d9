"""How a zfsilod is asked: its services over one channel, made from the descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import host_pb2, service_pb2, snapshot_pb2, volume_pb2

from zfsilo_csi.errors import CUT_OFF, Code, CsiError, translated

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from zfsilo_csi.calls import Call

OPERATION_METADATA = "zfsilo-operation"


class Zfsilod:
    """One zfsilod: `await daemon.volumes.GetVolume(request, call)`. Raises CsiError."""

    def __init__(self, name: str, channel: Any) -> None:
        self.name = name
        self.service = Stub(name, channel, _service(service_pb2, "Service"))
        self.volumes = Stub(name, channel, _service(volume_pb2, "VolumeService"))
        self.hosts = Stub(name, channel, _service(host_pb2, "HostService"))
        self.snapshots = Stub(name, channel, _service(snapshot_pb2, "SnapshotService"))


class Stub:
    """The methods of one service of one zfsilod."""

    def __init__(self, who: str, channel: Any, service: ServiceDescriptor) -> None:
        self._who = who
        self._methods = {each.name: _method(channel, each) for each in service.methods}

    def __getattr__(self, name: str) -> Any:
        method = self.__dict__["_methods"][name]
        who = self.__dict__["_who"]

        async def ask(request: Any, call: Call) -> Any:
            try:
                return await _ask(who, method, request, call)
            except CsiError as error:
                if error.reason != CUT_OFF:
                    raise
            # The connection may be of before a power cut, and every method may be asked twice.
            return await _ask(who, method, request, call)

        return ask


async def _ask(who: str, method: Any, request: Any, call: Call) -> Any:
    if call.left_s <= 0:
        raise CsiError(Code.ABORTED, f"there was no time left to ask {who}")
    answer = method(request, timeout=call.left_s)
    try:
        found = await answer
    except grpc.aio.AioRpcError as error:
        call.note(operation=_operation(error.initial_metadata()))
        raise translated(error, who) from None
    call.note(operation=_operation(await answer.initial_metadata()))
    return found


def _service(module: Any, name: str) -> ServiceDescriptor:
    found: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]
    return found


def _method(channel: Any, method: MethodDescriptor) -> Any:
    return channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )


def _operation(metadata: Any) -> str:
    """Return the name of the operation that a mutation became, for the log."""
    return next((str(value) for key, value in metadata or () if key == OPERATION_METADATA), "")
