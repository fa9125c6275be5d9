"""Makes the table of messages and URLs that clients without protobuf use: zfsilo/v1/schema.py.

build.py runs it. A field is a code of its type, after the mark of its kind:

    s i l b t d k       text, number of 32 or 64 bits, boolean, Timestamp, Duration, FieldMask
    eState mVolume      enumeration, message
    *s %s ?s            repeated, values of a map, with presence
"""

from __future__ import annotations

import pprint
from typing import Any

import openapi
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

F = FieldDescriptorProto
SCALARS = {
    F.TYPE_STRING: "s",
    F.TYPE_INT32: "i",
    F.TYPE_INT64: "l",
    F.TYPE_BOOL: "b",
}
KNOWN = {
    ".google.protobuf.Timestamp": "t",
    ".google.protobuf.Duration": "d",
    ".google.protobuf.FieldMask": "k",
}
HEAD = '''"""Messages, enumerations and URLs of zfsilo.v1; made by proto/schema.py."""

'''


def module(descriptors: bytes) -> str:
    """Return the source of the module, from a FileDescriptorSet."""
    messages: dict[str, dict[str, str]] = {}
    enums: dict[str, tuple[str, ...]] = {}
    methods: dict[str, tuple[str, str, str, str, str]] = {}
    for file in FileDescriptorSet.FromString(descriptors).file:
        if f".{file.package}." != openapi.PACKAGE:
            continue
        for message in file.message_type:
            messages[message.name] = {f.name: _code(message, f) for f in message.field}
        for enum in file.enum_type:
            enums[enum.name] = tuple(value.name for value in enum.value)
        for service in file.service:
            methods |= {method.name: _url(method) for method in service.method}
    tables: dict[str, Any] = {"MESSAGES": messages, "ENUMS": enums, "METHODS": methods}
    return HEAD + "\n".join(
        f"{name} = {pprint.pformat(table, width=99, sort_dicts=False)}"
        for name, table in tables.items()
    )


def _url(method: MethodDescriptorProto) -> tuple[str, str, str, str, str]:
    """Return verb, template, variable, body and the response's type."""
    rule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    template = getattr(rule, verb)
    match = openapi.VARIABLE.search(template)
    variable = match[1] if match else ""
    output = method.output_type.removeprefix(openapi.PACKAGE)
    return verb.upper(), openapi.VARIABLE.sub("{}", template), variable, rule.body, output


def _code(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    entries = {kind.name: kind for kind in message.nested_type if kind.options.map_entry}
    name = field.type_name.rpartition(".")[2]
    if name in entries:
        return "%" + _code(message, entries[name].field[1])
    mark = "*" if field.label == F.LABEL_REPEATED else "?" if field.proto3_optional else ""
    if field.type == F.TYPE_ENUM:
        return f"{mark}e{name}"
    if field.type == F.TYPE_MESSAGE:
        return mark + KNOWN.get(field.type_name, f"m{name}")
    return mark + SCALARS[field.type]
