"""The gRPC server: registers all methods from their descriptors, each behind the guard."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, get_args

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from zfsilod.api.rpc.messages import parser_of
from zfsilod.api.rpc.methods import methods_of
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.identity import PeerKind
from zfsilod.wire import status
from zfsilod.wire.stub import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zfsilod.api.rpc.guard import CallGuard
    from zfsilod.api.rpc.methods import ApiMethod

OPTIONS = (
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.server_handshake_timeout_ms", 10_000),  # TLS and the first settings frame
    ("grpc.max_connection_idle_ms", 30 * 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.so_reuseport", 0),
)

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
# Newer clients ask for it first. The library has v1alpha only, whose messages are the same.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class HealthMethods(health_aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, with the method List that the library lacks."""

    async def List(self, _request: Any, _context: Any) -> health_pb2.HealthListResponse:
        response = health_pb2.HealthListResponse()
        for name, serving in self._server_status.items():
            response.statuses[name].status = serving
        return response


class GrpcServer:
    """The gRPC front end, for remote callers and for local ones on the unix socket."""

    def __init__(self, guard: CallGuard, options: tuple[tuple[str, int], ...] = ()) -> None:
        self._guard = guard
        self._health = HealthMethods()
        # One for each kind of peer: what the one has in flight does not hold up the others.
        self._servers = {
            kind: grpc.aio.server(options=(*OPTIONS, *options)) for kind in get_args(PeerKind)
        }

    async def start(self, methods: Iterable[ApiMethod]) -> None:
        """Start to serve; only then may the gateway listen."""
        by_service = defaultdict(list)
        for method in methods:
            by_service[method.descriptor.containing_service.full_name].append(method)
        for name, own in by_service.items():
            self._add(name, own)
        names = [service.full_name for service in (*SERVICES, HEALTH, REFLECTION)]
        described = methods_of(REFLECTION, reflection.aio.ReflectionServicer(names))
        self._add(HEALTH.full_name, methods_of(HEALTH, self._health), standard=True)
        self._add(REFLECTION.full_name, described, standard=True)
        self._add(REFLECTION_V1, described, standard=True)  # with the rights of the other name
        for kind, server in self._servers.items():
            server.add_insecure_port(f"unix:{self._guard.sockets.socket_of(kind)}")
            await server.start()
        for service in SERVICES:
            await self._health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for running ones, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers.values()))

    def _add(self, service: str, methods: Iterable[ApiMethod], *, standard: bool = False) -> None:
        """Register the methods of a service; those of gRPC's own get a context, not a Call."""
        handlers = {}
        for method in methods:
            descriptor = method.descriptor
            wrap = self._stream if inspect.isasyncgenfunction(method.work) else self._unary
            # A guard runs before the first message arrives, which may be never.
            if descriptor.server_streaming:
                kind = grpc.stream_stream_rpc_method_handler
            else:
                kind = grpc.stream_unary_rpc_method_handler
            handlers[descriptor.name] = kind(
                wrap(method, standard=standard),
                request_deserializer=parser_of(GetMessageClass(descriptor.input_type)),
                response_serializer=GetMessageClass(descriptor.output_type).SerializeToString,
            )
        for server in self._servers.values():
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )

    def _unary(self, method: ApiMethod, *, standard: bool) -> Callable[[Any, Any], Any]:
        async def answered(_messages: Any, context: Any) -> Any:
            try:
                return await self._guard.answer(*method, context, standard=standard)
            except ZfsiloError as error:
                refusal = status.to_status(error)
            return await context.abort(*refusal)

        return answered

    def _stream(self, method: ApiMethod, *, standard: bool) -> Callable[[Any, Any], Any]:
        async def streamed(messages: Any, context: Any) -> Any:
            stream = self._guard.stream(*method, messages, context, standard=standard)
            try:
                async with aclosing(stream) as responses:
                    async for response in responses:
                        yield response
                return
            except ZfsiloError as error:
                refusal = status.to_status(error)
            await context.abort(*refusal)

        return streamed
