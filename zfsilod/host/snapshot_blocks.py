"""The blocks of a snapshot, from the record headers of `zfs send --raw`: zfs-send(8).

A raw stream has the blocks as they are on the disks, compressed and encrypted, so nothing is
decompressed and no key is needed. The whole stream is read, slowed down to a rate, and its data are
dropped.
"""

from __future__ import annotations

import time

from zfsilod.host.send_stream import StreamReader, changes, freed_from, ordered
from zfsilod.host.tool_output import ToolOutput
from zfsilod.host.zfs_output import first_line, refused
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from zfsilod.host.run import Runner
    from zfsilod.model.host_facts import BlockRange

STALL_S = 300  # a pool that answers is never silent for so long
RATE = 256 << 20  # bytes a second, so that a backup leaves the disks to the clients
BURST_S = 0.1  # of silence that may be made up for


class SendStreams:
    """Streams of one zvol."""

    def __init__(self, run: Runner, rate: float = RATE) -> None:
        self._run = run
        self._rate = rate

    def allocated(self, snapshot: str, *, start: int, size_bytes: int) -> Iterator[BlockRange]:
        """Yield the ranges of a snapshot that are in use, in order."""
        reader = StreamReader(self._pieces(snapshot))
        # What a full stream frees was never there.
        return ordered(changes(reader), start=start, size_bytes=size_bytes, zero_until=0)

    def changed(
        self, snapshot: str, base: str, *, start: int, size_bytes: int
    ) -> Iterator[BlockRange]:
        """Yield the ranges of a snapshot that differ from those of an older one, in order.

        An incremental stream frees what lies behind the last block, whether or not the older
        snapshot had something there. The start of a full stream of the older one tells what it had.
        """
        reader = StreamReader(self._pieces(snapshot, base))
        end = self._end_of(base)
        return ordered(changes(reader), start=start, size_bytes=size_bytes, zero_until=end)

    def _end_of(self, snapshot: str) -> int:
        """Return the offset behind the last block that a snapshot has in use."""
        pieces = self._pieces(snapshot)
        try:
            return freed_from(changes(StreamReader(pieces)))
        finally:
            pieces.close()

    def _pieces(self, snapshot: str, base: str = "") -> Generator[bytes, None, None]:
        """Yield the pieces of a stream, at the rate. Raises the error of zfs when it fails."""
        older = ["-i", base] if base else []
        argv = ["zfs", "send", "--raw", *older, "--", snapshot]
        due = time.monotonic()
        with ToolOutput(self._run, argv, stall_s=STALL_S) as output:
            while piece := output.read():
                yield piece
                due = max(due, time.monotonic() - BURST_S) + len(piece) / self._rate
                time.sleep(max(0.0, due - time.monotonic()))
            done = output.completed()
        if done.rc != 0:
            raise refused(done, first_line(done).rpartition("': ")[2], snapshot)
