"""Messages and errors as JSON: protobuf's mapping, with the names of the proto and every field.

json_format of protobuf gives the same (a test compares them) and takes twice as long, which counts
for lists of 1,000 volumes.
"""

from __future__ import annotations

import json
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    Convert = Callable[[Any], Any]

LONG = (F.TYPE_INT64, F.TYPE_UINT64)
AS_THEY_ARE = (F.TYPE_STRING, F.TYPE_BOOL, F.TYPE_INT32, F.TYPE_UINT32)
TEXTS = ("google.protobuf.Duration", "google.protobuf.FieldMask", "google.protobuf.Timestamp")


def plain(message: Message) -> dict[str, Any]:
    """Return a message as json takes it, with every field; 64-bit numbers become texts."""
    fields = {}
    for name, get, convert, has_presence in _fields(message.DESCRIPTOR):
        if not has_presence or message.HasField(name):
            value = get(message)
            fields[name] = value if convert is None else convert(value)
    return fields


def encode(value: object) -> bytes:
    """Return JSON on one line, with its end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@cache
def _fields(kind: Descriptor) -> tuple[tuple[str, Convert, Convert | None, bool], ...]:
    """Return name, getter, conversion and presence of the fields of a message."""
    return tuple(
        (field.name, attrgetter(field.name), _conversion(field), field.has_presence)
        for field in kind.fields
    )


def _conversion(field: F) -> Convert | None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        value_of = _single(entry)
        return dict if value_of is None else _of_map(value_of)
    one = _single(field)
    if not field.is_repeated:
        return one
    return list if one is None else lambda values: [one(value) for value in values]


def _single(field: F) -> Convert | None:
    """Return the conversion of one value; None: it is JSON already."""
    if field.message_type is not None:
        is_text = field.message_type.full_name in TEXTS
        return (lambda value: value.ToJsonString()) if is_text else plain
    if field.enum_type is not None:
        names = {value.number: value.name for value in field.enum_type.values}
        return lambda number: names.get(number, number)
    if field.type in LONG:
        return str
    assert field.type in AS_THEY_ARE, field.full_name
    return None


def _of_map(value_of: Convert) -> Convert:
    return lambda entries: {name: value_of(value) for name, value in entries.items()}
