"""The record headers of a stream of `zfs send`: the blocks of a zvol that it writes, and frees.

A stream is a sequence of records: a header of 312 bytes, and for some types a payload, whose length
is in the header. The layout is struct dmu_replay_record in include/sys/zfs_ioctl.h of OpenZFS 2.3,
in the byte order of the host that made the stream. The data of a zvol are object 1 (ZVOL_OBJ in
include/sys/zvol.h). A stream is in the order of objects and offsets (dump_free in
module/zfs/dmu_send.c), with one exception: the record that frees everything beyond the last block
comes first (dump_dnode). Payloads are skipped. A stream that is not understood is refused, since a
range that is missing would be a change that a backup loses.
"""

from __future__ import annotations

import struct

from zfsilod.model.errors import CommandFailed
from zfsilod.model.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.host_facts import BlockRange

RECORD_BYTES = 312
JOIN_BYTES = 1 << 30  # a longer range is told in parts, while the stream goes on
MAGIC = 0x2F5BACBAC
ZVOL_OBJECT = 1
SUBSTREAM = 1  # header type of the stream of one dataset; 2: of several
REDACTED = 1 << 21  # feature of a stream that leaves blocks out
TO_THE_END = 1 << 63  # a record that frees more than this frees up to the end of the object
(
    BEGIN,
    OBJECT,
    FREEOBJECTS,
    WRITE,
    FREE,
    END,
    WRITE_BYREF,
    SPILL,
    WRITE_EMBEDDED,
    OBJECT_RANGE,
) = range(10)  # REDACT, the next one, hides blocks and is refused
WITHOUT_PAYLOAD = (FREEOBJECTS, FREE, WRITE_BYREF, OBJECT_RANGE)


class StreamReader:
    """Takes bytes from a stream that comes in pieces, and skips others."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes. Raises CommandFailed (BAD_STREAM) when the stream ends before."""
        taken = self._piece[self._at : self._at + count]
        self._at += len(taken)
        while len(taken) < count:
            self._next()
            more = self._piece[: count - len(taken)]
            self._at = len(more)
            taken += more
        return taken

    def skip(self, count: int) -> None:
        """Skip the next bytes. Raises CommandFailed (BAD_STREAM) when the stream ends before."""
        self._at += count
        while self._at > len(self._piece):
            beyond = self._at - len(self._piece)
            self._next()
            self._at = beyond

    def end(self) -> None:
        """Raise CommandFailed (BAD_STREAM) unless the stream ends here."""
        if self._at < len(self._piece) or any(self._pieces):
            raise _bad("it continues after its end record")

    def _next(self) -> None:
        try:
            self._piece = next(self._pieces)
        except StopIteration:
            raise _bad("it ends before its end record") from None
        self._at = 0


class RecordFormat:
    """The fields of records in one byte order, by their offset in the header."""

    def __init__(self, order: str) -> None:
        self.head = struct.Struct(f"{order}II")  # type, length of the payload of a BEGIN record
        self.version = struct.Struct(f"{order}16xQ")
        self.numbers = struct.Struct(f"{order}8xQQQ")  # object, offset and length of most types
        self._write = struct.Struct(f"{order}8xQ8xQQ10xB45xQ")
        self._object = struct.Struct(f"{order}28xI4xI")
        self._spill = struct.Struct(f"{order}16xQ16xQ")
        self._embedded = struct.Struct(f"{order}52xI")

    def write(self, header: bytes) -> tuple[int, int, int, int]:
        """Return object, offset, length and length of the payload of a WRITE record."""
        number, offset, length, compression, stored = self._write.unpack_from(header)
        return number, offset, length, stored if compression else length

    def payload(self, kind: int, header: bytes) -> int:
        """Return the length of the payload of a record of another type, in bytes."""
        if kind in WITHOUT_PAYLOAD:
            return 0
        if kind == OBJECT:
            bonus, raw_bonus = self._object.unpack_from(header)
            return int(raw_bonus or _padded(bonus))
        if kind == SPILL:
            length, stored = self._spill.unpack_from(header)
            return int(stored or length)
        if kind == WRITE_EMBEDDED:
            return _padded(self._embedded.unpack_from(header)[0])
        raise _bad(f"it has a record of the type {kind}")


