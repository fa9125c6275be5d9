"""The gRPC server of the plugin: methods registered from the descriptors, each behind one guard.

The guard turns errors into CSI's codes and writes one line of log and one measurement a call. CSI
keeps the details of a status empty: names and ids are in the message.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import grpc
from csi.v1 import csi_pb2
from google.protobuf.message_factory import GetMessageClass

from zfsilo_csi.calls import Call
from zfsilo_csi.errors import Code, CsiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.descriptor import MethodDescriptor

    from zfsilo_csi.metrics import Metrics

MAX_MESSAGE = 1024
STOP_GRACE_S = 5.0
OPTIONS = (("grpc.max_receive_message_length", 4 << 20), ("grpc.so_reuseport", 0))
WELL = (Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)

log = logging.getLogger("zfsilo_csi")


class Server:
    """Serves some of CSI's services at an address."""

    def __init__(self, address: str, metrics: Metrics) -> None:
        self._metrics = metrics
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_insecure_port(address)

    def add(self, service: str, *parts: Any) -> None:
        """Register a service whose methods are among those of the parts."""
        described = csi_pb2.DESCRIPTOR.services_by_name[service]
        handlers = {}
        for method in described.methods:
            found = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            assert len(found) == 1, f"{len(found)} implementations of {method.full_name}"
            handlers[method.name] = self._handler(method, found[0])
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(described.full_name, handlers),)
        )

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no more calls, and give running ones time to end."""
        await self._server.stop(STOP_GRACE_S)

    def _handler(self, method: MethodDescriptor, work: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            self._guard(method.name, work),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _guard(
        self, name: str, work: Callable[[Any, Call], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            call = Call(context)
            code, message, answer = Code.CANCELLED, "the caller went away", None
            with self._metrics.in_flight(name):
                try:
                    answer = await work(request, call)
                    code, message = Code.OK, ""
                except CsiError as error:
                    code, message = error.code, error.message[:MAX_MESSAGE]
                except Exception:
                    log.exception("a defect in %s", name)
                    code, message = Code.INTERNAL, f"a defect in {name}: see the plugin's log"
                finally:
                    self._tell(name, call, code, message)
            if code is Code.OK:
                return answer
            return await context.abort(code, message)

        return guarded

    def _tell(self, name: str, call: Call, code: Code, message: str) -> None:
        self._metrics.ended(name, code.name, call.took_s)
        facts = {"method": name, "code": code.name, "ms": round(call.took_s * 1000), **call.notes}
        level = logging.INFO if code in WELL else logging.WARNING
        log.log(level, message or "done", extra={"facts": facts})
