"""Hostile messages of local users: they cost no time of the event loop, and end no connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.api.dbus_fixture import (
    INTROSPECTABLE,
    NOBODY,
    OBJECT_MANAGER,
    PROPERTIES,
    SYSTEM,
    BusFixture,
    create,
    on_private_bus,
)
from tests.api.raw_bus import NO_REPLY, SIGNAL, RawClient, message, strings, variants
from zfsilod.api.dbus import admission, server
from zfsilod.api.dbus.contract import MANAGER, PEER, ROOT
from zfsilod.systemd.bus import close_socket, connect
from zfsilod.systemd.bus_users import BusUsers
from zfsilod.systemd.messages import (
    MAX_BODY_BYTES,
    SENDER,
    Header,
    IncomingCall,
    parsed_signatures,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from dbus_next import Message

pytestmark = pytest.mark.skipif(
    not shutil.which("dbus-daemon") or os.geteuid() != 0, reason="needs dbus-daemon and root"
)
MIB = 1 << 20
MAX_PAUSE_S = 1.5  # of a busy machine; to unpack one of these messages takes several seconds
LARGE = {
    "an array of many elements": message(
        strings(MIB), signature="as", member="ListVolumes", flags=NO_REPLY
    ),
    "many variants": message(
        (3 * MIB).to_bytes(4, "little") + b"\x01y\0\0" * (3 * MIB // 4),
        signature="av",
        member="CreateVolume",
        flags=NO_REPLY,
    ),
    "a long path": message(path="/" + "x" * MIB, flags=NO_REPLY),
    "an unknown object": message(
        strings(MIB), path="/nowhere", interface="a.b", signature="as", flags=NO_REPLY
    ),
    "below the limit": 400
    * message(strings(MAX_BODY_BYTES // 8), signature="as", member="RemoveOrphans", flags=NO_REPLY),
    "no argument at all": 20_000 * message(member="ListOrphans", flags=NO_REPLY),
}


@asynccontextmanager
async def pauses() -> AsyncIterator[list[float]]:
    """Yield the pauses of the event loop, beyond 10 ms each."""
    seen: list[float] = [0.0]

    async def tick() -> None:
        while True:
            since = time.monotonic()
            await asyncio.sleep(0.01)
            seen.append(time.monotonic() - since - 0.01)

    ticking = asyncio.create_task(tick())
    try:
        yield seen
    finally:
        ticking.cancel()


async def as_stranger(fixture: BusFixture, *raw: bytes) -> None:
    """Send bytes as another user, from a thread."""
    client = await asyncio.to_thread(RawClient, fixture.address, NOBODY)
    try:
        for one in raw:
            await asyncio.to_thread(client.send, one)
        root = await fixture.client()
        async with asyncio.timeout(20):
            assert await root.get(ROOT, "Version") == "1.2.3"
    finally:
        client.close()


@pytest.mark.parametrize("kind", LARGE)
async def test_a_large_message_does_not_stop_the_loop(tmp_path: Path, kind: str) -> None:
    """The body of a stranger's call is never unpacked, and root's next call is answered."""
    async with on_private_bus(tmp_path, SYSTEM) as fixture, pauses() as seen:
        await as_stranger(fixture, LARGE[kind])
    assert max(seen) < MAX_PAUSE_S


async def test_a_large_call_of_root_has_a_clear_error(fixture: BusFixture) -> None:
    """It names the limit, and the connection stays."""
    client = await fixture.client()
    names = ["x" * 100] * 1000
    refused = await client.try_call(ROOT, MANAGER, "RemoveOrphans", "asa{sv}", names, {})
    assert refused.error.endswith("LimitsExceeded")
    assert str(MAX_BODY_BYTES) in refused.body[0]
    assert await client.get(ROOT, "Version") == "1.2.3"


@pytest.mark.parametrize(
    "raw",
    [
        message(flags=0x80 | NO_REPLY),
        message(kind=9, flags=NO_REPLY),
        message(more=b"\x63\x01s\0\x01\0\0\0x\0", flags=NO_REPLY),
        message(more=b"\x63\x02as\0\0\0\0\0\0\0\0\0", flags=NO_REPLY),
        message(variants(60), signature="v", member="ListVolumes", flags=NO_REPLY),
        message(kind=SIGNAL, signature="s", body=b"\1\0\0\0x\0"),
    ],
    ids=("unknown flag", "unknown kind", "unknown field", "array field", "deep", "signal"),
)
async def test_strange_messages_end_no_connection(fixture: BusFixture, raw: bytes) -> None:
    """What a later version of the protocol may have is ignored, from every user."""
    await as_stranger(fixture, raw)
    await asyncio.to_thread(_send_and_close, fixture.address, raw)
    await create(fixture)


def _send_and_close(address: str, raw: bytes) -> None:
    client = RawClient(address)
    client.send(raw)
    client.close()


async def test_a_signal_to_the_connection_of_the_launcher(fixture: BusFixture) -> None:
    """A connection without a name takes no signal that was sent to it alone."""
    bus = await connect(fixture.address)
    heard: list[str] = []

    def hear(signal: Message) -> None:
        heard.append(signal.member)

    bus.add_message_handler(hear)
    signal = message(
        strings(MIB), to=bus.unique_name, kind=SIGNAL, signature="as", member="JobRemoved"
    )
    async with pauses() as seen:
        await as_stranger(fixture, signal, signal.replace(b"JobRemoved", b"JobReMoved"))
        await bus.introspect("org.freedesktop.DBus", "/org/freedesktop/DBus")
    bus.disconnect()
    close_socket(bus)
    assert not [member for member in heard if member and member.startswith("Job")]
    assert max(seen) < MAX_PAUSE_S


async def test_signatures_are_not_kept_for_ever(tmp_path: Path) -> None:
    """Signatures that strangers make up are not parsed."""
    async with on_private_bus(tmp_path, SYSTEM) as fixture:
        before = parsed_signatures()
        await as_stranger(fixture, *map(_with_a_signature_of_its_own, range(2000)))
        assert parsed_signatures() < before + 100


def _with_a_signature_of_its_own(number: int) -> bytes:
    signature = f"{number:012b}".replace("0", "y").replace("1", "n")
    size = 0
    for letter in signature:
        size += 1 if letter == "y" else 2 + size % 2
    return message(bytes(size), signature=signature, flags=NO_REPLY)


async def test_root_has_places_of_its_own(fixture: BusFixture) -> None:
    """Strangers whose calls wait for polkit leave places for others and for root."""
    clients = [await asyncio.to_thread(RawClient, fixture.address, NOBODY) for _ in range(12)]
    call = message(b"\1\0\0\0x\0", signature="s", flags=4 | NO_REPLY)
    for client in clients:
        await asyncio.to_thread(client.send, call * 500)
    async with pauses() as seen:
        await create(fixture)
    for client in clients:
        client.close()
    assert max(seen) < MAX_PAUSE_S


async def test_a_refused_user_is_told_to_wait(
    fixture: BusFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many refusals a user's calls are refused without asking polkit."""
    monkeypatch.setattr(admission, "REFUSALS", 20)
    monkeypatch.setattr(admission, "REFUSAL_S", 5.0)  # no machine is too slow for it
    client = await asyncio.to_thread(RawClient, fixture.address, NOBODY)
    # The bus itself refuses a call with the serial of one that has no reply yet.
    calls = [message(b"\1\0\0\0x\0", signature="s", serial=100 + n) for n in range(200)]
    await asyncio.to_thread(client.send, b"".join(calls[:100]))  # held until the user is known
    try:
        await asyncio.to_thread(client.receive_until, b"AccessDenied")
        for call in calls[100:]:
            await asyncio.to_thread(client.send, call)
        await asyncio.to_thread(client.receive_until, b"calls of this user were refused")
    finally:
        client.close()


