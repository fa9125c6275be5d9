"""HTTP/JSON: malformed, oversized, slow and misleading requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.http_client import local, remote
from tests.api.running import create
from tests.api.test_gateway import eventually
from zfsilod.api.http import connection
from zfsilod.api.http.refusals import MAX_BODY_BYTES

if TYPE_CHECKING:
    from tests.api.running import Front

GET = b"GET /v1/volumes HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/volumes?volume_id=a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400),
        (POST + b"content-length: 2, 3\r\n\r\n{}", 400),
        (POST + b"content-length: +2\r\n\r\n{}", 400),
        (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (POST + b"content-length : 2\r\n\r\n{}", 400),
        (GET + b"host: y\r\n\r\n", 400),
        (b"GET /v1/volumes HTTP/1.1\r\n\r\n", 400),
        (b"GET  /v1/volumes HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v1/vol\0umes HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v1/volumes HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + bytes(300), 400),
        (GET + b"x: " + b"y" * 40000 + b"\r\n\r\n", 431),
        (b"GET /" + b"v" * 40000, 431),
        (GET + b"a: b\r\n" * 4000, 431),
    ],
)
async def test_what_is_not_clear_ends_the_connection(front: Front, raw: bytes, status: int) -> None:
    async with local(front.path) as client:
        response = await client.send(raw + GET + b"\r\n")
        assert (response.status, response.reason) == (status, "BAD_HTTP")
        assert response.headers["connection"] == "close"
        assert await client.reader.read() == b""  # what follows is not read as a request
    await eventually(lambda: front.gateway.connections == 0)


@pytest.mark.parametrize(
    ("verb", "target", "status", "reason"),
    [
        ("GET", "/", 404, "NO_URL"),
        ("GET", "/v1/volumes/", 404, "NO_URL"),
        ("GET", "//v1/volumes", 404, "NO_URL"),
        ("GET", "/v1/volumes/../hosts", 404, "NO_URL"),
        ("GET", "/v1/volumes/data:nothing", 404, "NO_URL"),
        ("GET", "/v1/volumes/..", 400, "BAD_ID"),
        ("GET", "/v1/volumes/a%2Fb", 400, "BAD_ID"),
        ("GET", "/v1/volumes/%2e%2e%2Fetc", 400, "BAD_ID"),
        ("GET", "/v1/volumes/%00", 400, "BAD_ID"),
        ("GET", "/v1/volumes/a%0d%0aset-cookie:b", 404, "NO_URL"),
        ("GET", "/v1/volumes/%ff", 400, "BAD_NAME"),
        ("GET", "/v1/volumes/%zz", 400, "BAD_ID"),
        ("GET", "/v1/volumes?nothing=1", 400, "MALFORMED"),
        ("GET", "/v1/volumes?page_size=x", 400, "MALFORMED"),
        ("GET", "/v1/volumes?page_size=1&page_size=2", 400, "MALFORMED"),
        ("GET", "/v1/volumes?page_size=1&pageSize=2", 400, "MALFORMED"),
        ("GET", "/v1/volumes?show_deleted=1", 400, "MALFORMED"),
        ("GET", "/v1/volumes?filter=%ff", 400, "MALFORMED"),
        ("GET", "/v1/volumes?&&", 400, "MALFORMED"),
        ("GET", "/v1/volumes?filter=x&" + "a=b&" * 3000, 400, "MALFORMED"),
        ("GET", "/v1/volumes/data?name=volumes/other", 400, "MALFORMED"),
        ("GET", "/v1/capacity?properties=1", 400, "MALFORMED"),
        ("GET", "/v1/operations/01arz3ndektsv4rrffq69g5fav:wait?timeout=1", 400, "MALFORMED"),
        ("PUT", "/v1/volumes", 405, "BAD_METHOD"),
        ("PATCH", "/v1/volumes/data:publish", 405, "BAD_METHOD"),
        ("HEAD", "/v1/volumes/data:publish", 405, ""),
        ("HEAD", "/v1/operations:watch", 405, ""),
        ("TRACE", "/v1/volumes", 405, "BAD_METHOD"),
    ],
)
async def test_refusals_are_json(
    front: Front, verb: str, target: str, status: int, reason: str
) -> None:
    async with local(front.path) as client:
        response = await client.ask(verb, target)
        assert response.status == status, response.body
        if verb != "HEAD":
            assert response.reason == reason, response.body
        assert response.headers["content-type"] == "application/json"
        assert (status == 405) == ("allow" in response.headers)
        assert (await client.ask("GET", "/v1/volumes")).status == 200  # the connection continues


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"capacity_bytes": NaN}',
        b'{"capacity_bytes": 1e400}',
        b'{"capacity_bytes": 1.5}',
        b'{"capacity_bytes": "99999999999999999999"}',
        b'{"capacity_bytes": ' + b"9" * 6000 + b"}",
        b'{"capacity_bytes": 1, "capacity_bytes": 2}',
        b'{"capacity_bytes": 1, "capacityBytes": 2}',
        b'{"labels": {"a": "1", "a": "2"}}',
        b'{"nothing": 1}',
        b'{"labels": {"a": "\\ud800"}}',
        b'{"labels": {"a": 5}}',
        b'{"labels": {"a": null}}',
        b'{"labels": 5}',
        b'{"hosts": "take"}',
        b'{"hosts": [null]}',
        b'{"mode": "MODE_OTHER"}',
        b'{"source": []}',
        b'{"create_time": "yesterday"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
async def test_a_malformed_body(front: Front, body: bytes) -> None:
    async with local(front.path) as client:
        response = await client.ask("POST", "/v1/volumes?volume_id=x", body)
        assert response.status == 400, response.body
        assert "Traceback" not in response.body.decode()
        assert len(response.body) < 1500
        assert (await client.ask("GET", "/v1/volumes/x")).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "cross-site"},
    ],
)
async def test_a_page_in_a_browser_is_refused(front: Front, headers: dict[str, str]) -> None:
    async with local(front.path) as client:
        for verb in ("GET", "POST", "OPTIONS"):
            response = await client.ask(verb, "/v1/volumes", **headers)
            assert (response.status, response.reason) == (403, "BROWSER")
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_is_said_to_be_json(front: Front, kind: str) -> None:
    async with local(front.path) as client:
        response = await client.ask("POST", "/v1/volumes?volume_id=a", {}, content_type=kind)
        assert (response.status, response.reason) == (415, "BAD_CONTENT_TYPE")


async def test_head_and_options(front: Front) -> None:
    async with local(front.path) as client:
        whole = await client.ask("GET", "/v1/volumes")
        head = await client.ask("HEAD", "/v1/volumes")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.body))
        allowed = await client.ask("OPTIONS", "/v1/volumes")
        assert (allowed.status, allowed.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


@pytest.mark.parametrize("how", ["sized", "chunked"])
async def test_a_large_body_is_refused(front: Front, how: str) -> None:
    async with local(front.path) as client:
        size = 2 * MAX_BODY_BYTES
        if how == "sized":
            client.writer.write(POST + b"content-length: %d\r\n\r\n" % size + b" " * size)
        else:
            chunk = b"%x\r\n" % size + b" " * size
            client.writer.write(POST + b"transfer-encoding: chunked\r\n\r\n" + chunk)
        response = await client.response()
        assert (response.status, response.reason) == (413, "BODY_TOO_LARGE")
        assert response.headers["connection"] == "close"


async def test_chunks_and_100_continue(front: Front) -> None:
    async with local(front.path) as client:
        client.writer.write(POST + b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
        assert b"100" in await client.reader.readuntil(b"\r\n\r\n")
        body = b'{"capacity_bytes": "1073741824"}'
        response = await client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert response.status == 200


async def test_requests_in_one_segment_are_answered_in_turn(front: Front) -> None:
    async with local(front.path) as client:
        client.writer.write((GET + b"\r\n") * 50)
        for _request in range(50):
            assert b"200" in await client.reader.readline()
            head = await client.reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await client.reader.readexactly(size)


async def test_slow_clients_are_closed_and_hold_nobody_up(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_S", "IDLE_S"):
        monkeypatch.setattr(connection, name, 0.5)
    monkeypatch.setattr("zfsilod.gateway.local.GREETING_S", 0.5)
    monkeypatch.setattr("zfsilod.api.rpc.messages.FIRST_MESSAGE_S", 0.5)
    starts = [b"", b"P", b"GET /v1", GET, POST + b"content-length: 5\r\n\r\n{", GET + b"\r\n"]
    clients: list[Any] = []
    for start in starts * 8:
        reader, writer = await asyncio.open_unix_connection(str(front.path))
        writer.write(start)
        clients.append((reader, writer))
    async with local(front.path) as client:
        for _request in range(5):
            assert (await client.ask("GET", "/v1/volumes")).status == 200
    async with asyncio.timeout(20):
        await asyncio.gather(*(reader.read() for reader, _writer in clients))
    for _reader, writer in clients:
        writer.close()
    await eventually(lambda: front.gateway.connections == 0)


async def test_a_client_that_sends_nothing_more_gets_its_response(front: Front) -> None:
    async with local(front.path) as client:
        body = b'{"capacity_bytes": "1073741824"}'
        client.writer.write(POST + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        client.writer.write_eof()
        response = await client.response()
        assert (response.status, response.json["volume"]["name"]) == (200, "volumes/a")
        assert await client.reader.read() == b""
    await eventually(lambda: not front.server.connections)


async def test_the_end_of_a_client_ends_its_request(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch has nothing to send, so that no write tells that its client is gone."""
    monkeypatch.setattr("zfsilod.gateway.relay.LINGER_S", 0.2)
    async with local(front.path) as client:
        client.writer.write(b"GET /v1/operations:watch HTTP/1.1\r\nhost: x\r\n\r\n")
        await eventually(lambda: front.server.connections)
        client.writer.close()
    await eventually(lambda: not front.server.connections)


