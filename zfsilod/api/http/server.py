"""The HTTP server: finds the method of a request, and answers it behind the guard of gRPC."""

from __future__ import annotations

import asyncio
import inspect
import os
from contextlib import aclosing
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from zfsilod.api.http.connection import HttpConnection
from zfsilod.api.http.context import HttpCaller, HttpContext
from zfsilod.api.http.refusals import bad_http, bad_method, check_headers, no_url
from zfsilod.api.http.response import LINES_TYPE, headers_of, refusal
from zfsilod.api.http.routes import Routes
from zfsilod.model.errors import DeadlineExceeded, ZfsiloError
from zfsilod.wire import status
from zfsilod.wire.plain import encode, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import h11

    from zfsilod.api.http.routes import Route
    from zfsilod.api.rpc.guard import CallGuard
    from zfsilod.api.rpc.methods import ApiMethod

LARGE_BYTES = 8192  # of a message that is written as JSON in a thread: protobuf's writer is Python
BACKLOG = 128
OPENAPI_PATH, OPENAPI_FILE = "/v1/openapi.json", "openapi.json"
DESCRIBING = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class HttpServer:
    """The HTTP/JSON front end, for remote callers and for local ones on the unix socket."""

    def __init__(self, guard: CallGuard) -> None:
        self._guard = guard
        self.connections: dict[asyncio.Task[Any], HttpConnection] = {}
        self._server: asyncio.Server | None = None
        self._routes = Routes([])

    async def start(self, methods: Iterable[ApiMethod]) -> None:
        """Start to serve."""
        self._routes = Routes(methods)
        path = os.fspath(self._guard.sockets.http_socket)
        self._server = await asyncio.start_unix_server(self._connected, path, backlog=BACKLOG)
        self._guard.method_at = self._method_at

    async def stop(self, grace_s: float) -> None:
        """Close idle connections, wait for requests, then cancel them."""
        if self._server is None:
            return
        self._server.close()
        busy = set()
        for task, connection in self.connections.items():
            connection.closing = True
            if connection.busy:
                busy.add(task)
            else:
                task.cancel()
        if busy:
            _done, late = await asyncio.wait(busy, timeout=grace_s)
            for task in late:
                task.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        connection = self.connections[task] = HttpConnection(reader, writer)
        connection.carry_stream = partial(self._guard.sockets.carry_stream, connection.peer)
        try:
            await connection.serve(self._answer)
        finally:
            del self.connections[task]
            connection.close()

    async def _answer(self, connection: HttpConnection, request: h11.Request) -> None:
        """Answer one request, whatever it is."""
        verb, target = request.method.decode(), request.target.decode()
        path, _mark, query = _without_origin(target).partition("?")
        try:
            headers = _headers_of(request)
            check_headers(headers)
            if path == OPENAPI_PATH:
                await self._describe(connection, headers, verb)
                return
            routes = self._routes.at(path)
            if not routes:
                raise no_url(path)
            if "GET" in routes and not routes["GET"].method.descriptor.server_streaming:
                routes["HEAD"] = routes["GET"]
            allowed = sorted([*routes, "OPTIONS"])
            if verb == "OPTIONS":
                await connection.respond(204, headers_of(allow=", ".join(allowed)))
                return
            route = routes.get(verb)
            if route is None:
                error = bad_method(path, allowed)
                await connection.respond(*refusal(error, allow=", ".join(allowed)))
                return
            exchange = Exchange(self._guard, connection, headers, route, (path, query))
            await connection.while_connected(exchange.run())
        except ZfsiloError as error:
            connection.closing |= error.reason == "BAD_HTTP"
            await connection.respond(*refusal(error))

    async def _describe(
        self, connection: HttpConnection, headers: Mapping[str, str], verb: str
    ) -> None:
        """Send the description of the interface to those who may read that of gRPC."""
        if verb not in ("GET", "HEAD"):
            error = bad_method(OPENAPI_PATH, ("GET", "HEAD"))
            await connection.respond(*refusal(error, allow="GET, HEAD"))
            return
        await self._guard.admit(DESCRIBING, HttpCaller(connection, headers))
        body = await asyncio.to_thread(_document)
        await connection.respond(200, headers_of(), body)

    def _method_at(self, verb: str, target: str) -> str:
        """Return the method of gRPC of a URL, for the audit; "": none."""
        from zfsilod.wire.stub import path_of

        route = self._routes.at(_without_origin(target).partition("?")[0]).get(verb)
        return path_of(route.method.descriptor) if route else ""


class Exchange:
    """One request to a method, and its response."""

    def __init__(
        self,
        guard: CallGuard,
        connection: HttpConnection,
        headers: Mapping[str, str],
        route: Route,
        target: tuple[str, str],
    ) -> None:
        self._guard = guard
        self._connection = connection
        self._method = route.method
        self._lines = LINES_TYPE in headers.get("accept", "")
        self._begun = False
        self._context = HttpContext(connection, headers, route, target, self._started)

    async def run(self) -> None:
        """Answer it."""
        try:
            async with asyncio.timeout(self._context.timeout_s):
                await self._run()
            return
        except TimeoutError:
            error: ZfsiloError = DeadlineExceeded("the request took longer than its deadline")
        except ZfsiloError as refused:
            error = refused
        if self._begun:
            await self._connection.line(encode({"error": status.as_json(error)}))
            await self._connection.end()
        else:
            response = refusal(error, zfsilo_operation=self._context.operation)
            await self._connection.respond(*response)

    async def _run(self) -> None:
        descriptor, work = self._method
        if inspect.isasyncgenfunction(work):
            await self._stream()
            return
        assert not descriptor.server_streaming
        response = await self._guard.answer(descriptor, work, self._context)
        body = await _as_json(response)
        if self._begun:
            await self._connection.line(body)
            await self._connection.end()
        else:
            headers = headers_of(zfsilo_operation=self._context.operation)
            await self._connection.respond(200, headers, body)

    async def _stream(self) -> None:
        """Send the responses of a watch as lines."""
        stream = self._guard.stream(*self._method, None, self._context)
        async with aclosing(stream) as responses:
            async for response in responses:
                await self._begin()
                await self._connection.line(await _as_json(response))
        await self._begin()
        await self._connection.end()

    async def _started(self, operation: str) -> None:
        """Tell the client the name of its operation at once, if it reads lines."""
        if self._lines:
            await self._begin()
            await self._connection.line(encode({"started": operation}))

    async def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            headers = headers_of(LINES_TYPE, zfsilo_operation=self._context.operation)
            await self._connection.begin(headers)


async def _as_json(message: Any) -> bytes:
    if message.ByteSize() > LARGE_BYTES:
        return await asyncio.to_thread(lambda: encode(plain(message)))
    return encode(plain(message))


def _headers_of(request: h11.Request) -> dict[str, str]:
    """Return the headers by name; two of one name are joined, as HTTP has it."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name == "host" and name in headers:
            raise bad_http("two Host headers")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _without_origin(target: str) -> str:
    """Return path and query of a target, which may be a whole URL."""
    for scheme in ("http://", "https://"):
        if target.startswith(scheme):
            _host, slash, rest = target.removeprefix(scheme).partition("/")
            return slash + rest
    return target


def _document() -> bytes:
    return resources.files("zfsilo.v1").joinpath(OPENAPI_FILE).read_bytes()
