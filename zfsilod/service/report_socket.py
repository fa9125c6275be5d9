"""The socket on which workers wait for reports to servers: see engine/report_wait.py.

It is in a folder of this user alone, and serves only processes of this user.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.engine.report_wait import ID_BYTES, SOCKET
from zfsilod.gateway.sockets import listen_unix, peer_of
from zfsilod.model.errors import Busy, ZfsiloError
from zfsilod.storage.files import make_folder

if TYPE_CHECKING:
    from zfsilod.service.executor import Executor
    from zfsilod.storage.paths import AnyPath

ID_DEADLINE_S = 5.0
AT_ONCE = 256  # workers; a further one ends, and its operation is resumed in another unit

log = logging.getLogger(__name__)


class ReportSocket:
    """Performs the remote steps of operations whose workers wait in their units."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._server: asyncio.Server | None = None
        self._path = Path()
        self._workers = 0

    async def open(self, folder: AnyPath) -> None:
        """Listen in the folder of the lock files."""
        make_folder(folder)
        self._path = Path(folder) / SOCKET
        listener = listen_unix(self._path, mode=0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=ID_BYTES)

    async def close(self) -> None:
        """Close the socket; a worker that waits ends, and its operation is resumed later."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._workers += 1
        try:
            peer = peer_of(writer.get_extra_info("socket"), "unix")
            if self._workers <= AT_ONCE and peer.uid == os.geteuid():
                async with asyncio.timeout(ID_DEADLINE_S):
                    name = await reader.readexactly(ID_BYTES)
                await self._executor.spawn(self.perform(name.decode("ascii", "replace")))
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a worker did not ask: %s", error)
        finally:
            self._workers -= 1
            writer.close()

    async def perform(self, operation_id: str) -> None:
        """Perform the remote step of an operation, unless it was cancelled or ended meanwhile."""
        try:
            await self._executor.report_for_worker(operation_id)
        except Busy:
            return  # it was cancelled or rolled back meanwhile
        except ZfsiloError as error:
            log.warning("operation %s is resumed later: %s", operation_id, error.message)
