"""The client of zfsiloctl: its messages, its imports, and servers that answer nonsense."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import ParseDict
from zfsilo.v1 import volume_pb2

from tests.ctl.shell import PROJECT
from zfsilod.ctl import messages as pb
from zfsilod.ctl.client import Server
from zfsilod.ctl.http import MAX_LINE, UnixChannel
from zfsilod.model.errors import DeadlineExceeded, Unavailable, ZfsiloError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.ctl.shell import Shell

LIBRARIES = ("grpc", "google.protobuf", "h11", "ssl", "http.client", "asyncio", "cryptography")
SLOW = ("typing", "contextlib", "pathlib", "socket", "shutil", "textwrap", "threading", "lmdb")
HEAD = b"HTTP/1.1 200 \r\ncontent-type: application/json\r\n"
LINES = b"HTTP/1.1 200 \r\ncontent-type: application/jsonl\r\n"
CHUNKS = LINES + b"transfer-encoding: chunked\r\n\r\n"
CHANGE = b'{"operation":{"name":"operations/a"}}\n'


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Any]:
    """A function that makes a server which sends bytes to its one client."""
    threads: list[threading.Thread] = []

    def answering(data: bytes, *, keep_s: float = 0.0) -> Server:
        listener = socket.socket(socket.AF_UNIX)
        path = tmp_path / f"{len(threads)}.sock"
        listener.bind(str(path))
        listener.listen(1)

        def answer() -> None:
            client, _address = listener.accept()
            with client, listener:
                client.recv(65536)
                client.sendall(data)
                if keep_s:
                    client.settimeout(keep_s)
                    client.recv(1)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return Server(UnixChannel(str(path)), "give", 0.5, local=True)

    yield answering
    for thread in threads:
        thread.join()


def ask(server: Server) -> Any:
    return server.ask("GetVolume", pb.GetVolumeRequest(name="volumes/data"))


def test_a_local_command_imports_no_library(ctl: Shell) -> None:
    ctl.ok("volume create data 1G")
    code = (
        "import sys; before = set(sys.modules); from zfsilod.ctl import main; "
        "main(['--socket', sys.argv[1], 'volume', 'list']); "
        f"print([name for name in {(*LIBRARIES, *SLOW)} if name in set(sys.modules) - before])"
    )
    path = str(ctl.daemon.front.path)
    done = subprocess.run(
        [sys.executable, "-Is", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}", path],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "data" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nshort",
        HEAD + b"content-length: 9\r\n\r\n{}",
        HEAD + b"\r\n",
        HEAD + b"\r\n[]",
        HEAD + b"\r\n{",
        HEAD + b"x: y\r\n" * 200 + b"\r\n{}",
        b"x" * MAX_LINE * 5,
    ],
)
def test_an_answer_that_is_none(peer: Any, answer: bytes) -> None:
    with pytest.raises(Unavailable):
        ask(peer(answer))


def watched(server: Server, names: list[str]) -> None:
    """Watch, and add the names of the operations to a list."""
    call = server.watch("WatchOperations", pb.WatchOperationsRequest(), 5)
    for change in call.responses():
        names.append(change.operation.name)


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKS + chunks(CHANGE, CHANGE) + b"0\r\n\r\n",
        CHUNKS + chunks(CHANGE + CHANGE[:5], CHANGE[5:]) + b"000;x=y\r\nlate: field\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"0\r\n\r\nmore",
        LINES + b"content-length: %d\r\n\r\n" % (2 * len(CHANGE)) + 2 * CHANGE,
    ],
)
def test_a_list_is_complete(peer: Any, answer: bytes) -> None:
    names: list[str] = []
    watched(peer(answer), names)
    assert names == ["operations/a"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        LINES + b"\r\n" + 2 * CHANGE,  # nothing says where it ends
        LINES + b"content-length: 999\r\n\r\n" + 2 * CHANGE,
        CHUNKS + chunks(CHANGE, CHANGE),
        CHUNKS + chunks(CHANGE, CHANGE) + b"0",
        CHUNKS + chunks(CHANGE, CHANGE) + b"0\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"0\r\nlate: field\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"\r\n0\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"-1\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"x\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE) + b"f" * 99 + b"\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE)[:-2] + b"xx0\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE, CHANGE[:9]),
        CHUNKS + chunks(CHANGE, CHANGE, CHANGE[:9]) + b"0\r\n\r\n",
        CHUNKS + chunks(CHANGE, CHANGE, CHANGE)[:-20],
    ],
)
def test_a_list_that_is_cut_off(peer: Any, answer: bytes) -> None:
    names: list[str] = []
    with pytest.raises(Unavailable, match="give closed the connection before the end of its"):
        watched(peer(answer), names)
    assert names[:1] == ["operations/a"]


def test_an_answer_that_does_not_come(peer: Any) -> None:
    with pytest.raises(DeadlineExceeded, match="give did not answer in time"):
        ask(peer(b"HTTP/1.1 ", keep_s=20))


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        ({"code": 5, "message": "no"}, "NOT_FOUND", "NOT_FOUND"),
        ({"code": 99, "details": []}, "INTERNAL", "UNKNOWN"),
        ({}, "INTERNAL", "UNKNOWN"),
        (
            {
                "code": 5,
                "message": "no",
                "details": [{"domain": "zfsilo.org", "reason": "NO_URL"}],
            },
            "INTERNAL",
            "INTERNAL",
        ),
        (
            {
                "code": 10,
                "message": "busy",
                "details": [
                    {
                        "domain": "zfsilo.org",
                        "reason": "CLAIMED",
                        "metadata": {"self": "x", "operation": "o"},
                    }
                ],
            },
            "ABORTED",
            "CLAIMED",
        ),
    ],
)
def test_errors_of_a_server(peer: Any, status: Any, code: str, reason: str) -> None:
    with pytest.raises(ZfsiloError) as refused:
        ask(peer(b"HTTP/1.1 404 \r\n\r\n" + json.dumps(status).encode()))
    assert (refused.value.code, refused.value.reason) == (code, reason)
    assert "self" not in refused.value.facts


def test_a_request_is_the_one_of_protobuf() -> None:
    request = pb.CreateVolumeRequest(
        volume_id="data",
        volume=pb.Volume(thin=False, capacity_bytes=1 << 40, labels={"a": "ä"}, hosts=[]),
        limit_bytes=0,
    )
    request.volume.source.snapshot = "snapshots/s"
    parsed = ParseDict(request.encoded(), volume_pb2.CreateVolumeRequest())
    expected = volume_pb2.CreateVolumeRequest(
        volume_id="data",
        volume=volume_pb2.Volume(
            thin=False,
            capacity_bytes=1 << 40,
            labels={"a": "ä"},
            source=volume_pb2.VolumeSource(snapshot="snapshots/s"),
        ),
    )
    assert parsed == expected
    copy = pb.CreateVolumeRequest()
    copy.CopyFrom(request)
    copy.validate_only = True
    assert copy.encoded() == request.encoded() | {"validate_only": True}
    with pytest.raises(AttributeError):
        request.other = 1
    with pytest.raises(AttributeError):
        assert pb.Nothing


@pytest.mark.parametrize(
    "text",
    [
        "1970-01-01T00:00:00Z",
        "1999-12-31T23:59:59Z",
        "2000-02-29T12:00:00Z",
        "2026-03-01T00:00:00.123456Z",
        "2100-02-28T23:59:59Z",
        "2100-03-01T00:00:00Z",
    ],
)
def test_times(text: str) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    stamp = Timestamp()
    stamp.FromJsonString(text)
    assert pb.seconds_of(text) == stamp.seconds
