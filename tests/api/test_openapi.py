"""The OpenAPI document: valid, complete, served, and true of real responses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.api.http_client import local, remote
from tests.api.running import GIB
from zfsilod.wire.stub import SERVICES

if TYPE_CHECKING:
    from tests.api.http_client import HttpClient, Response
    from tests.api.running import Front

DOCUMENT: Any = json.loads((Path(__file__).parents[2] / "proto/zfsilo/v1/openapi.json").read_text())
OPERATIONS = {
    operation["operationId"]: (verb.upper(), path, operation)
    for path, verbs in DOCUMENT["paths"].items()
    for verb, operation in verbs.items()
}


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_method_is_in_it() -> None:
    methods = {method.name for service in SERVICES for method in service.methods}
    assert {re.sub(r"[0-9]+$", "", name) for name in OPERATIONS} == methods


def test_every_operation_field_and_value_is_described() -> None:
    for name, (_verb, _path, operation) in OPERATIONS.items():
        assert operation["description"].startswith(operation["summary"]), name
        for parameter in operation["parameters"]:
            assert "$ref" in parameter or parameter["description"], (name, parameter)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        for field, about in schema.get("properties", {}).items():
            assert about.get("description") or about.get("items"), f"{name}.{field}"


def test_path_and_parameters_are_the_fields_of_the_request() -> None:
    for service in SERVICES:
        for method in service.methods:
            verb, path, operation = OPERATIONS[method.name]
            fields = {field.name for field in method.input_type.fields}
            named = {p["name"] for p in operation["parameters"] if p.get("in") == "query"}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = body.get("schema", {})
            named |= set(schema.get("properties", {}))
            in_path = "{" in path
            whole = 1 if "$ref" in schema else 0
            updates = verb == "PATCH"  # the path is a field of the body
            assert named <= fields
            assert len(named) + whole + int(in_path and not updates) == len(fields), method.name


async def test_it_is_served_to_those_who_may_use_reflection(front: Front) -> None:
    async with local(front.path) as client:
        assert (await client.ask("GET", "/v1/openapi.json")).json == DOCUMENT
        assert (await client.ask("HEAD", "/v1/openapi.json")).status == 200
        assert (await client.ask("POST", "/v1/openapi.json", {})).status == 405
    async with remote(front, front.certified("reader", "mon")) as client:
        assert (await client.ask("GET", "/v1/openapi.json")).status == 200
    async with remote(front, front.certified("host", "take")) as client:
        refused = await client.ask("GET", "/v1/openapi.json")
        assert (refused.status, refused.reason) == (403, "ROLE")
        assert_matches(refused, DOCUMENT["components"]["responses"]["error"])
    async with remote(front) as client:
        assert (await client.ask("GET", "/v1/openapi.json")).status == 401


def assert_matches(response: Response, described: Any) -> None:
    """Check a response against its schema; what the schema does not name is an error."""
    (content,) = described["content"].values()
    schemas = {
        name: schema | ({"additionalProperties": False} if "properties" in schema else {})
        for name, schema in DOCUMENT["components"]["schemas"].items()
    }
    schema = content["schema"] | {"components": {"schemas": schemas}}
    for line in response.body.splitlines():
        Draft202012Validator(schema).validate(json.loads(line))


async def call(client: HttpClient, name: str, **fields: Any) -> Response:
    """Make a call as the document describes it: path, parameters and body from fields."""
    verb, path, operation = OPERATIONS[name]
    body = None
    parameters = []
    for parameter in operation["parameters"]:
        field = parameter.get("name", "")
        if parameter.get("in") == "path":
            path = path.replace(f"{{{field}}}", fields.pop(field))
        elif field in fields:
            parameters.append(f"{field}={fields.pop(field)}")
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(fields)
        body = fields
    query = f"?{'&'.join(parameters)}" if parameters else ""
    response = await client.ask(verb, path + query, body)
    described = operation["responses"].get(str(response.status))
    if described is None:
        assert response.status >= 400
        described = DOCUMENT["components"]["responses"]["error"]
    assert_matches(response, described)
    return response


async def test_a_client_of_the_document_drives_a_volume_through_its_life(front: Front) -> None:
    """Every response matches its schema; the tests of the whole interface are gRPC's."""
    async with local(front.path) as client:
        made = await call(client, "CreateVolume", volume_id="data", capacity_bytes=str(GIB))
        assert made.status == 200, made.body
        calls: dict[str, dict[str, Any]] = {
            "GetVolume": {"volume": "data"},
            "StatsVolume": {"volume": "data"},
            "PublishVolume": {"volume": "data", "host": "hosts/take"},
            "ListPublications2": {"volume": "data"},
            "ConnectVolume": {"server": "give", "volume": "data"},
            "StageVolume": {"volume": "data"},
            "ProbeVolume": {"volume": "data"},
            "MountVolume": {"volume": "data", "path": "/srv/data"},
            "ListVolumes": {"filter": "id%3Ddata"},
            "UnmountVolume": {"volume": "data", "path": "/srv/data"},
            "UnstageVolume": {"volume": "data"},
            "DisconnectVolume": {"volume": "data"},
            "UnpublishVolume": {"volume": "data", "host": "hosts/take"},
            "CreateSnapshot": {"snapshot_id": "s", "volume": "volumes/data"},
            "ListSnapshots": {},
            "DeleteSnapshot": {"snapshot": "s"},
            "UpdateVolume": {"volume": "data", "update_mask": "labels", "labels": {"a": "b"}},
            "ListOperations": {"page_size": "2"},
            "GetStatus": {},
            "GetCapacity": {},
            "GetServerInfo": {},
            "ListHosts": {},
            "ListOrphans": {},
            "SyncVolumes": {},
            "DeleteVolume": {"volume": "data"},
        }
        for name, fields in calls.items():
            response = await call(client, name, **fields)
            assert response.status == 200, f"{name}: {response.body!r}"
        assert (await call(client, "GetVolume", volume="data")).status == 404


@pytest.mark.parametrize("name", ["OperationState", "State", "Dependents"])
def test_enumerations_are_names(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["type"] == "string"
    assert schema["enum"][0].endswith("UNSPECIFIED")
