"""The blocks of snapshots, from processes with units of their own: see engine/block_reader.py.

The socket is in a folder of this user alone, and serves only processes of this user. Nothing is
kept here: a caller that reads slowly slows the stream of ZFS down.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.engine.block_reader import RANGE, RANGES_AT_ONCE, SOCKET
from zfsilod.engine.frames import DONE, FAILED, HEAD, error_in
from zfsilod.gateway.sockets import listen_unix, peer_of
from zfsilod.model.errors import ResourceExhausted, Unavailable
from zfsilod.model.ulid import new_ulid
from zfsilod.storage.files import make_folder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from zfsilod.engine.block_reader import BlockQuery
    from zfsilod.model.host_facts import BlockRange
    from zfsilod.service.ports import Launcher
    from zfsilod.storage.paths import AnyPath

    Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]

AT_ONCE = 2  # streams of ZFS; other callers wait for their turn
TURN_S = 60.0
TAKE_S = 600.0  # in which a caller has to take some ranges
START_S = 30.0
TICKET_BYTES, TICKET_S = 26, 5.0  # a ULID
MAX_FRAME_BYTES = max(1 << 16, RANGES_AT_ONCE * RANGE.size)

log = logging.getLogger(__name__)


class Turn:
    """The place of one call among AT_ONCE."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns: asyncio.Semaphore | None = turns

    @property
    def ended(self) -> bool:
        """Whether another call may have it."""
        return self._turns is None

    def end(self) -> None:
        """Let another call have it, once."""
        if self._turns is not None:
            self._turns.release()
            self._turns = None


class BlockReader:
    """Starts readers, and receives what they find."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting: dict[str, asyncio.Future[Link]] = {}
        self._server: asyncio.Server | None = None
        self._path = Path()

    async def open(self, folder: AnyPath) -> None:
        """Listen in the folder of the lock files."""
        make_folder(folder)
        self._path = Path(folder) / SOCKET
        listener = listen_unix(self._path, mode=0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def close(self) -> None:
        """Close the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def read(self, query: BlockQuery, title: str) -> AsyncGenerator[list[BlockRange], None]:
        """Yield the ranges of a query, in order, some at a time.

        Raises the errors of SnapshotAdapter.read_blocks, Unavailable (STOPPED) when the reader ends
        before it has sent everything or the caller has taken nothing for TAKE_S, and
        ResourceExhausted (TOO_MANY_CALLS) when there is no turn within TURN_S.
        """
        turn = await self._turn()
        ticket, loop = new_ulid(), asyncio.get_running_loop()
        arrived = self._waiting[ticket] = loop.create_future()
        try:
            await self._launcher.start_reader(ticket, query.words, title)
            async for ranges in _received(await _arrival(arrived), title):
                # A caller that waits keeps the snapshot in use, and others from their turn.
                stalled = loop.call_later(TAKE_S, _abandon, arrived, turn)
                try:
                    yield ranges
                finally:
                    stalled.cancel()
                if turn.ended:
                    raise Unavailable(
                        f"{title}: the caller took nothing for {TAKE_S:.0f} s; repeat the call "
                        "from the end of the last range",
                        reason="STOPPED",
                    )
        finally:
            del self._waiting[ticket]
            _abandon(arrived, turn)  # the reader ends when it next writes, if not before
            await self._launcher.stop_reader(ticket)  # also one whose start was not confirmed

    async def _turn(self) -> Turn:
        try:
            async with asyncio.timeout(TURN_S):
                await self._turns.acquire()
        except TimeoutError:
            raise ResourceExhausted(
                f"{AT_ONCE} other calls read the blocks of snapshots; repeat the call later",
                reason="TOO_MANY_CALLS",
            ) from None
        return Turn(self._turns)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived = None
        try:
            peer = peer_of(writer.get_extra_info("socket"), "unix")
            if peer.uid == os.geteuid():
                async with asyncio.timeout(TICKET_S):
                    ticket = await reader.readexactly(TICKET_BYTES)
                arrived = self._waiting.get(ticket.decode("ascii", "replace"))
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a reader of blocks has no ticket: %s", error)
        if arrived is None or arrived.done():
            writer.close()
        else:
            arrived.set_result((reader, writer))


async def _arrival(arrived: asyncio.Future[Link]) -> asyncio.StreamReader:
    """Wait for the connection of a reader. Raises Unavailable after START_S."""
    try:
        async with asyncio.timeout(START_S):
            reader, _writer = await arrived
    except TimeoutError:
        raise Unavailable(
            f"the process that reads the blocks did not start within {START_S:.0f} s; see the "
            "journal of zfsilo-blocks-*",
            reason="STOPPED",
        ) from None
    return reader


def _abandon(arrived: asyncio.Future[Link], turn: Turn) -> None:
    """Close the connection of a reader, and let another call have its turn."""
    turn.end()
    if arrived.done() and not arrived.cancelled():
        _reader, writer = arrived.result()
        writer.close()


async def _received(reader: asyncio.StreamReader, title: str) -> AsyncIterator[list[BlockRange]]:
    while True:
        try:
            kind, size = HEAD.unpack(await reader.readexactly(HEAD.size))
            content = await reader.readexactly(min(size, MAX_FRAME_BYTES))
        except (EOFError, OSError):
            raise Unavailable(
                f"{title}: the process that reads them was stopped before the end; repeat the call "
                "from the end of the last range",
                reason="STOPPED",
            ) from None
        if kind == DONE:
            return
        if kind == FAILED:
            raise error_in(content)
        yield list(RANGE.iter_unpack(content))