@asynccontextmanager
async def slow_pace(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BusFixture]:
    """Serve a bus with a pace that no machine is too slow for."""
    monkeypatch.setattr(admission, "BURST", 16)
    monkeypatch.setattr(admission, "PER_S", 0.01)
    monkeypatch.setattr(server, "CLOSE_DEADLINE_S", 0.1)  # calls wait for their turn
    async with on_private_bus(path) as fixture:
        yield fixture


@pytest.mark.parametrize("member", ["Ping", "Introspect", "GetManagedObjects", "GetAll"])
async def test_calls_of_a_user_have_a_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """Calls of every kind count, over all connections of a user; root has no pace."""
    interfaces = {"Introspect": INTROSPECTABLE, "GetAll": PROPERTIES, "Ping": PEER}
    interface = interfaces.get(member, OBJECT_MANAGER)
    silent = message(member=member, interface=interface, flags=NO_REPLY)
    async with slow_pace(tmp_path, monkeypatch) as fixture:
        clients = [await asyncio.to_thread(RawClient, fixture.address, NOBODY) for _ in range(2)]
        try:
            for client in clients:
                await asyncio.to_thread(client.send, silent * 20)
            await asyncio.to_thread(clients[-1].send, message(member=member, interface=interface))
            await asyncio.to_thread(clients[-1].receive_until, b"calls of this user a second")
        finally:
            for client in clients:
                client.close()
        root = await fixture.client()
        for _call in range(20):
            await root.call(ROOT, INTROSPECTABLE, "Introspect")


