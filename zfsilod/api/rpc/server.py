"""The gRPC server: methods registered from their descriptors, each behind one guard.

The guard tells who calls (gateway, authentication.py), asks the table of roles, and turns errors into status
codes. What the methods do is in info.py, volumes.py, publications.py, attachments.py, snapshots.py,
hosts.py and operations.py: `Info`, `Volumes`, ... below; a method that nothing implements stops the
start.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from zfsilod.api.rpc import pages
from zfsilod.api.rpc.attachments import Attachments
from zfsilod.api.rpc.calls import Call, Tasks
from zfsilod.api.rpc.hosts import Hosts
from zfsilod.api.rpc.info import Info
from zfsilod.api.rpc.operations import Operations
from zfsilod.api.rpc.publications import Publications
from zfsilod.api.rpc.renewals import Renewals
from zfsilod.api.rpc.snapshots import Snapshots
from zfsilod.api.rpc.volumes import Volumes
from zfsilod.model.errors import (
    Internal,
    InvalidArgument,
    Unauthenticated,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.records import Issued, Token
from zfsilod.security.audit import is_change
from zfsilod.security.authentication import REVOKED, Callers
from zfsilod.security.authorization import authorize
from zfsilod.wire import status
from zfsilod.wire.stub import HOSTS, OPERATIONS, SERVICE, SERVICES, SNAPSHOTS, VOLUMES, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from zfsilod.gateway.listener import Gateway
    from zfsilod.model.identity import Caller
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
MAX_CALLS = 1024
STOP_GRACE_S = 5.0
ADMIT_AGAIN_S = 5.0  # how long a stream that says nothing outlives a revocation

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

Stream = AsyncGenerator[Any, None]
MALFORMED = object()  # in place of a request that cannot be read

log = logging.getLogger(__name__)


class Health(health_aio.HealthServicer):  # type: ignore[misc]
    """The standard service, with the method that the library leaves out."""

    async def List(self, _request: Any, _context: Any) -> health_pb2.HealthListResponse:
        found = health_pb2.HealthListResponse()
        for name, serving in self._server_status.items():
            found.statuses[name].status = serving
        return found


class GrpcServer:
    """The front end for remote callers, and for local ones that like gRPC."""

    def __init__(
        self,
        service: Service,
        gateway: Gateway,
        files: Files,
        options: tuple[tuple[str, int], ...] = (),
    ) -> None:
        """Serve the connections of a gateway; `files` has the keys of this host's authority."""
        self._service = service
        self._gateway = gateway
        self._files = files
        self._audit = service.audit
        self._callers = Callers(self._find_token, self._is_revoked)
        self._tasks: Tasks = set()
        self._stopping = asyncio.Event()
        self._health = Health()
        self._server = grpc.aio.server(
            options=(*OPTIONS, *options), maximum_concurrent_rpcs=MAX_CALLS
        )

    async def start(self) -> None:
        """Start to serve; only then may the gateway listen."""
        signed = pages.Pages(await self._service.context.write(pages.load_key))
        self._add(SERVICE, Info(signed), Renewals(self._files))
        self._add(VOLUMES, Volumes(signed), Publications(signed), Attachments())
        self._add(SNAPSHOTS, Snapshots(signed))
        self._add(HOSTS, Hosts(signed))
        self._add(OPERATIONS, Operations(signed))
        names = [each.full_name for each in (*SERVICES, HEALTH, REFLECTION)]
        self._add(HEALTH, self._health, foreign=True)
        self._add(REFLECTION, reflection.aio.ReflectionServicer(names), foreign=True)
        self._server.add_insecure_port(f"unix:{self._gateway.private_socket}")
        await self._server.start()
        for each in SERVICES:
            await self._health.set(each.full_name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Take no more calls, give running ones time to end, then drop them."""
        self._gateway.stop_listening()
        self._stopping.set()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._gateway.close()
        if self._tasks:  # what was on its way to the store when its caller left
            _done, late = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _add(self, service: ServiceDescriptor, *parts: Any, foreign: bool = False) -> None:
        """Register all methods of a service; those of a foreign one take a context, not a Call."""
        handlers = {}
        for method in service.methods:
            found = [getattr(part, method.name) for part in parts if hasattr(part, method.name)]
            assert len(found) == 1, f"{len(found)} implementations of {method.full_name}"
            handlers[method.name] = self._handler(method, found[0], foreign=foreign)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )

    def _handler(self, method: MethodDescriptor, work: Any, *, foreign: bool) -> Any:
        guard = self._stream_guard if inspect.isasyncgenfunction(work) else self._guard
        if method.client_streaming:
            kind = grpc.stream_stream_rpc_method_handler
        elif method.server_streaming:
            kind = grpc.unary_stream_rpc_method_handler
        else:
            kind = grpc.unary_unary_rpc_method_handler
        return kind(
            guard(method, work, foreign=foreign),
            request_deserializer=_parser(GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _guard(
        self, method: MethodDescriptor, work: Any, *, foreign: bool
    ) -> Callable[[Any, Any], Any]:
        path, name = path_of(method), method.name
        changes, lasts = is_change(path), method.server_streaming

        async def guarded(message: Any, context: Any) -> Any:
            try:
                call = self._admit(path, context)
                answering = work(_checked(message), context if foreign else call)
                answer = await (self._follow(answering, path, context) if lasts else answering)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                found = _presentable(error, path)
            else:
                if changes and not hasattr(answer, "operation"):
                    self._audit.record(str(call.caller), name, _subject(message), outcome="DONE")
                return answer
            if changes and not getattr(message, "validate_only", False):
                self._audit.refused(self._who(context), name, _subject(message), found)
            return await context.abort(*status.to_status(found))

        return guarded

    def _stream_guard(
        self, method: MethodDescriptor, work: Any, *, foreign: bool
    ) -> Callable[[Any, Any], Any]:
        path, streaming = path_of(method), method.client_streaming

        async def guarded(message: Any, context: Any) -> Any:
            try:
                call = self._admit(path, context)
                asked = _all_checked(message) if streaming else _checked(message)
                answers = work(asked, context if foreign else call)
                # Who was revoked meanwhile learns no more.
                again = partial(self._admit, path, context)
                async with aclosing(_until(self._stopping, answers, again)) as until_stopped:
                    async for answer in until_stopped:
                        again()
                        yield answer
                return
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                found = _presentable(error, path)
            await context.abort(*status.to_status(found))

        return guarded

    async def _follow(self, answering: Coroutine[Any, Any, Any], path: str, context: Any) -> Any:
        """Wait for a stream that writes by itself; who was revoked meanwhile is cut off."""
        task = asyncio.ensure_future(answering)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=ADMIT_AGAIN_S)
                self._admit(path, context)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _admit(self, path: str, context: Any) -> Call:
        """Tell who calls, and whether they may."""
        caller = self._identify(context)
        authorize(caller, path)
        return Call(self._service, caller, context, self._tasks)

    def _who(self, context: Any) -> str:
        """Return who calls, as far as it is known: for the audit of what is refused."""
        try:
            return str(self._identify(context))
        except ZfsiloError:
            peer = self._gateway.peer(context.peer())
            return f"nobody ({peer.address})" if peer else "nobody"

    def _identify(self, context: Any) -> Caller:
        name = context.peer()
        peer = self._gateway.peer(name)
        if peer is None:
            log.warning("a call of %s is refused: its connection bypassed the gateway", name)
            raise Unauthenticated("connection bypassed the gateway")
        authorization = ""
        if peer.kind == "tcp":
            given = [v for k, v in context.invocation_metadata() if k == "authorization"]
            authorization = given[0] if len(given) == 1 else " ".join(given)  # two are none
        try:
            return self._callers.of(peer, authorization)
        except Unauthenticated as error:
            if error.reason == REVOKED:
                self._gateway.disconnect(name)
            raise

    def _find_token(self, token_id: str) -> Token | None:
        with self._service.context.store.read() as txn:
            return txn.get(Token, token_id)

    def _is_revoked(self, fingerprint: str) -> bool:
        with self._service.context.store.read() as txn:
            found = txn.get(Issued, fingerprint)
        return found is not None and found.revoked_at != 0


def _parser(kind: Any) -> Callable[[bytes], Any]:
    """Return what reads a request; a wrong one is refused by the guard, not by grpc as INTERNAL."""

    def parse(raw: bytes) -> Any:
        try:
            return kind.FromString(raw)
        except DecodeError:
            return MALFORMED

    return parse


def _checked(message: Any) -> Any:
    if message is MALFORMED:
        raise InvalidArgument("the request is no message of its type", reason="MALFORMED")
    return message


async def _all_checked(requests: Any) -> Stream:
    async for each in requests:
        yield _checked(each)


def _subject(message: Any) -> str:
    """Return what a request is about, as it says."""
    found = (getattr(message, each, "") for each in ("name", "volume_id", "host_id", "volume"))
    return next((each for each in found if isinstance(each, str) and each), "")


async def _until(stopping: asyncio.Event, answers: Stream, again: Callable[[], object]) -> Stream:
    """Yield what a stream yields; when the server stops, end it: it might last for ever.

    `again` is called now and then while it is silent, and ends it by an exception.
    """
    end = object()

    async def following() -> Any:
        return await anext(answers, end)

    stop = asyncio.ensure_future(stopping.wait())
    answer = asyncio.ensure_future(following())
    try:
        while True:
            done, _pending = await asyncio.wait(
                {answer, stop}, timeout=ADMIT_AGAIN_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                again()
                continue
            if not answer.done():
                raise Unavailable("zfsilod is stopping: go on from the last revision seen")
            if answer.result() is end:
                return
            yield answer.result()
            answer = asyncio.ensure_future(following())
    finally:
        stop.cancel()
        answer.cancel()
        await asyncio.wait({stop, answer})
        await answers.aclose()


def _presentable(error: Exception, path: str) -> ZfsiloError:
    """Return the error that the caller is shown: a defect without its details."""
    if isinstance(error, ZfsiloError):
        return error
    log.error("%s failed", path, exc_info=error)
    return Internal("a defect of zfsilod; its journal has the traceback")
