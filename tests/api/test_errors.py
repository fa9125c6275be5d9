"""Errors over gRPC: every class with its reason and facts, and unexpected exceptions."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from zfsilo.v1 import volume_pb2 as pb

from tests.api.running import DATA, create, refused
from zfsilod.model import errors
from zfsilod.wire import status

if TYPE_CHECKING:
    from tests.api.running import Front

CLASSES = sorted(set(errors.BY_NAME.values()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", CLASSES)
async def test_every_error_reaches_the_client(
    front: Front, monkeypatch: pytest.MonkeyPatch, kind: type[errors.ZfsiloError]
) -> None:
    def fail(*_arguments: object) -> None:
        raise kind('ein Fehler: "data"\n100 %', reason="SOME_REASON", volume="data", hosts="a,b")

    monkeypatch.setattr("zfsilod.api.rpc.guard.authorize", fail)
    with refused(kind.code, "SOME_REASON") as refusal:
        await front.role("admin", "x").volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
    assert refusal.error.message == 'ein Fehler: "data"\n100 %'
    assert refusal.error.facts == {"volume": "data", "hosts": "a,b"}
    raw = dict(refusal.raw.trailing_metadata())["grpc-status-details-bin"]
    packed = Status.FromString(raw)
    info = ErrorInfo()
    assert packed.code == grpc.StatusCode[kind.code].value[0]
    assert packed.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("zfsilo.org", "SOME_REASON")


def test_every_code_is_one_of_grpc() -> None:
    for kind in CLASSES:
        assert grpc.StatusCode[kind.code] is not grpc.StatusCode.UNKNOWN


async def test_an_unexpected_exception_is_logged_and_not_sent(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_root: str) -> Any:
        raise ZeroDivisionError("the password is 1234")

    front.service.capacity = fail  # type: ignore[assignment,method-assign]
    from zfsilo.v1 import service_pb2

    with caplog.at_level(logging.ERROR), refused("INTERNAL", "INTERNAL") as refusal:
        await front.root().service.GetCapacity(service_pb2.GetCapacityRequest())
    assert "1234" not in str(refusal.raw)
    assert "ZeroDivisionError" not in str(refusal.raw)
    assert "GetCapacity failed" in caplog.text
    assert "ZeroDivisionError: the password is 1234" in caplog.text


async def test_many_long_facts_still_reach_the_client(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {f"fact{number}": "x" * 3000 for number in range(50)}

    def fail(*_arguments: object) -> None:
        raise errors.Busy("long " * 1000, **facts)

    monkeypatch.setattr("zfsilod.api.rpc.guard.authorize", fail)
    with refused("ABORTED", "BUSY") as refusal:
        await front.role("admin", "x").volumes.GetVolume(pb.GetVolumeRequest(name=DATA))
    assert refusal.error.facts["fact0"] == "x" * status.MAX_FACT_CHARACTERS


async def test_a_malformed_message_is_refused(front: Front) -> None:
    front.root()
    call = front.channels[-1].unary_unary("/zfsilo.v1.VolumeService/GetVolume")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"\xff\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method(front: Front) -> None:
    front.root()
    with refused("UNIMPLEMENTED"):
        await front.channels[-1].unary_unary("/zfsilo.v1.VolumeService/Undelete")(b"")


async def test_a_huge_request_is_refused(front: Front) -> None:
    with refused("RESOURCE_EXHAUSTED"):
        await front.root().volumes.CreateVolume(create(labels={"a": "x" * (1 << 20)}))


async def test_unusual_strings_are_preserved(front: Front) -> None:
    odd = {"a": "\u20ac \U0001f600 \"'\\\n\t\x00", "b": json.dumps({"is": "Volume"})}
    made = await front.root().volumes.CreateVolume(create(labels=odd))
    assert dict(made.volume.labels) == odd


def test_facts_named_like_parameters_are_dropped() -> None:
    info = ErrorInfo(reason="R", domain=status.DOMAIN, metadata={"message": "x", "self": "y"})
    packed = Status(code=10, message="m")
    packed.details.add().Pack(info)

    class ServerError(grpc.RpcError):  # type: ignore[misc]
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.ABORTED

        def details(self) -> str:
            return "m"

        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return ((status.DETAILS, packed.SerializeToString()),)

    error = status.from_status(ServerError())
    assert isinstance(error, errors.Busy)
    assert (error.message, error.reason, error.facts) == ("m", "R", {})


def _of_server(**changes: Any) -> str:
    info = {"reason": "NO_SPACE", "metadata": {"dataset": "tank/a"}}
    told = {"code": 8, "message": "full", "details": [info | changes.pop("info", {})]}
    return json.dumps(told | changes)


def test_the_error_of_a_server_in_json() -> None:
    error = status.from_json(_of_server(), 429)
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.message, error.reason, error.facts) == ("full", "NO_SPACE", {"dataset": "tank/a"})
    assert status.from_json(_of_server(info={"reason": "OF_2027"}), 429).reason == "OF_2027"


@pytest.mark.parametrize(
    "changes",
    [
        {"message": "a\0\ud800" * 100_000},
        {"info": {"reason": "R" * 60_000}},
        {"info": {"reason": "NO_SPACE\0"}},
        {"info": {"metadata": {"a": "v" * 60_000}}},
        {"info": {"metadata": {"n" * 60_000: "v"}}},
        {"info": {"metadata": {f"a{number}": "\0" * 100 for number in range(1000)}}},
        {"info": {"metadata": {"a\0": "v", "-": "v", "A B": "v"}}},
    ],
)
def test_the_error_of_a_server_has_bounds(changes: dict[str, Any]) -> None:
    error = status.from_json(_of_server(**changes), 429)
    assert isinstance(error, errors.ResourceExhausted)
    texts = [error.message, error.reason, *error.facts, *error.facts.values()]
    assert all(map(str.isprintable, texts))
    assert sum(map(len, texts)) < 20_000
    assert len(error.message) <= 1024
    assert len(error.reason) < 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 60_000,
        '{"a":' * 60_000,
        "null",
        "7",
        '{"code": Infinity}',
        '{"code": 8, "message": "full", "details": {}}',
        _of_server(code=1e400),
        _of_server(code=99),
        _of_server(code="8"),
        _of_server(code=[8]),
        _of_server(message=None),
        _of_server(details=[]),
        _of_server(details=[7]),
        _of_server(info={"reason": 7}),
        _of_server(info={"metadata": None}),
        "9" * 60_000,
    ],
)
def test_nonsense_of_a_server_is_one_error(text: str) -> None:
    error = status.from_json(text, 500)
    assert isinstance(error, errors.Unavailable)
    assert error.reason == "SERVER_UNAVAILABLE"
