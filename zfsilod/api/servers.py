"""The front ends on sockets, gRPC and HTTP/JSON: the same methods behind the same guard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zfsilod.api.http.server import HttpServer
from zfsilod.api.rpc import pages
from zfsilod.api.rpc.call_limits import MAX_CALLS
from zfsilod.api.rpc.guard import CallGuard
from zfsilod.api.rpc.methods import all_methods
from zfsilod.api.rpc.server import GrpcServer

if TYPE_CHECKING:
    from zfsilod.gateway.connections import Connections
    from zfsilod.security.join_file import Files
    from zfsilod.service.service import Service

STOP_GRACE_S = 5.0


class ApiServers:
    """Both front ends of one daemon."""

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
        self._files = files
        self._guard = CallGuard(service, connections, max_calls)
        self.callers = self._guard.callers
        self._grpc = GrpcServer(self._guard, options)
        self._http = HttpServer(self._guard)

    @property
    def connections(self) -> int:
        """The number of connections of HTTP."""
        return len(self._http.connections)

    async def start(self) -> None:
        """Start to serve; only then may the gateway listen."""
        signed = pages.Pages(await self._service.context.write(pages.load_key))
        methods = all_methods(signed, self._files)
        await self._grpc.start(methods)
        await self._http.start(methods)
        self._guard.start()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls, wait for running ones, then cancel them."""
        self._connections.stop_listening()
        self._guard.stop()
        await asyncio.gather(self._grpc.stop(grace_s), self._http.stop(grace_s))
        self._connections.close()
        await self._guard.finish(grace_s)
