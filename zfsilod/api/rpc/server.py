"""The gRPC server: registers all methods from their descriptors, each behind a guard.

The guard authenticates the caller, checks its role, and converts errors to status codes. The
methods are in service.py, volumes.py, publications.py, attachments.py, snapshots.py, hosts.py and
operations.py; a method without an implementation fails at start.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from zfsilod.api.rpc import pages
from zfsilod.api.rpc.attachments import AttachmentMethods
from zfsilod.api.rpc.call import Call, Tasks
from zfsilod.api.rpc.call_limits import MAX_CALLS, REFUSED, CallLimits, room_of
from zfsilod.api.rpc.hosts import HostMethods
from zfsilod.api.rpc.messages import first_of, parsed, parser_of, stream_of, subject_of
from zfsilod.api.rpc.operations import OperationMethods
from zfsilod.api.rpc.publications import PublicationMethods
from zfsilod.api.rpc.revocations import RevocationWatch
from zfsilod.api.rpc.service import ServiceMethods
from zfsilod.api.rpc.snapshots import SnapshotMethods
from zfsilod.api.rpc.volumes import VolumeMethods
from zfsilod.model.errors import (
    Internal,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZfsiloError,
    disk_error,
)
from zfsilod.model.identity import PeerKind
from zfsilod.model.records import Token
from zfsilod.security.audit import is_change
from zfsilod.security.authentication import Callers
from zfsilod.security.authorization import ROLES, authorize
from zfsilod.security.credentials import REVOKED, check_caller, check_machine, is_revoked
from zfsilod.service.rooms import ROOM
from zfsilod.wire import status
from zfsilod.wire.storage_server import MACHINE_METADATA
from zfsilod.wire.stub import HOSTS, OPERATIONS, SERVICE, SERVICES, SNAPSHOTS, VOLUMES, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from zfsilod.api.rpc.call_limits import CallPlace
    from zfsilod.gateway.connections import Connections
    from zfsilod.model.identity import Caller, Certified
    from zfsilod.security.join_file import Files
    from zfsilod.service.service import Service

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
REFUSAL_S = 1.0  # before a call beyond the limit is refused
MAX_REFUSALS = 256  # that wait: a connection with more is closed
MACHINE = re.compile(r"[0-9a-f]{32}")
# Not without a machine once the host is bound to one: they let it log in, or bind it.
BOUND = ("/zfsilo.v1.VolumeService/FetchConnection", "/zfsilo.v1.HostService/RegisterHost")
STOP_GRACE_S = 5.0
RECHECK_S = 5.0  # how long an idle stream continues after a revocation

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
# Newer clients ask for it first. The library has v1alpha only, whose messages are the same.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

Stream = AsyncGenerator[Any, None]

log = logging.getLogger(__name__)


class HealthMethods(health_aio.HealthServicer):  # type: ignore[misc]
    """The standard health service, with the method List that the library lacks."""

    async def List(self, _request: Any, _context: Any) -> health_pb2.HealthListResponse:
        response = health_pb2.HealthListResponse()
        for name, serving in self._server_status.items():
            response.statuses[name].status = serving
        return response


class GrpcServer:
    """The gRPC front end, for remote callers and for local ones on the unix socket."""

    def __init__(
        self,
        service: Service,
        connections: Connections,
        files: Files,
        options: tuple[tuple[str, int], ...] = (),
        max_calls: int = MAX_CALLS,
    ) -> None:
        """Serve connections; `files` has the keys of this host's authority."""
        self._service = service
        self._connections = connections
        self._sockets = connections.backend
        self._files = files
        self._audit = service.audit
        self.callers = Callers(self._find_token, self._is_revoked)
        connections.admission.check = self.callers.check_new
        connections.admission.refused = self._refused_by_gateway
        self._revocations = RevocationWatch(connections.backend, self.callers)
        self._tasks: Tasks = set()
        self._stopping = asyncio.Event()
        self._health = HealthMethods()
        # One for each kind of peer: what the one has in flight does not hold up the others.
        self._servers = {
            kind: grpc.aio.server(options=(*OPTIONS, *options)) for kind in get_args(PeerKind)
        }
        self._limits = CallLimits(max_calls)
        self._refusals: Counter[str] = Counter()  # that wait, by connection

    async def start(self) -> None:
        """Start to serve; only then may the gateway listen."""
        signed = pages.Pages(await self._service.context.write(pages.load_key))
        self._add(SERVICE, ServiceMethods(signed, self._files))
        self._add(VOLUMES, VolumeMethods(signed), PublicationMethods(signed), AttachmentMethods())
        self._add(SNAPSHOTS, SnapshotMethods(signed))
        self._add(HOSTS, HostMethods(signed))
        self._add(OPERATIONS, OperationMethods(signed))
        names = [service.full_name for service in (*SERVICES, HEALTH, REFLECTION)]
        self._add(HEALTH, self._health, standard=True)
        described = reflection.aio.ReflectionServicer(names)
        self._add(REFLECTION, described, standard=True)
        self._add(REFLECTION, described, standard=True, name=REFLECTION_V1)
        for kind, server in self._servers.items():
            server.add_insecure_port(f"unix:{self._sockets.socket_of(kind)}")
            await server.start()
        self._revocations.start()
        for service in SERVICES:
            await self._health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls, wait for running ones, then cancel them."""
        self._connections.stop_listening()
        self._revocations.stop()
        self._stopping.set()
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers.values()))
        self._connections.close()
        if self._tasks:  # shielded work of callers that have disconnected
            _done, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _add(
        self, service: ServiceDescriptor, *parts: Any, standard: bool = False, name: str = ""
    ) -> None:
        """Register all methods of a service; those of gRPC's own get a context, not a Call.

        `name`: another name, under which it is served with the rights of its own.
        """
        handlers = {}
        for method in service.methods:
            matches = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            assert len(matches) == 1, f"{len(matches)} implementations of {method.full_name}"
            guard = self._stream_guard if inspect.isasyncgenfunction(matches[0]) else self._guard
            # A guard runs before the first message arrives, which may be never.
            if method.server_streaming:
                kind = grpc.stream_stream_rpc_method_handler
            else:
                kind = grpc.stream_unary_rpc_method_handler
            handlers[method.name] = kind(
                guard(method, matches[0], standard=standard),
                request_deserializer=parser_of(GetMessageClass(method.input_type)),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        for server in self._servers.values():
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name or service.full_name, handlers),)
            )

    def _guard(
        self, method: MethodDescriptor, work: Any, *, standard: bool
    ) -> Callable[[Any, Any], Any]:
        path, name = path_of(method), method.name
        changes, lasts = is_change(path), method.server_streaming

        async def guarded(_messages: Any, context: Any) -> Any:
            message = None
            try:
                with await self._place(context, lasts=lasts) as place:
                    message = await first_of(context)
                    if changes:
                        await place.wait_for_turn(name)
                    call = await self._authorized_in_turn(path, context, place)
                    answering = work(parsed(message), context if standard else call)
                    response = await (
                        self._recheck(answering, path, context) if lasts else answering
                    )
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                shown = _presentable(error, path)
            else:
                if changes and call.changed and not hasattr(response, "operation"):
                    self._audit.record(str(call.caller), name, subject_of(message), outcome="DONE")
                return response
            if changes and not getattr(message, "validate_only", False):
                self._audit.refused(self._caller_name(context), name, subject_of(message), shown)
            return await context.abort(*status.to_status(shown))

        return guarded

    def _stream_guard(
        self, method: MethodDescriptor, work: Any, *, standard: bool
    ) -> Callable[[Any, Any], Any]:
        path, streaming = path_of(method), method.client_streaming

        async def guarded(messages: Any, context: Any) -> Any:
            try:
                with await self._place(context, lasts=True) as place:
                    first = None if streaming else await first_of(context)
                    call = await self._authorized_in_turn(path, context, place)
                    # A stream is parsed as it comes.
                    request = stream_of(messages) if streaming else parsed(first)
                    responses = work(request, context if standard else call)
                    # The caller may be revoked while the stream runs.
                    check = partial(self._authorized, path, context)
                    async with aclosing(_until(self._stopping, responses, check)) as until_stopped:
                        async for response in until_stopped:
                            check()
                            yield response
                return
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                shown = _presentable(error, path)
            await context.abort(*status.to_status(shown))

        return guarded

    async def _recheck(self, responding: Coroutine[Any, Any, Any], path: str, context: Any) -> Any:
        """Wait for a method that writes its stream itself; cancel it if the caller is revoked."""
        task = asyncio.ensure_future(responding)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=RECHECK_S)
                self._authorized(path, context)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _place(self, context: Any, *, lasts: bool) -> CallPlace:
        """Return a place for a call, before anything of it is read. Raises ResourceExhausted."""
        name = context.peer()
        peer = self._sockets.peer(name)
        if peer is None:
            log.warning("refused a call from %s: connection bypassed the gateway", name)
            raise Unauthenticated("connection bypassed the gateway")
        ROOM.set(room_of(peer))
        try:
            return self._limits.enter(peer, lasts=lasts)
        except ResourceExhausted:
            self._refusals[name] += 1
            if self._refusals[name] >= MAX_REFUSALS:
                self._sockets.disconnect(name, f"{MAX_REFUSALS} calls beyond its limit")
            try:
                await asyncio.sleep(REFUSAL_S)
            finally:
                self._refusals[name] -= 1
                self._refusals += Counter()  # drops keys whose count is 0
            raise

    async def _authorized_in_turn(self, path: str, context: Any, place: CallPlace) -> Call:
        """Authenticate and authorize a call; a refusal has to wait for its turn."""
        try:
            return self._authorized(path, context, place)
        except PermissionDenied:
            await place.wait_for_turn(REFUSED)
            raise

    def _authorized(self, path: str, context: Any, place: CallPlace | None = None) -> Call:
        """Authenticate and authorize a call. Raises Unauthenticated and PermissionDenied."""
        caller = self._identify(context)
        authorize(caller, path)
        if caller.role == "host":
            with self._service.context.store.read() as txn:
                check_caller(txn, caller)
                if path in BOUND:
                    check_machine(txn, caller)
        return Call(self._service, caller, context, self._tasks, place)

    def _caller_name(self, context: Any) -> str:
        """Return the caller for the audit of a refused call, unauthenticated ones by address."""
        try:
            return str(self._identify(context))
        except ZfsiloError:
            peer = self._sockets.peer(context.peer())
            return f"nobody ({peer.address})" if peer else "nobody"

    def _identify(self, context: Any) -> Caller:
        name = context.peer()
        peer = self._sockets.peer(name)
        if peer is None:
            log.warning("refused a call from %s: connection bypassed the gateway", name)
            raise Unauthenticated("connection bypassed the gateway")
        authorization = ""
        if peer.kind == "tcp":
            values = [v for k, v in context.invocation_metadata() if k == "authorization"]
            authorization = " ".join(values)  # two values do not form a valid one
        try:
            caller = self.callers.of(peer, authorization)
        except Unauthenticated as error:
            if error.reason == REVOKED:
                self._sockets.disconnect(name, "its identity was revoked")
            raise
        return _of_machine(caller, context) if caller.role == "host" else caller

    def _refused_by_gateway(self, address: str, path: str, reason: str) -> None:
        """Record a call of a peer without identity; its request was never read."""
        if path in ROLES and is_change(path):
            error = Unauthenticated("no identity", reason=reason)
            self._audit.refused(f"nobody ({address})", path.rpartition("/")[2], "", error)

    def _find_token(self, token_id: str) -> Token | None:
        with self._service.context.store.read() as txn:
            return txn.get(Token, token_id)

    def _is_revoked(self, certified: Certified) -> bool:
        with self._service.context.store.read() as txn:
            return is_revoked(txn, certified)


def _of_machine(caller: Caller, context: Any) -> Caller:
    """Return a host with the machine that its zfsilod names."""
    for key, value in context.invocation_metadata():
        if key == MACHINE_METADATA and MACHINE.fullmatch(value):
            return caller.but(machine=value)
    return caller


async def _until(stopping: asyncio.Event, responses: Stream, check: Callable[[], object]) -> Stream:
    """Yield what a stream yields, which may be endless, until the server stops.

    `check` is called every few seconds while the stream is idle, and ends it by an exception.
    """
    end = object()

    async def following() -> Any:
        return await anext(responses, end)

    stop = asyncio.ensure_future(stopping.wait())
    response = asyncio.ensure_future(following())
    try:
        while True:
            done, _pending = await asyncio.wait(
                {response, stop}, timeout=RECHECK_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                check()
                continue
            if not response.done():
                raise Unavailable("zfsilod is stopping: resume from the last revision received")
            if response.result() is end:
                return
            yield response.result()
            response = asyncio.ensure_future(following())
    finally:
        stop.cancel()
        response.cancel()
        await asyncio.wait({stop, response})
        await responses.aclose()


def _presentable(error: Exception, path: str) -> ZfsiloError:
    """Return the error for the caller; an unexpected exception is logged and not shown."""
    if isinstance(error, ZfsiloError):
        return error
    if isinstance(error, OSError) and (shown := disk_error(error)):
        return shown
    log.error("%s failed", path, exc_info=error)
    return Internal("internal error; see the zfsilod journal")
