"""Makes the OpenAPI 3.1 document from the descriptors of zfsilo.v1 and their comments.

build.py runs it; the document is stored as zfsilo/v1/openapi.json and served at /v1/openapi.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = ".zfsilo.v1."
VERSION = Path(__file__).resolve().parents[1] / "zfsilod/__init__.py"
VARIABLE = re.compile(r"\{([a-z_.]+)=([A-Za-z]+)/\*\}")
VERBS = ("get", "post", "patch", "delete", "put")
F = FieldDescriptorProto
# Numbers of 64 bits are texts in protobuf's JSON.
LONG = {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
UNSIGNED = {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"}
SCALARS: dict[int, dict[str, Any]] = {
    F.TYPE_STRING: {"type": "string"},
    F.TYPE_BOOL: {"type": "boolean"},
    F.TYPE_INT32: {"type": "integer", "format": "int32"},
    F.TYPE_UINT32: {"type": "integer", "minimum": 0},
    F.TYPE_INT64: LONG,
    F.TYPE_UINT64: UNSIGNED,
    F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
TEXTS = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    ".google.protobuf.FieldMask": {"type": "string", "description": "Names, joined by commas."},
}
# Numbers of fields in descriptor.proto, of which the path of a comment consists.
MESSAGES, ENUMS, SERVICES, FIELDS, VALUES, METHODS = 4, 5, 6, 2, 2, 2
STATUS = {
    "type": "object",
    "description": "google.rpc.Status: an error.",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "description": "A code of gRPC (google.rpc.Code)."},
        "message": {"type": "string", "description": "A sentence for people."},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "description": "google.rpc.ErrorInfo.",
                "properties": {
                    "@type": {"type": "string"},
                    "reason": {"type": "string", "description": "One of a documented list."},
                    "domain": {"type": "string", "const": "zfsilo.org"},
                    "metadata": {
                        "type": "object",
                        "description": "Facts.",
                        "additionalProperties": {"type": "string"},
                    },
                },
            },
        },
    },
}
TIMEOUT = {
    "name": "Zfsilo-Timeout",
    "in": "header",
    "description": "The deadline in seconds. A change without one has 10 minutes.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
}

Schema = dict[str, Any]


class Source:
    """The messages, enumerations and comments of all files."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.files = [file for file in files.file if f".{file.package}." == PACKAGE]
        self.messages: dict[str, tuple[DescriptorProto, dict[int, str], str]] = {}
        self.enums: dict[str, tuple[EnumDescriptorProto, dict[int, str], str]] = {}
        self.services: list[tuple[str, str, list[tuple[MethodDescriptorProto, str]]]] = []
        for file in self.files:
            self._read(file)

    def _read(self, file: FileDescriptorProto) -> None:
        comments = {
            tuple(location.path): _comment(location.leading_comments)
            for location in file.source_code_info.location
        }
        for number, message in enumerate(file.message_type):
            of_fields = {
                place: comments.get((MESSAGES, number, FIELDS, place), "")
                for place in range(len(message.field))
            }
            text = comments.get((MESSAGES, number), "")
            self.messages[PACKAGE + message.name] = (message, of_fields, text)
            assert not message.enum_type, message.name
        for number, enum in enumerate(file.enum_type):
            of_values = {
                place: comments.get((ENUMS, number, VALUES, place), "")
                for place in range(len(enum.value))
            }
            self.enums[PACKAGE + enum.name] = (enum, of_values, comments.get((ENUMS, number), ""))
        for number, service in enumerate(file.service):
            methods = [
                (method, comments.get((SERVICES, number, METHODS, place), ""))
                for place, method in enumerate(service.method)
            ]
            self.services.append((service.name, comments.get((SERVICES, number), ""), methods))