async def test_new_connections_of_a_user_have_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user of a connection is known after its first call only: this one counts, too."""
    calls = [
        message(member="Introspect", interface=INTROSPECTABLE, flags=flags)
        for flags in (NO_REPLY, 0)
    ]
    async with slow_pace(tmp_path, monkeypatch) as fixture:
        for end in (b"</node>", b"calls of this user a second"):
            client = await asyncio.to_thread(RawClient, fixture.address, NOBODY)
            await asyncio.to_thread(client.send, b"".join(calls))
            await asyncio.to_thread(client.receive_until, end)
            client.close()


def test_a_call_beyond_the_pace_waits() -> None:
    """A client that is a little too fast gets its answers later, and no error."""
    counted = admission.Admission({})
    assert [counted.wait_s(1, "Ping") for _call in range(admission.BURST)] == [0.0] * 512
    assert 0 < counted.wait_s(1, "GetManagedObjects") < admission.MAX_WAIT_S
    assert counted.wait_s(0, "Ping") == 0.0
    assert counted.wait_s(2, "Ping") == 0.0


async def test_the_user_of_a_connection_is_asked_for_once(
    fixture: BusFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls come with the connection, and however soon it ends."""
    asked: list[str] = []
    real = BusUsers.ask

    def ask(users: BusUsers, name: str, answer: Callable[[int | None], None]) -> None:
        asked.append(name)
        real(users, name, answer)

    monkeypatch.setattr(BusUsers, "ask", ask)
    for _connection in range(20):
        client = await asyncio.to_thread(RawClient, fixture.address, NOBODY)
        await asyncio.to_thread(client.send, message(member="Ping", interface=PEER) * 50)
        client.close()
    root = await fixture.client()
    assert await root.get(ROOT, "Version") == "1.2.3"
    assert len(asked) == len(set(asked)) == 21
    assert not fixture.front.identities.asked


def test_calls_of_connections_without_a_known_user_are_bounded() -> None:
    """The first call of a connection has a place, further ones have the limits of strangers."""
    counted = admission.Admission({})
    many, root = incoming(":1.1"), incoming(":1.2")
    assert [counted.hold(many) for _call in range(admission.MAX_OF_ONE)] == [""] * 128
    assert "are waiting" in counted.hold(many)
    for number in range(admission.MAX_OTHERS):
        assert counted.hold(incoming(f":2.{number}")) == ""
    assert counted.hold(root) == ""
    assert "are waiting" in counted.hold(root)
    for _call in range(admission.MAX_OF_ONE):
        counted.release(many)
    assert counted.hold(many) == ""


def incoming(sender: str) -> IncomingCall:
    """Return a call of a connection, as the reader of messages makes it."""
    return IncomingCall(Header(1, 0, 1, 0, 0, {SENDER: sender}), b"")
