"""Random hostile values: texts, numbers, messages and mutated bytes, drawn from a seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message_factory import GetMessageClass

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

TEXTS = (
    "",
    "data",
    "volumes/data",
    "hosts/take",
    "take",
    "give",
    "operations/01arz3ndektsv4rrffq69g5fav",
    "-x",
    "--help",
    "-o",
    "a b",
    "$(reboot)",
    "`id`",
    "a;b",
    "a|b",
    "a&b",
    "$HOME",
    "%i",
    "%%",
    "$$",
    "..",
    "../../etc/passwd",
    "/",
    "/etc",
    "/tmp/../etc",
    "//",
    "a/b/c",
    "a\nb",
    "a\tb",
    "a\\b",
    '"',
    "'",
    "{}",
    "[]",
    "*",
    "?",
    "~",
    "#",
    "x" * 129,
    "x" * 5000,
    "\u202e",
    "\U0001f4a9",
    "\ufffd",
    "İ",
    "data.service",
    "tank/zfsilo/data",
    "iqn.2026-01.org.example:a",
    "ext4",
    "noatime",
    "labels.app = db",
    "(" * 200,
    "NOT " * 200,
    "0",
    "-1",
    "1e9",
    "nan",
    "name",
    "capacity_bytes",
)
NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 40, (1 << 63) - 1)
DEPTH = 3


class HostileValues:
    """Generator of hostile values from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def text(self) -> str:
        """Return a text of the list, or one of random characters."""
        if self.draw.random() < 0.9:
            return self.draw.choice(TEXTS)
        odd = (9, 32, 127, 0x3B1, 0xFFFF, *range(33, 127))
        return "".join(chr(code) for code in self.draw.choices(odd, k=self.draw.randrange(40)))

    def number(self, most: int = (1 << 63) - 1, least: int = -(1 << 63)) -> int:
        """Return a whole number within limits, mostly one at an edge."""
        number = self.draw.choice((*NUMBERS, most, least, self.draw.randint(least, most)))
        return min(max(number, least), most)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Return a message with some of its fields set."""
        message: Any = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self.draw.random() < 0.5:
                self._fill(message, field, depth)
        return message  # type: ignore[no-any-return]

    def mutated(self, raw: bytes) -> bytes:
        """Return bytes with changes in up to five places."""
        data = bytearray(raw)
        for _item in range(self.draw.choice((0, 0, 1, 1, 2, 5))):
            place = self.draw.randrange(len(data) + 1)
            match self.draw.randrange(5):
                case 0:
                    data[place : place + 1] = self.draw.randbytes(1)
                case 1:
                    data[place:place] = self.draw.randbytes(self.draw.randrange(9))
                case 2:
                    del data[place : place + self.draw.randrange(9)]
                case 3:
                    data += data[place:]
                case 4:
                    del data[place:]
        return bytes(data[: 1 << 16])

    def _fill(self, message: Any, field: Field, depth: int) -> None:
        if field.message_type is not None:
            self._fill_message(message, field, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(
                self._plain(field) for _item in range(self.draw.choice((0, 1, 2, 70)))
            )
        else:
            setattr(message, field.name, self._plain(field))

    def _fill_message(self, message: Any, field: Field, depth: int) -> None:
        kind = field.message_type
        assert kind is not None
        if depth >= DEPTH:
            return
        if kind.GetOptions().map_entry:
            value = kind.fields_by_name["value"]
            if value.message_type is None:
                for _item in range(self.draw.choice((0, 1, 3, 70))):
                    getattr(message, field.name)[self.text()] = self._plain(value)
        elif field.is_repeated:
            getattr(message, field.name).add().CopyFrom(self.message(kind, depth + 1))
        else:
            getattr(message, field.name).CopyFrom(self.message(kind, depth + 1))

    def _plain(self, field: Field) -> Any:
        match field.cpp_type:
            case Field.CPPTYPE_STRING:
                text = self.text()
                return text.encode() if field.type == Field.TYPE_BYTES else text
            case Field.CPPTYPE_BOOL:
                return self.draw.random() < 0.5
            case Field.CPPTYPE_INT32 | Field.CPPTYPE_ENUM:
                return self.number((1 << 31) - 1, -(1 << 31))
            case Field.CPPTYPE_UINT32:
                return self.number((1 << 32) - 1, 0)
            case Field.CPPTYPE_UINT64:
                return self.number((1 << 64) - 1, 0)
            case Field.CPPTYPE_INT64:
                return self.number()
        return float(self.draw.choice(NUMBERS))
