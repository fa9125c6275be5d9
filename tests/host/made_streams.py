"""Streams as `zfs send` makes them: records by struct dmu_replay_record of OpenZFS 2.3."""

from __future__ import annotations

import struct

MAGIC = 0x2F5BACBAC
TO_THE_END = (1 << 64) - 1  # DMU_OBJECT_END, the length of what frees the rest of an object
BEGIN, OBJECT, FREEOBJECTS, WRITE, FREE, END, BYREF, SPILL, EMBEDDED, RANGE, REDACT = range(11)
COMPRESSION = 15  # lz4
FEATURES = 1 << 22 | 1 << 19  # compressed, large blocks


class MadeStream:
    """A stream that grows by a record with each call; `content` is all of it so far."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.content = b""

    def begin(self, *, kind: int = 1, features: int = FEATURES, payload: bytes = b"") -> MadeStream:
        """Begin; `payload`: the properties that some streams have."""
        fields = struct.pack(f"{self.order}QQQIIQQ", MAGIC, kind | features << 2, 1, 3, 12, 7, 0)
        return self.record(BEGIN, fields + b"tank/a@b", payload)

    def object(self, number: int = 1, *, bonus: int = 0, raw_bonus: int = 0) -> MadeStream:
        """Announce an object, with its bonus."""
        fields = struct.pack(
            f"{self.order}QIIIIBBBBIQ", number, 23, 0, 16384, bonus, 0, 0, 1, 0, raw_bonus, 7
        )
        return self.record(OBJECT, fields, bytes(raw_bonus or -(-bonus // 8) * 8))

    def write(self, offset: int, length: int, *, stored: int = 0, number: int = 1) -> MadeStream:
        """Write a block; `stored`: the length of its payload when it is compressed or raw."""
        head = struct.pack(f"{self.order}QIIQQQ", number, 24, 0, offset, length, 7)
        kinds = struct.pack(f"{self.order}BBB5x", 7, 0, COMPRESSION if stored else 0)
        key = struct.pack(f"{self.order}5QQ", *range(5), stored)
        return self.record(WRITE, head + kinds + key, b"\xff" * (stored or length))

    def embedded(self, offset: int, length: int, stored: int) -> MadeStream:
        """Write a block that is stored in its pointer."""
        fields = struct.pack(
            f"{self.order}QQQQBB6xII", 1, offset, length, 7, COMPRESSION, 0, length, stored
        )
        return self.record(EMBEDDED, fields, b"\xee" * (-(-stored // 8) * 8))

    def free(self, offset: int, length: int, *, number: int = 1) -> MadeStream:
        """Free a part of an object."""
        return self.record(FREE, struct.pack(f"{self.order}QQQQ", number, offset, length, 7))

    def byref(self, offset: int, length: int) -> MadeStream:
        """Write a block by a reference to another one."""
        return self.record(BYREF, struct.pack(f"{self.order}QQQQ", 1, offset, length, 7))

    def spill(self, length: int, *, stored: int = 0) -> MadeStream:
        """Add a spill block of an object."""
        fields = struct.pack(f"{self.order}QQQBB6xQ", 2, length, 7, 0, 0, stored)
        return self.record(SPILL, fields, b"\xdd" * (stored or length))

    def numbers(self, kind: int, first: int, count: int) -> MadeStream:
        """Add a record of objects without a payload."""
        return self.record(kind, struct.pack(f"{self.order}QQQ", first, count, 7))

    def end(self) -> MadeStream:
        """End."""
        return self.record(END, struct.pack(f"{self.order}4QQ", 1, 2, 3, 4, 7))

    def record(self, kind: int, fields: bytes, payload: bytes = b"") -> MadeStream:
        """Add a record of any type."""
        length = len(payload) if kind == BEGIN else 0
        head = struct.pack(f"{self.order}II", kind, length)
        self.content += (head + fields).ljust(312, b"\0") + payload
        return self