def changes(reader: StreamReader) -> Iterator[BlockRange]:
    """Yield what each record does to the zvol, in the order of the records.

    A record that frees up to the end of the object has a length of more than TO_THE_END. Raises
    CommandFailed (BAD_STREAM) for a stream that is cut off, or has a record that is not understood.
    """
    fields = _begun(reader)
    head, numbers = fields.head.unpack_from, fields.numbers.unpack_from
    while True:
        header = reader.take(RECORD_BYTES)
        kind = head(header)[0]
        if kind == WRITE:
            number, offset, length, payload = fields.write(header)
            reader.skip(payload)
            if number == ZVOL_OBJECT:
                yield offset, length, False
            continue
        if kind == END:
            reader.end()
            return
        reader.skip(fields.payload(kind, header))
        number, offset, length = numbers(header)
        if number == ZVOL_OBJECT and kind in (FREE, WRITE_EMBEDDED, WRITE_BYREF):
            yield offset, length, kind == FREE


def _begun(reader: StreamReader) -> RecordFormat:
    """Read the BEGIN record, which tells the byte order by its magic number."""
    header = reader.take(RECORD_BYTES)
    order = "<" if header[8:16] == MAGIC.to_bytes(8, "little") else ">"
    fields = RecordFormat(order)
    kind, payload = fields.head.unpack_from(header)
    if kind != BEGIN or header[8:16] not in (MAGIC.to_bytes(8, "little"), MAGIC.to_bytes(8, "big")):
        raise _bad("it does not begin as a stream of zfs send does")
    version = fields.version.unpack_from(header)[0]
    if version & 3 != SUBSTREAM or version >> 2 & REDACTED:
        raise _bad("it is not the whole stream of one dataset")
    reader.skip(payload)
    return fields


def ordered(
    ranges: Iterator[BlockRange], *, start: int, size_bytes: int, zero_until: int
) -> Iterator[BlockRange]:
    """Yield ranges in ascending order, joined, and cut to the part from `start` to the size.

    What is freed counts below the offset `zero_until` only: beyond it everything was zero before.
    Raises CommandFailed (BAD_STREAM) when the records are not in the order that a stream has.
    """
    position, rest = 0, TO_THE_END  # the end of the last record, the part that is freed at the end
    joined = (start, 0, False)
    for offset, length, zero in ranges:
        if zero and length > TO_THE_END - offset:
            rest = min(rest, offset)
            continue
        if offset < position or (not zero and offset >= rest):
            raise _bad(f"its records are not in the order of their offsets, at {offset}")
        position = offset + length
        end = min(size_bytes, zero_until) if zero else size_bytes
        cut = _cut((offset, length, zero), start, end)
        if not cut[1]:
            continue
        if joined[0] + joined[1] == cut[0] and joined[2] == cut[2] and joined[1] < JOIN_BYTES:
            joined = (joined[0], joined[1] + cut[1], zero)
            continue
        if joined[1]:
            yield joined
        joined = cut
    if joined[1]:
        yield joined
    last = _cut((max(rest, position), TO_THE_END, True), start, min(size_bytes, zero_until))
    if rest < TO_THE_END and last[1]:
        yield last


def freed_from(ranges: Iterator[BlockRange]) -> int:
    """Return the offset from which on a full stream frees everything: the end of what is in use."""
    for offset, length, zero in ranges:
        if zero and length > TO_THE_END - offset:
            return offset
        break
    raise _bad("it does not say where the zvol ends")


def _cut(one: BlockRange, start: int, end: int) -> BlockRange:
    """Return the part of a range between two offsets; its length may be 0."""
    offset, length, zero = one
    first = max(offset, start)
    return first, max(0, min(offset + length, end) - first), zero


def _padded(count: int) -> int:
    return count + 7 & ~7


def _bad(why: str) -> CommandFailed:
    return CommandFailed(f"the stream of zfs send cannot be read: {why}", reason="BAD_STREAM")
