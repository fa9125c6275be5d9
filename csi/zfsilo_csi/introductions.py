"""Introduces the node to its servers in the background: at the start, and when one forgot it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from zfsilo.v1 import host_pb2

from zfsilo_csi.calls import CsiCall
from zfsilo_csi.errors import Code, CsiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfsilo_csi.stubs import Zfsilod

ATTEMPT_S = 30.0
FIRST_PAUSE_S = 1.0  # after a failed attempt; doubled after each
REPEAT_S = 60.0  # a server that lost its record of the node gets it again after this time
AT_ONCE_S = 5.0  # NodeGetInfo waits at most this long, so that a new node can attach at once
FRESH_S = 10.0  # an older outcome is not reported; a limit for callers that ask all the time

log = logging.getLogger("zfsilo_csi")


class Introductions:
    """A task for each server, which repeats the introduction. A repeated one changes nothing."""

    def __init__(self, daemon: Zfsilod) -> None:
        self._daemon = daemon
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._attempted: dict[str, asyncio.Event] = {}
        self._due: dict[str, asyncio.Event] = {}
        self._outcomes: dict[str, tuple[float, CsiError | None]] = {}  # time.monotonic(), error

    async def begin(self, servers: Iterable[str]) -> None:
        """Introduce the node to servers from now on. Return after one attempt, or AT_ONCE_S."""
        names = set(servers)
        for server in names - set(self._tasks):
            self._attempted[server], self._due[server] = asyncio.Event(), asyncio.Event()
            self._tasks[server] = asyncio.create_task(self._repeat(server))
        with suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE_S):
                await asyncio.gather(*(self._attempted[server].wait() for server in names))

    def again(self, server: str) -> None:
        """Introduce the node to a server now: it does not know the node, or a volume of it."""
        if server in self._due:
            self._due[server].set()

    async def errors(self, servers: Iterable[str]) -> dict[str, CsiError]:
        """Introduce the node to servers, and return the errors. Takes AT_ONCE_S at most.

        The calls of all callers together are not more than one for each server in FRESH_S.
        """
        names = set(servers)
        for server in names & set(self._tasks):
            if not self._is_fresh(server):
                self._attempted[server].clear()
                self._due[server].set()
        await self.begin(names)
        return {server: error for server in names if (error := self._error(server))}

    def _is_fresh(self, server: str) -> bool:
        at, _error = self._outcomes.get(server, (-FRESH_S, None))
        return time.monotonic() - at < FRESH_S

    def _error(self, server: str) -> CsiError | None:
        if self._is_fresh(server):
            return self._outcomes[server][1]
        return CsiError(Code.UNAVAILABLE, f"no reply within {AT_ONCE_S:.0f} s")

    async def close(self) -> None:
        """Stop all introductions."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _repeat(self, server: str) -> None:
        pause_s, complaint = FIRST_PAUSE_S, ""
        while True:
            self._due[server].clear()
            before, complaint = complaint, await self._introduce(server)
            if complaint and complaint != before:
                log.warning(
                    "cannot introduce this node to server %s, retrying: %s", server, complaint
                )
            elif before and not complaint:
                log.info("server %s knows this node", server)
            self._attempted[server].set()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s if complaint else REPEAT_S):
                    await self._due[server].wait()
            pause_s = min(2 * pause_s, REPEAT_S) if complaint else FIRST_PAUSE_S

    async def _introduce(self, server: str) -> str:
        """Introduce the node to a server; return why it failed, or ""."""
        daemon_request = host_pb2.IntroduceHostRequest(server=server)
        failure: CsiError | None = None
        try:
            await self._daemon.hosts.IntroduceHost(daemon_request, CsiCall.of_plugin(ATTEMPT_S))
        except CsiError as error:
            failure = error
        self._outcomes[server] = time.monotonic(), failure
        return failure.message if failure else ""