def document(descriptors: bytes) -> str:
    """Return the document as JSON, from a FileDescriptorSet with source info."""
    source = Source(FileDescriptorSet.FromString(descriptors))
    paths: dict[str, Schema] = {}
    for service, _comment_of_it, methods in source.services:
        for method, comment in methods:
            for path, verb, operation in _operations(source, service, method, comment):
                paths.setdefault(path, {})[verb] = operation
    schemas = {name.removeprefix(PACKAGE): _message(source, name) for name in source.messages}
    schemas |= {name.removeprefix(PACKAGE): _enum(*source.enums[name]) for name in source.enums}
    content = {
        "openapi": "3.1.0",
        "info": {
            "title": "zfsilo",
            "version": re.findall(r'__version__ = "([^"]+)"', VERSION.read_text())[0],
            "summary": "Network block storage for ZFS",
            "description": "The methods of the gRPC interface zfsilo.v1 as HTTP/JSON.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"certificate": []}, {}],
        "tags": [{"name": name, "description": text} for name, text, _m in source.services],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted((schemas | {"ErrorStatus": STATUS}).items())),
            "parameters": {"timeout": TIMEOUT},
            "responses": {"error": _response("An error.", {"$ref": _ref("ErrorStatus")})},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _operations(
    source: Source, service: str, method: MethodDescriptorProto, comment: str
) -> Iterator[tuple[str, str, Schema]]:
    """Yield path, verb and operation of each URL of a method."""
    rule = method.options.Extensions[annotations_pb2.http]
    for number, binding in enumerate((rule, *rule.additional_bindings)):
        verb = binding.WhichOneof("pattern")
        assert verb in VERBS, f"{method.name} has no URL"
        template = getattr(binding, verb)
        variable = VARIABLE.search(template)
        operation: Schema = {
            "operationId": method.name + (str(number + 1) if number else ""),
            "tags": [service],
            "summary": re.split(r"(?<=[.:]) ", comment)[0],
            "description": comment,
            "parameters": [{"$ref": "#/components/parameters/timeout"}],
        }
        bound = ""
        if variable:
            bound, name = variable[1], variable[2].removesuffix("s")
            template = VARIABLE.sub(f"{variable[2]}/{{{name}}}", template)
            text = f"The id of a {name}."
            operation["parameters"].append(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "description": text,
                    "schema": {"type": "string", "pattern": "^[^/:]+$"},
                }
            )
        _add_inputs(source, operation, method, binding.body, bound)
        kind = "application/jsonl" if method.server_streaming else "application/json"
        answer = _response("The response.", {"$ref": _ref(method.output_type)}, kind)
        operation["responses"] = {
            "200": answer,
            "default": {"$ref": "#/components/responses/error"},
        }
        yield template, verb, operation


def _add_inputs(
    source: Source, operation: Schema, method: MethodDescriptorProto, body: str, bound: str
) -> None:
    message, comments, _text = source.messages[method.input_type]
    if body:
        if body == "*":
            schema = _object(source, message, comments, without=bound)
        else:
            schema = {"$ref": _ref(next(f for f in message.field if f.name == body).type_name)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    if body == "*":
        return
    for place, field in enumerate(message.field):
        if field.name not in (body, bound):
            parameter: Schema = {"name": field.name, "in": "query"}
            if comments[place]:
                parameter["description"] = comments[place]
            parameter["schema"] = _type(source, field)
            if _entry(source, message, field) is not None:
                parameter["style"] = "deepObject"
                parameter["schema"] = _map(source, message, field)
            operation["parameters"].append(parameter)


def _message(source: Source, name: str) -> Schema:
    message, comments, text = source.messages[name]
    return {"description": text} | _object(source, message, comments)


def _object(
    source: Source, message: DescriptorProto, comments: dict[int, str], without: str = ""
) -> Schema:
    properties: dict[str, Schema] = {}
    for place, field in enumerate(message.field):
        if field.name == without:
            continue
        entry = _entry(source, message, field)
        schema = _type(source, field) if entry is None else _map(source, message, field)
        own = {"description": comments[place]} if comments[place] else {}
        properties[field.name] = schema | own
    return {"type": "object", "properties": properties}


def _type(source: Source, field: FieldDescriptorProto) -> Schema:
    if field.type_name in TEXTS:
        schema = dict(TEXTS[field.type_name])
    elif field.type_name:
        schema = {"$ref": _ref(field.type_name)}
    else:
        schema = dict(SCALARS[field.type])
    return {"type": "array", "items": schema} if field.label == F.LABEL_REPEATED else schema


def _map(source: Source, message: DescriptorProto, field: FieldDescriptorProto) -> Schema:
    entry = _entry(source, message, field)
    assert entry is not None
    return {"type": "object", "additionalProperties": _type(source, entry.field[1])}


def _entry(
    source: Source, message: DescriptorProto, field: FieldDescriptorProto
) -> DescriptorProto | None:
    """Return the type of the entries of a map, None for other fields."""
    name = field.type_name.rpartition(".")[2]
    entries = [kind for kind in message.nested_type if kind.options.map_entry]
    return next((kind for kind in entries if kind.name == name), None)


def _enum(enum: EnumDescriptorProto, comments: dict[int, str], text: str) -> Schema:
    lines = [
        f"* {value.name}: {comments[place]}"
        for place, value in enumerate(enum.value)
        if comments[place]
    ]
    description = "\n".join([text, "", *lines]) if lines else text
    names = [value.name for value in enum.value]
    return {"description": description, "type": "string", "enum": names}


def _response(text: str, schema: Schema, kind: str = "application/json") -> Schema:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _ref(name: str) -> str:
    return f"#/components/schemas/{name.removeprefix(PACKAGE)}"


def _comment(text: str) -> str:
    """Return a comment as paragraphs without line breaks in them."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
