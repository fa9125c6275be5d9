"""The first record of a stream of `zfs send`: which snapshot it has, since which base.

The layout is struct drr_begin in include/sys/zfs_ioctl.h of OpenZFS 2.3.
"""

from __future__ import annotations

import struct

from zfsilod.host.replica_protocol import stream_cut
from zfsilod.host.send_stream import BEGIN, MAGIC, RECORD_BYTES, REDACTED, SUBSTREAM
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.lean import TYPE_CHECKING, socket
from zfsilod.model.record import Record

if TYPE_CHECKING:
    from typing import Final

ZVOL_TYPE = 3  # DMU_OST_ZVOL
RESUMING, RAW = 1 << 20, 1 << 24  # features of a stream
SO_PEEK_OFF: Final = 42  # socket(7): peeks go on where the last one ended


class StreamHeader(Record):
    """What a stream says that it has."""

    guid: str  # of the snapshot
    base_guid: str  # "": the stream has the whole snapshot
    raw: bool
    resuming: bool  # it continues an unfinished receive

    def check(self, dataset: str, *, guid: str, base_guid: str, raw: bool) -> None:
        """Raise FailedPrecondition (OTHER_STREAM) unless this is the stream that was agreed.

        `guid`: of the snapshot; "": it is not known yet.
        """
        agreed = self.but(guid=guid or self.guid, base_guid=base_guid, raw=raw)
        if self != agreed:
            raise other_stream(
                dataset,
                f"it has the snapshot with the guid {self.guid} since {self.base_guid or 'nothing'}"
                f", {'raw' if self.raw else 'not raw'}; agreed were {guid} since "
                f"{base_guid or 'nothing'}, {'raw' if raw else 'not raw'}",
            )


def read_header(dataset: str, stream: int) -> StreamHeader:
    """Return the header of a stream, and leave it in the socket.

    Raises FailedPrecondition (OTHER_STREAM), and Unavailable (STREAM_CUT) when it does not come.
    """
    try:
        record = peek(stream)
    except BlockingIOError:  # SO_RCVTIMEO: socket(7)
        raise stream_cut(dataset, "the peer was silent") from None
    except OSError as error:
        raise stream_cut(dataset, error.strerror or "its connection has ended") from None
    return parse_header(dataset, record)


def parse_header(dataset: str, record: bytes) -> StreamHeader:
    """Parse the first record.

    Raises FailedPrecondition (OTHER_STREAM), and Unavailable (STREAM_CUT) for a part of it.
    """
    if len(record) < RECORD_BYTES:
        raise stream_cut(dataset, "it ended within its first record")
    little = record[8:16] == MAGIC.to_bytes(8, "little")
    order = "<" if little else ">"
    fields = struct.unpack_from(f"{order}IIQQQIIQQ", record)
    kind, _payload, magic, version, _created, objects, _flags, guid, base_guid = fields
    features = version >> 2
    whole = version & 3 == SUBSTREAM and not features & REDACTED
    if (kind, magic, objects) != (BEGIN, MAGIC, ZVOL_TYPE) or not whole:
        raise other_stream(dataset, "it is not the whole stream of one zvol")
    return StreamHeader(
        guid=str(guid),
        base_guid=str(base_guid) if base_guid else "",
        raw=bool(features & RAW),
        resuming=bool(features & RESUMING),
    )


def peek(stream: int) -> bytes:
    """Return the first record of a stream, or less at its end, and leave it in the socket.

    Raises OSError.
    """
    record = b""
    opened = socket.socket(fileno=stream)
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        while len(record) < RECORD_BYTES:
            more = opened.recv(RECORD_BYTES - len(record), socket.MSG_PEEK)
            if not more:
                break
            record += more
        opened.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    finally:
        opened.detach()
    return record


def other_stream(dataset: str, why: str) -> FailedPrecondition:
    """Return the error for a stream that was not agreed on."""
    return FailedPrecondition(
        f"the stream for {dataset} is refused: {why}", reason="OTHER_STREAM", dataset=dataset
    )
