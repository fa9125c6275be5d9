"""Admits calls, whichever protocol they came by: their place, their caller, their role.

A front end gives the guard a context, of which it uses what grpc's has: `peer`, `time_remaining`,
`invocation_metadata`, `send_initial_metadata` and `read`, which returns the request. Every failure
leaves the guard as a ZfsiloError.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from zfsilod.api.rpc.call import Call, Tasks
from zfsilod.api.rpc.call_limits import MAX_CALLS, REFUSED, CallLimits, room_of
from zfsilod.api.rpc.messages import first_of, parsed, stream_of, subject_of
from zfsilod.api.rpc.revocations import RevocationWatch
from zfsilod.model.errors import (
    Internal,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZfsiloError,
    disk_error,
)
from zfsilod.model.records import Token
from zfsilod.security.audit import is_change
from zfsilod.security.authentication import Callers
from zfsilod.security.authorization import ROLES, authorize
from zfsilod.security.credentials import REVOKED, check_caller, check_machine, is_revoked
from zfsilod.service.rooms import ROOM
from zfsilod.wire.storage_server import MACHINE_METADATA
from zfsilod.wire.stub import path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from google.protobuf.descriptor import MethodDescriptor

    from zfsilod.api.rpc.call_limits import CallPlace
    from zfsilod.gateway.connections import Connections
    from zfsilod.model.identity import Caller, Certified, Peer
    from zfsilod.service.service import Service

REFUSAL_S = 1.0  # before a call beyond the limit is refused
MAX_REFUSALS = 256  # that wait: a connection with more is closed
MACHINE = re.compile(r"[0-9a-f]{32}")
# Not without a machine once the host is bound to one: they let it log in, or bind it.
BOUND = ("/zfsilo.v1.VolumeService/FetchConnection", "/zfsilo.v1.HostService/RegisterHost")
RECHECK_S = 5.0  # how long an idle stream continues after a revocation

Stream = AsyncGenerator[Any, None]

log = logging.getLogger(__name__)


class CallGuard:
    """Admits the calls of all front ends, with one set of limits."""

    def __init__(
        self, service: Service, connections: Connections, max_calls: int = MAX_CALLS
    ) -> None:
        self._service = service
        self.sockets = connections.backend
        self._audit = service.audit
        self.callers = Callers(self._find_token, self._is_revoked)
        connections.admission.check = self.callers.check_new
        connections.admission.refused = self._refused_by_gateway
        self._revocations = RevocationWatch(connections.backend, self.callers)
        self.tasks: Tasks = set()
        self._stopping = asyncio.Event()
        self._limits = CallLimits(max_calls)
        self._refusals: Counter[str] = Counter()  # that wait, by connection
        self.method_at: Callable[[str, str], str] = lambda _verb, _target: ""  # of a URL

    def start(self) -> None:
        """Start to watch for revocations."""
        self._revocations.start()

    def stop(self) -> None:
        """End streams; calls continue."""
        self._revocations.stop()
        self._stopping.set()

    async def finish(self, grace_s: float) -> None:
        """Wait for the work of callers that have disconnected, then cancel it."""
        if self.tasks:
            _done, late = await asyncio.wait(self.tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def answer(
        self, method: MethodDescriptor, work: Any, context: Any, *, standard: bool = False
    ) -> Any:
        """Return the response of a call. Raises ZfsiloError.

        `standard`: the method is one of gRPC's own, and takes the context in place of a Call.
        """
        path, name = path_of(method), method.name
        changes, lasts = is_change(path), method.server_streaming
        message = None
        try:
            with await self._place(context, lasts=lasts) as place:
                message = await first_of(context)
                if changes:
                    await place.wait_for_turn(name)
                call = await self._authorized_in_turn(path, context, place)
                answering = work(parsed(message), context if standard else call)
                response = await (self._recheck(answering, path, context) if lasts else answering)
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
        raise shown

    async def stream(
        self,
        method: MethodDescriptor,
        work: Any,
        messages: Any,
        context: Any,
        *,
        standard: bool = False,
    ) -> Stream:
        """Yield the responses of a call. Raises ZfsiloError; `messages`: of a client's stream."""
        path, streaming = path_of(method), method.client_streaming
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
        raise shown

    async def admit(self, path: str, context: Any) -> None:
        """Check that a caller may call a method, of which only the name is used."""
        try:
            with await self._place(context, lasts=False) as place:
                await self._authorized_in_turn(path, context, place)
            return
        except Exception as error:
            shown = _presentable(error, path)
        raise shown

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
        peer = self._peer(name)
        ROOM.set(room_of(peer))
        try:
            return self._limits.enter(peer, lasts=lasts)
        except ResourceExhausted:
            self._refusals[name] += 1
            if self._refusals[name] >= MAX_REFUSALS:
                self.sockets.disconnect(name, f"{MAX_REFUSALS} calls beyond its limit")
            try:
                await asyncio.sleep(REFUSAL_S)
            finally:
                self._refusals[name] -= 1
                self._refusals += Counter()  # drops keys whose count is 0
            raise

    def _peer(self, name: str) -> Peer:
        """Return the peer of a connection. Raises Unauthenticated."""
        peer = self.sockets.peer(name)
        if peer is None:
            log.warning("refused a call from %s: connection bypassed the gateway", name)
            raise Unauthenticated("connection bypassed the gateway")
        return peer

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
        return Call(self._service, caller, context, self.tasks, place)

    def _caller_name(self, context: Any) -> str:
        """Return the caller for the audit of a refused call, unauthenticated ones by address."""
        try:
            return str(self._identify(context))
        except ZfsiloError:
            peer = self.sockets.peer(context.peer())
            return f"nobody ({peer.address})" if peer else "nobody"

    def _identify(self, context: Any) -> Caller:
        name = context.peer()
        peer = self._peer(name)
        authorization = ""
        if peer.kind == "tcp":
            values = [v for k, v in context.invocation_metadata() if k == "authorization"]
            authorization = " ".join(values)  # two values do not form a valid one
        try:
            caller = self.callers.of(peer, authorization)
        except Unauthenticated as error:
            if error.reason == REVOKED:
                self.sockets.disconnect(name, "its identity was revoked")
            raise
        return _of_machine(caller, context) if caller.role == "host" else caller

    def _refused_by_gateway(self, address: str, path: str, reason: str) -> None:
        """Record a call of a peer without identity; its request was never read.

        `path`: the method of gRPC, or verb and target of HTTP.
        """
        verb, space, target = path.partition(" ")
        if space:
            path = self.method_at(verb, target)
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
