"""Planted secrets appear in no response, error, log, record or property."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from zfsilo.v1 import volume_pb2 as pb

from tests.api.dbus_fixture import GIB, on_private_bus
from tests.api.running import DATA, connect, create, publish
from zfsilod.api.dbus.contract import MANAGER, ROOT, VOLUME, path_of
from zfsilod.model.chap import Chap
from zfsilod.wire.stub import SERVICES
from zfsilod.wire.stub import path_of as method_path

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Front

PLANTED = ("planted-secret-of-the-target", "planted-secret-of-the-host")
NAMES = {
    "name": DATA,
    "volume": DATA,
    "host": "hosts/take",
    "server": "give",
    "volume_id": "data",
    "local_name": "data",
    "path": "/srv/data",
    "filter": "id = data",
}
WHO = ("admin", "controller", "reader", "host", "other host", "node", "token", "nobody")


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*, username: str, mutual_username: str) -> Chap:
        return Chap(
            username=username,
            password=PLANTED[0],
            mutual_username=mutual_username,
            mutual_password=PLANTED[1],
        )

    monkeypatch.setattr(Chap, "make", make)


def found_in(text: str | bytes) -> list[str]:
    """Return the planted secrets that a text contains, plain or as hex."""
    raw = text.encode() if isinstance(text, str) else text
    forms = {secret: (secret.encode(), secret.encode().hex().encode()) for secret in PLANTED}
    return [name for name, looks in forms.items() if any(look in raw for look in looks)]


@pytest.mark.usefixtures("_planted")
async def test_no_response_contains_a_secret(
    front: Front,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    records: list[Any] = []
    front.service.audit.write = lambda *record: records.append(record)
    root = front.root()
    await root.volumes.CreateVolume(create())
    await root.volumes.PublishVolume(publish())
    await root.volumes.ConnectVolume(connect())
    own = await front.role("host", "take").volumes.FetchConnection(
        pb.FetchConnectionRequest(name=DATA)
    )
    assert own.chap.password == PLANTED[0]  # it is planted, and the one who may know it does
    outputs = {"records": json.dumps(records, default=str), "log": caplog.text}
    for who in WHO:
        channel = channel_of(front, who)
        for service in SERVICES:
            for method in service.methods:
                may = method.name == "FetchConnection" and who == "host"
                if not may and not method.name.startswith(("Delete", "Unpublish", "Disconnect")):
                    outputs[f"{method.name} to {who}"] = await said(channel, method)
    captured = capfd.readouterr()
    outputs |= {"stdout": captured.out, "stderr": captured.err, "log at the end": caplog.text}
    outputs["store"] = (tmp_path / "store" / "data.mdb").read_bytes().decode("latin-1")
    assert {place: found_in(text) for place, text in outputs.items() if found_in(text)} == {}


def channel_of(front: Front, who: str) -> Any:
    """Return the channel of an entry of WHO."""
    match who:
        case "node":
            front.node()
        case "token":
            front.bearer(front.token("controller", "csi"))
        case "nobody":
            front.as_(front.access())
        case "other host":
            front.role("host", "other")
        case "admin" | "controller" | "reader" | "host":
            front.role(who, "take")
    return front.channels[-1]


async def said(channel: Any, method: Any) -> str:
    """Call a method about the volume, and return the whole result as text."""
    request = GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        if field.name in NAMES and field.cpp_type == field.CPPTYPE_STRING and not field.is_repeated:
            setattr(request, field.name, NAMES[field.name])
    text = io.StringIO()
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(method_path(method))(request.SerializeToString(), timeout=1)
    try:
        answer = await (call.read() if method.server_streaming else call)
        text.write(repr(answer))
        call.cancel()
    except grpc.aio.AioRpcError as error:
        text.write(f"{error!r} {error.trailing_metadata()} {error.initial_metadata()}")
    return text.getvalue()


@pytest.mark.usefixtures("_planted")
async def test_no_property_contains_a_secret(tmp_path: Path) -> None:
    async with on_private_bus(tmp_path) as fixture:
        client = await fixture.client()
        await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
        await client.done(path_of("volume", "data"), VOLUME, "Publish", "sa{sv}", "take", {})
        await client.done(ROOT, MANAGER, "Connect", "ssa{sv}", "take", "data", {})
        assert fixture.store.chap("data/take").password.reveal() == PLANTED[0]
        objects = await client.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        heard = [item.body for item in client.messages]
        assert len(objects[0]) > 1
        assert found_in(repr([[_plain(item) for item in objects], _plain(heard)])) == []


def _plain(value: Any) -> Any:
    """Return a value with all variants replaced by their values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _plain(value.value) if hasattr(value, "signature") else value
