"""Requests from path, query and body by protobuf's JSON mapping."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass

from zfsilod.model.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    from zfsilod.api.http.routes import Route

MAX_PARAMETERS = 2048
MAX_DEPTH = 16  # of messages in a request: it has 4
MAX_MESSAGE_CHARACTERS = 300
MASK = "google.protobuf.FieldMask"
TEXTS = ("google.protobuf.Duration", MASK, "google.protobuf.Timestamp")
"""Messages that are a text in JSON."""

Object = dict[str, Any]


def request_of(route: Route, path: str, query: str, body: bytes) -> Message:
    """Return the request of a call. Raises InvalidArgument."""
    kind = route.method.descriptor.input_type
    fields = _body(route, body)
    _add_query(fields, kind, route, query)
    if route.variable:
        _set(fields, route.variable, route.value_in(path))
    try:
        return ParseDict(fields, GetMessageClass(kind)(), max_recursion_depth=MAX_DEPTH)
    except (ParseError, ValueError, TypeError, AttributeError) as error:
        raise _malformed(_words(error)) from None


def _words(error: Exception) -> str:
    """Return what is wrong with a request; of null in a map, protobuf tells about its own types."""
    while error.__context__ is not None:
        error = error.__context__  # type: ignore[assignment] # an Exception, as the outer one
    wrong_type = isinstance(error, TypeError | AttributeError)
    return "a value has another type than its field" if wrong_type else str(error)


def parse_json(body: bytes) -> Any:
    """Return a JSON value; a name twice in an object is refused. Raises InvalidArgument."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise _malformed("the JSON is nested too deep") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of too many digits
        raise _malformed(f"the body is not JSON: {error}") from None


def _body(route: Route, body: bytes) -> Object:
    if not route.body:
        if body:
            raise _malformed(f"{route.verb} of this URL takes no body; use parameters")
        return {}
    value = parse_json(body) if body else {}
    if not isinstance(value, dict):
        raise _malformed("the body is not a JSON object")
    return value if route.body == "*" else {route.body: value}


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _add_query(fields: Object, kind: Descriptor, route: Route, query: str) -> None:
    """Add the parameters, which are the fields that are neither in the path nor in the body."""
    try:
        pairs = parse_qsl(
            query,
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise _malformed("the query cannot be parsed: expected NAME=VALUE&...") from None
    for name, text in pairs:
        if route.body == "*":
            raise _malformed(f"parameter {name!r}: this method takes all fields in its body")
        if name.partition(".")[0] == route.body or name == route.variable:
            raise _malformed(f"parameter {name!r} is in the path or in the body")
        _add_parameter(fields, kind, name, text)


def _add_parameter(fields: Object, kind: Descriptor, name: str, text: str) -> None:
    """Add one parameter: name, host.name, mount_options (repeated), properties[KEY]."""
    *parents, last = name.split(".") if "[" not in name else [name]
    target = fields
    for parent in parents:
        field = _field(kind, parent, name)
        if field.message_type is None or field.is_repeated or _is_text(field):
            raise _malformed(f"unknown parameter {name!r}")
        kind = field.message_type
        target = target.setdefault(field.name, {})
    last, bracket, key = last.partition("[")
    field = _field(kind, last, name)
    if bracket:
        if not _is_map(field) or not key.endswith("]"):
            raise _malformed(f"unknown parameter {name!r}")
        target, entry = target.setdefault(field.name, {}), key[:-1]
    elif field.is_repeated and not _is_map(field):
        target.setdefault(field.name, []).append(_value(field, text, name))
        return
    elif field.message_type is not None and not _is_text(field):
        raise _malformed(f"parameter {name!r} is a message; name one of its fields")
    else:
        entry = field.name
    if entry in target:
        raise _malformed(f"parameter {name!r} occurs twice")
    target[entry] = text if bracket else _value(field, text, name)


def _field(kind: Descriptor, name: str, whole: str) -> FieldDescriptor:
    field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
    if field is None:
        raise _malformed(f"unknown parameter {whole[:80]!r}")
    return field


def _value(field: FieldDescriptor, text: str, name: str) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text not in ("true", "false"):
            raise _malformed(f"parameter {name!r} is not true or false")
        return text == "true"
    if field.message_type is not None and field.message_type.full_name == MASK:
        return ",".join(map(_camel_case, text.split(",")))
    return text


def _camel_case(path: str) -> str:
    """Return a path of a mask as protobuf's JSON has it; the names of the proto are accepted."""
    first, *others = path.split("_")
    return first + "".join(word.capitalize() for word in others)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_text(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in TEXTS


def _set(fields: Object, variable: str, value: str) -> None:
    """Set the field of the path; the body may repeat it."""
    *parents, last = variable.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            raise _malformed(f"{parent} is not a JSON object")
    if fields.setdefault(last, value) != value:
        raise _malformed(f"{variable} in the body differs from the path")


def _malformed(message: str) -> InvalidArgument:
    first = message.partition("\n")[0][:MAX_MESSAGE_CHARACTERS]
    return InvalidArgument(f"malformed request: {first}", reason="MALFORMED")
