"""The socket on which workers and senders get the descriptors of streams.

It is in the folder of the lock files, which is open to the user of the daemon only. A process
writes the id of its operation, or its ticket, and gets a byte with a descriptor. A sender then
reports over the same connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.engine.report_wait import ID_BYTES
from zfsilod.engine.stream_link import GIVEN, SOCKET
from zfsilod.gateway.acceptor import Acceptor
from zfsilod.gateway.sockets import listen_unix, peer_of, receive_exactly
from zfsilod.requests.receive import ReceiveReplica
from zfsilod.storage.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zfsilod.model.records import Operation
    from zfsilod.storage.paths import AnyPath

    Give = Callable[[], Awaitable[int]]

ID_DEADLINE_S = 5.0
KEPT_PROBLEMS = 1024  # of the last receives of volumes

log = logging.getLogger(__name__)


class StreamSocket:
    """The streams that processes of this host wait for."""

    def __init__(self) -> None:
        self._acceptor: Acceptor | None = None
        self._path = Path()
        self._expected: dict[str, tuple[Give, asyncio.Future[socket.socket] | None]] = {}
        self._early: dict[str, asyncio.Future[None]] = {}  # a worker may be faster than its call
        self._tasks: set[asyncio.Task[None]] = set()
        self._problems: dict[str, tuple[str, str]] = {}

    def open(self, folder: AnyPath) -> None:
        """Listen in the folder of the lock files."""
        make_folder(folder)
        self._path = Path(folder) / SOCKET
        self._acceptor = Acceptor(listen_unix(self._path, mode=0o600), self._accepted)

    def close(self) -> None:
        """Close the socket; streams that were handed over continue."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._path.unlink(missing_ok=True)

    def expect(self, name: str, give: Give) -> None:
        """Expect a process of this name, once, and give it a descriptor: `give` returns that."""
        self._expect(name, give, None)

    def expect_reports(self, name: str, give: Give) -> asyncio.Future[socket.socket]:
        """Do the same, and return the connection of the process, on which it reports."""
        taken: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._expect(name, give, taken)
        return taken

    def _expect(self, name: str, give: Give, taken: asyncio.Future[socket.socket] | None) -> None:
        self._expected[name] = give, taken
        if (early := self._early.pop(name, None)) is not None and not early.done():
            early.set_result(None)

    def forget(self, name: str) -> None:
        """Expect the process no more."""
        self._expected.pop(name, None)

    def problem(self, volume: str) -> tuple[str, str]:
        """Return why the last receive of a volume failed, and the reason; "": it did not."""
        return self._problems.get(volume, ("", ""))

    def note(self, operation: Operation) -> None:
        """Remember why a receive failed, when its operation has ended."""
        if operation.kind != ReceiveReplica.kind or not operation.ended:
            return
        volume, failure = operation.subject.partition("/")[2], operation.failure
        self._problems.pop(volume, None)
        self._problems[volume] = (failure.message, failure.reason) if failure else ("", "")
        while len(self._problems) > KEPT_PROBLEMS:
            del self._problems[next(iter(self._problems))]

    def _accepted(self, link: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: socket.socket) -> None:
        link.settimeout(0)
        kept = False
        try:
            if peer_of(link, "unix").uid != os.geteuid():
                return
            async with asyncio.timeout(ID_DEADLINE_S):
                name = (await receive_exactly(link, ID_BYTES)).decode("ascii", "replace")
            if name not in self._expected:
                await self._until_expected(name)
            give, taken = self._expected.pop(name, (None, None))
            if give is None or (taken is not None and taken.done()):
                return
            descriptor = await give()
            try:
                socket.send_fds(link, [GIVEN], [descriptor])
            finally:
                os.close(descriptor)
            if taken is not None and not taken.done():
                taken.set_result(link)
                kept = True
        except (OSError, EOFError, TimeoutError) as error:
            log.warning("a process got no stream: %s", error)
        finally:
            if not kept:
                link.close()

    async def _until_expected(self, name: str) -> None:
        early = self._early[name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ID_DEADLINE_S):
                await early
        finally:
            self._early.pop(name, None)
