"""zfsilo-worker blocks: reads the blocks of a snapshot, and sends them to its daemon.

It changes nothing, and has a unit of its own because `zfs send` needs capabilities that the daemon
does not have. It connects to a socket in the folder of the lock files, which is open to the user of
the daemon only, and writes its ticket: 26 characters. Then it writes frames (frames.py).
"""

from __future__ import annotations

import struct
import time

from zfsilod.engine.frames import DONE, send_failure, send_frame
from zfsilod.engine.report_wait import connect
from zfsilod.model.errors import ZfsiloError
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.engine.limits import WorkerLimits
    from zfsilod.host import HostAdapters
    from zfsilod.model.host_facts import BlockRange

SOCKET = "blocks.sock"
RANGES = b"R"
RANGE = struct.Struct(">QQ?")  # offset, length, whether it reads as zeros
RANGES_AT_ONCE = 1000
SEND_EACH_S = 1.0
CONNECT_S = 10
NONE = "-"


class BlockQuery(Record):
    """Which blocks of which snapshot: those in use, or those that differ from a base."""

    dataset: str  # the zvol
    volume_uid: str
    uid: str  # of the snapshot set
    guid: str = ""  # of the snapshot in ZFS
    base_uid: str = ""  # "": those in use
    base_guid: str = ""
    start: int = 0  # offset in bytes

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of the process."""
        return tuple(str(getattr(self, name)) or NONE for name in self.FIELDS)

    @classmethod
    def parsed(cls, words: list[str]) -> BlockQuery:
        """Return the query of a process by its arguments."""
        *texts, start = (word if word != NONE else "" for word in words)
        values = dict(zip(cls.FIELDS, texts, strict=False))
        return cls(start=int(start), **values)

    def read(self, host: HostAdapters) -> Iterator[BlockRange]:
        """Yield the ranges, in order."""
        ref = SnapshotRef(dataset=self.dataset, uid=self.volume_uid, guid=self.guid)
        base = ref.but(guid=self.base_guid) if self.base_uid else None
        snapshots = host.snapshots
        return snapshots.read_blocks(
            ref, self.uid, base=base, base_uid=self.base_uid, start=self.start
        )


def send_blocks(
    host: HostAdapters, limits: WorkerLimits | None, folder: str, ticket: str, query: BlockQuery
) -> None:
    """Send what a query finds. Raises ZfsiloError for what it has sent as a failure."""
    link = connect(f"{folder}/{SOCKET}", ticket, CONNECT_S)
    link.settimeout(None)  # a reader that takes its time slows the stream down
    try:
        if limits is not None:
            limits.check_dataset(query.dataset)
        batch: list[bytes] = []
        sent_at = time.monotonic()
        for one in query.read(host):
            batch.append(RANGE.pack(*one))
            # Soon, so that a call that is cut off can go on where it was.
            if len(batch) == RANGES_AT_ONCE or time.monotonic() - sent_at > SEND_EACH_S:
                send_frame(link, RANGES, b"".join(batch))
                batch.clear()
                sent_at = time.monotonic()
        if batch:
            send_frame(link, RANGES, b"".join(batch))
        send_frame(link, DONE)
    except ZfsiloError as error:
        send_failure(link, error, "read the blocks")
        raise
    finally:
        link.close()
