"""JSON of messages: the same as that of protobuf's json_format, for every message of zfsilo.v1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import host_pb2, operation_pb2, service_pb2, snapshot_pb2, volume_pb2

from zfsilod.wire.plain import plain

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

FILES = (host_pb2, operation_pb2, service_pb2, snapshot_pb2, volume_pb2)
KINDS = {
    name: kind for module in FILES for name, kind in module.DESCRIPTOR.message_types_by_name.items()
}
DEPTH = 4


def filled(kind: Descriptor, depth: int = DEPTH) -> Any:
    """Return a message with all fields set."""
    message = GetMessageClass(kind)()
    field: Any
    for field in kind.fields:
        is_message = field.message_type is not None
        if is_message and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            getattr(message, field.name).update({"ä": scalar(value), "": scalar(value)})
        elif is_message and depth:
            inner = filled(field.message_type, depth - 1)
            if field.is_repeated:
                getattr(message, field.name).extend([inner, type(inner)()])
            else:
                getattr(message, field.name).CopyFrom(inner)
        elif not is_message and field.is_repeated:
            getattr(message, field.name).extend([scalar(field)] * 2)
        elif not is_message:
            setattr(message, field.name, scalar(field))
    return message


def scalar(field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return "text_ü"
    if field.enum_type is not None:
        return 77  # of a newer version
    return 3 if field.type != FieldDescriptor.TYPE_BOOL else True


@pytest.mark.parametrize("name", KINDS)
def test_it_is_that_of_json_format(name: str) -> None:
    for message in (filled(KINDS[name]), GetMessageClass(KINDS[name])()):
        expected = MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        assert plain(message) == expected