async def test_a_value_of_another_type_is_said_to_be_one(front: Front) -> None:
    async with local(front.path) as client:
        body = {"labels": {"a": None}}
        response = await client.ask("POST", "/v1/volumes?volume_id=x", body)
        assert response.json["message"] == (
            "malformed request: a value has another type than its field"
        )


async def test_a_slow_drip_does_not_renew_the_time(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)
    started = asyncio.get_running_loop().time()
    async with local(front.path) as client:
        client.writer.write(GET)
        while not client.reader.at_eof():
            client.writer.write(b"x: y\r\n")
            await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() - started < 10


async def test_a_client_that_does_not_read_is_closed(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WRITE_S", 0.3)
    for number in range(30):
        await front.root().volumes.CreateVolume(
            create(f"v{number}", labels={f"l{n}": "x" * 200 for n in range(35)})
        )
    async with local(front.path) as client:
        transport: Any = client.writer.transport
        transport.pause_reading()
        client.writer.write((GET + b"\r\n") * 40)
        await eventually(lambda: front.server.connections)
        await eventually(lambda: not front.server.connections)


async def test_too_much_before_a_token(front: Front) -> None:
    """The gateway reads a head of a stranger, and no more of it than the daemon would."""
    for raw in (GET + b"x: " + b"y" * 9000, b"\0\0", b"GET / HTTP/1.1\r\n bad\r\n\r\n"):
        async with remote(front) as client:
            client.writer.write(raw)
            async with asyncio.timeout(10):
                assert await client.reader.read() == b""
    await eventually(lambda: front.gateway.connections == 0)


async def test_errors_tell_no_secret(front: Front) -> None:
    token = front.token("reader", "mon")
    async with remote(front, token=token) as client:
        for target in ("/v1/nothing", "/v1/volumes?x=1", "/v1/hosts:register"):
            response = await client.ask("POST", target, b"{")
            assert token not in response.body.decode() + str(response.headers)
