"""The gRPC server of the plugin: methods by descriptor, with error translation, log and metrics.

Every call writes one log line and one measurement. CSI keeps status details empty, so names and ids
are in the message.
"""

from __future__ import annotations

import logging
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from csi.v1 import csi_pb2
from google.protobuf.message_factory import GetMessageClass

from zfsilo_csi.calls import CsiCall
from zfsilo_csi.errors import Code, CsiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from zfsilo_csi.metrics import CallMetrics

MAX_MESSAGE = 1024
MAX_CALLS = 1000  # in progress; the sidecars start 100 each at most
STOP_GRACE_S = 5.0
OPTIONS = (("grpc.max_receive_message_length", 4 << 20), ("grpc.so_reuseport", 0))
# Codes that are logged at INFO: outcomes that a correct cluster produces too.
EXPECTED = (Code.OK, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)

log = logging.getLogger("zfsilo_csi")


class Outcome:
    """How a call ended; as it is at first, its caller has cancelled it."""

    code = Code.CANCELLED
    message = "cancelled by the caller"


class CsiServer:
    """Serves CSI services at an address."""

    def __init__(self, address: str, metrics: CallMetrics) -> None:
        self._metrics = metrics
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        self._server.add_insecure_port(address)

    def add(self, service: str, *parts: Any) -> None:
        """Add a service; each of its methods is a method of exactly one part."""
        descriptor = csi_pb2.DESCRIPTOR.services_by_name[service]
        handlers = {}
        for method in descriptor.methods:
            works = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            assert len(works) == 1, f"{len(works)} implementations of {method.full_name}"
            kind: Any = grpc.unary_unary_rpc_method_handler
            guard: Any = self._guard
            if method.server_streaming:
                kind, guard = grpc.unary_stream_rpc_method_handler, self._guard_stream
            handlers[method.name] = kind(
                guard(method.name, works[0]),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
        )

    async def start(self) -> None:
        """Start to accept calls."""
        await self._server.start()

    async def stop(self) -> None:
        """Refuse new calls, and cancel running ones after STOP_GRACE_S."""
        await self._server.stop(STOP_GRACE_S)

    def _guard(
        self, name: str, work: Callable[[Any, CsiCall], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            outcome, response = Outcome(), None
            with self._measured(name, CsiCall(context), outcome) as call:
                response = await work(request, call)
            if outcome.code is Code.OK:
                return response
            return await context.abort(outcome.code, outcome.message)

        return guarded

    def _guard_stream(
        self, name: str, work: Callable[[Any, CsiCall], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            outcome = Outcome()
            with self._measured(name, CsiCall(context), outcome) as call:
                responses: Any = work(request, call)
                async with aclosing(responses):
                    async for response in responses:
                        yield response
            if outcome.code is not Code.OK:
                await context.abort(outcome.code, outcome.message)

        return guarded

    @contextmanager
    def _measured(self, name: str, call: CsiCall, outcome: Outcome) -> Iterator[CsiCall]:
        """Measure a call and log it, whatever its outcome is; its errors end here."""
        with self._metrics.in_flight(name):
            try:
                yield call
                outcome.code, outcome.message = Code.OK, ""
            except CsiError as error:
                outcome.code, outcome.message = error.code, error.message[:MAX_MESSAGE]
            except Exception:
                log.exception("internal error in %s", name)
                outcome.code = Code.INTERNAL
                outcome.message = f"internal error in {name}; see the log of zfsilo-csi"
            finally:
                self._record(name, call, outcome.code, outcome.message)

    def _record(self, name: str, call: CsiCall, code: Code, message: str) -> None:
        self._metrics.ended(name, code.name, call.took_s)
        facts = {"method": name, "code": code.name, "ms": round(call.took_s * 1000), **call.notes}
        level = logging.INFO if code in EXPECTED else logging.WARNING
        log.log(level, message or "done", extra={"facts": facts})
