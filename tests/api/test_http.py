"""HTTP/JSON: the methods of gRPC under /v1, locally and over TLS."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import MessageToDict
from zfsilo.v1 import operation_pb2, volume_pb2

from tests.api.http_client import local, remote
from tests.api.running import GIB, create, operations
from tests.api.test_gateway import eventually
from zfsilod.api.http.routes import VARIABLE
from zfsilod.api.rpc import guard
from zfsilod.security import credentials
from zfsilod.wire.stub import SERVICES

if TYPE_CHECKING:
    from tests.api.http_client import HttpClient, Response
    from tests.api.running import Front

SIZE = str(GIB)
LINES = "application/jsonl"


async def made(client: HttpClient, volume_id: str = "data", **fields: Any) -> Response:
    content = {"capacity_bytes": SIZE, "hosts": ["take"]} | fields
    return await client.ask("POST", f"/v1/volumes?volume_id={volume_id}", content)


async def test_the_life_of_a_volume(front: Front) -> None:
    async with local(front.path) as client:
        response = await made(client)
        assert response.status == 200
        assert response.json["volume"]["capacity_bytes"] == SIZE
        assert response.headers["zfsilo-operation"] == response.json["operation"]["name"]
        assert (await client.ask("GET", "/v1/volumes")).json["volumes"][0]["id"] == "data"
        etag = (await client.ask("GET", "/v1/volumes/data")).json["etag"]
        stale = f"/v1/volumes/data?update_mask=labels&etag={etag}9"
        refused = await client.ask("PATCH", stale, {"labels": {"app": "db"}})
        assert (refused.status, refused.reason) == (409, "ETAG")
        grown = await client.ask(
            "PATCH", f"/v1/volumes/data?updateMask=labels&etag={etag}", {"labels": {"app": "db"}}
        )
        assert grown.json["volume"]["labels"] == {"app": "db"}
        listed = await client.ask("GET", "/v1/volumes?filter=labels.app+%3D+db&page_size=5")
        assert len(listed.json["volumes"]) == 1
        resized = await client.ask(
            "PATCH", "/v1/volumes/data?update_mask=capacity_bytes", {"capacity_bytes": 2 * GIB}
        )
        assert resized.json["volume"]["capacity_bytes"] == str(2 * GIB)
        published = await client.ask("POST", "/v1/volumes/data:publish", {"host": "hosts/take"})
        assert published.json["volume"]["publications"][0]["host"] == "hosts/take"
        of_volume = await client.ask("GET", "/v1/volumes/data/publications")
        assert of_volume.json["publications"][0]["volume"] == "volumes/data"
        refused = await client.ask("DELETE", "/v1/volumes/data")
        assert (refused.status, refused.json["code"], refused.reason) == (400, 9, "PUBLISHED")
        assert refused.json["details"][0]["@type"].endswith("google.rpc.ErrorInfo")
        await client.ask("POST", "/v1/volumes/data:unpublish", {"host": "hosts/take"})
        assert (await client.ask("DELETE", "/v1/volumes/data")).status == 200
        assert (await client.ask("GET", "/v1/volumes/data")).status == 404


async def test_a_response_is_that_of_grpc(front: Front) -> None:
    await front.root().volumes.CreateVolume(create())
    expected = await front.root().volumes.GetVolume(
        volume_pb2.GetVolumeRequest(name="volumes/data")
    )
    async with local(front.path) as client:
        response = await client.ask("GET", "/v1/volumes/data")
    assert response.json == MessageToDict(
        expected, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def test_every_method_has_a_url_and_every_variable_a_field() -> None:
    from google.api import annotations_pb2

    urls = set()
    for service in SERVICES:
        for method in service.methods:
            rule: Any = method.GetOptions().Extensions[annotations_pb2.http]
            for binding in (rule, *rule.additional_bindings):
                verb = binding.WhichOneof("pattern")
                template = getattr(binding, verb)
                assert template.startswith("/v1/"), method.full_name
                assert (verb, template) not in urls
                urls.add((verb, template))
                kind: Any = method.input_type
                for name in (VARIABLE.search(template) or [".", "name"])[1].split("."):
                    if "{" in template:
                        field = kind.fields_by_name[name]
                        kind = field.message_type
                if binding.body not in ("", "*"):
                    assert binding.body in method.input_type.fields_by_name
                assert bool(binding.body) == (verb in ("post", "patch")), method.full_name
    assert len(urls) > 50


async def test_a_watch_sends_lines(front: Front) -> None:
    async with local(front.path) as watching, local(front.path) as client:
        watching.writer.write(watching.request("GET", "/v1/operations:watch"))
        await eventually(lambda: front.server.connections == 1)
        await made(client)
        head = await watching.reader.readuntil(b"\r\n\r\n")
        assert f"content-type: {LINES}".encode() in head.lower()
        states: list[str] = []
        async with asyncio.timeout(20):
            while not states or states[-1] != "OPERATION_STATE_DONE":
                line = await watching.reader.readline()
                if line.startswith(b"{"):
                    states.append(json.loads(line)["operation"]["state"])
    await eventually(lambda: not front.server.connections)


async def test_a_watch_ends_with_its_deadline(front: Front) -> None:
    async with local(front.path) as client:
        watched = await client.ask("GET", "/v1/operations:watch", zfsilo_timeout="0.3")
    last = json.loads(watched.body.splitlines()[-1])
    assert last.get("error", last)["code"] == 4


async def test_a_change_names_its_operation_before_it_ends(front: Front) -> None:
    front.fixture.launcher.gate.clear()
    async with local(front.path) as client:
        client.writer.write(
            client.request(
                "POST", "/v1/volumes?volume_id=data", {"capacity_bytes": SIZE}, accept=LINES
            )
        )
        async with asyncio.timeout(20):
            line = b""
            while not line.startswith(b'{"started"'):
                line = await client.reader.readline()
        assert json.loads(line)["started"] == f"operations/{operations(front)[-1].id}"
        front.fixture.launcher.gate.set()
        while b'"volume"' not in line:
            line = await client.reader.readline()
        assert json.loads(line)["volume"]["state"] == "STATE_CREATED"


async def test_after_the_deadline_the_operation_continues(front: Front) -> None:
    front.fixture.launcher.gate.clear()
    async with local(front.path) as client:
        response = await client.ask(
            "POST", "/v1/volumes?volume_id=data", {"capacity_bytes": SIZE}, zfsilo_timeout="0.6"
        )
        assert (response.status, response.json["code"]) == (504, 4)
        name = response.headers["zfsilo-operation"]
        front.fixture.launcher.gate.set()
        waited = await client.ask("GET", f"/v1/{name}:wait?timeout=20s")
    assert waited.json["state"] == "OPERATION_STATE_DONE"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "x", ""])
async def test_an_invalid_deadline(front: Front, text: str) -> None:
    async with local(front.path) as client:
        response = await client.ask("GET", "/v1/volumes", zfsilo_timeout=text)
    assert (response.status, response.reason) == (400, "BAD_TIMEOUT")


async def test_a_client_that_leaves_cancels_nothing(front: Front) -> None:
    front.fixture.launcher.gate.clear()
    async with local(front.path) as client:
        request = client.request("POST", "/v1/volumes?volume_id=data", {"capacity_bytes": SIZE})
        client.writer.write(request)
        await eventually(lambda: [o for o in operations(front) if o.kind == "create"])
    await eventually(lambda: not front.server.connections)
    front.fixture.launcher.gate.set()
    await eventually(lambda: operations(front)[-1].state == "DONE")


@pytest.mark.parametrize("alpn", [("http/1.1",), ("h2", "http/1.1"), ()])
@pytest.mark.parametrize("how", ["certificate", "token"])
async def test_the_tcp_port_serves_both(front: Front, alpn: tuple[str, ...], how: str) -> None:
    """As curl does (both protocols), as Python does (none), and gRPC beside them."""
    access = front.certified("reader", "mon") if how == "certificate" else None
    token = front.token("reader", "mon") if how == "token" else ""
    async with remote(front, access, token, alpn) as client:
        for _request in range(2):
            response = await client.ask("GET", "/v1/serverInfo")
            assert response.json["caller"].startswith("reader mon")
        refused = await made(client)
        assert (refused.status, refused.reason) == (403, "ROLE")
        assert refused.json["details"][0]["metadata"]["needs"] == "controller"
    await front.role("reader", "mon").volumes.ListVolumes(volume_pb2.ListVolumesRequest())


@pytest.mark.parametrize("token", ["", "zfsilo-nothing"])
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_stranger_is_answered_by_the_gateway(
    front: Front, monkeypatch: pytest.MonkeyPatch, token: str, verb: str
) -> None:
    reached: list[Any] = []
    monkeypatch.setattr(front.gateway.backend, "connect", reached.append)
    async with remote(front, token=token) as client:
        content = {"capacity_bytes": SIZE} if verb == "POST" else None
        response = await client.ask(verb, "/v1/volumes", content)
        assert await client.reader.read() == b""
    assert (response.status, response.json["code"]) == (401, 16)
    assert response.reason == ("BAD_TOKEN" if token else "NO_IDENTITY")
    assert response.headers["www-authenticate"] == "Bearer"
    assert reached == []


async def test_a_refused_stranger_is_in_the_audit(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(front.service.audit, "write", lambda *record: records.append(record))
    async with remote(front) as client:
        await client.ask("POST", "/v1/volumes/data:publish", {})
    await eventually(lambda: records)
    assert records[0][1]["ZFSILO_ACTION"] == "PublishVolume"


async def test_a_revoked_identity_is_disconnected(front: Front) -> None:
    async with remote(front, front.certified("reader", "mon")) as client:
        assert (await client.ask("GET", "/v1/volumes")).status == 200
        front.write(lambda txn: credentials.revoke(txn, "user/mon", 1, unknown=True))
        response = await client.ask("GET", "/v1/volumes")
        assert (response.status, response.json["code"]) == (401, 16)
        async with asyncio.timeout(10):
            assert await client.reader.read() == b""


async def test_limits_of_calls_count_both_protocols(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "REFUSAL_S", 0.01)
    token = front.token("reader", "mon")
    watches = [
        front.bearer(token).operations.WatchOperations(operation_pb2.WatchOperationsRequest())
        for _number in range(32)
    ]
    for watch in watches:
        await watch.read()
    async with remote(front, token=token) as client:
        refused = await client.ask("GET", "/v1/operations:watch")
        assert (refused.status, refused.reason) == (429, "TOO_MANY_CALLS")
        assert (await client.ask("GET", "/v1/operations")).status == 200
    for watch in watches:
        watch.cancel()


async def test_a_server_that_stops_ends_requests(front: Front) -> None:
    async with local(front.path) as watching, local(front.path) as idle:
        assert (await idle.ask("GET", "/v1/volumes")).status == 200
        asked = asyncio.create_task(watching.ask("GET", "/v1/operations:watch"))
        await asyncio.sleep(0.1)
        await front.server.stop(5)
        last = json.loads((await asked).body.splitlines()[-1])
        assert last.get("error", last)["code"] == 14
        assert await idle.reader.read() == b""
