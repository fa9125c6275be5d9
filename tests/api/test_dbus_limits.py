"""D-Bus under load: concurrent calls, pages, limits, and calls without a reply."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from dbus_next import Message, MessageFlag

from tests.api.dbus_fixture import (
    BUS_ERROR,
    DATA,
    GIB,
    INTROSPECTABLE,
    OBJECT_MANAGER,
    BusFixture,
    create,
    options,
)
from zfsilod.api.dbus import admission, objects
from zfsilod.api.dbus.contract import (
    MANAGER,
    NAME,
    ROOT,
    VOLUME,
    path_of,
)

pytestmark = pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)


async def test_many_calls_at_once(fixture: BusFixture) -> None:
    """64 concurrent calls all get their own replies."""
    client = await fixture.client()
    names = [f"v{number}" for number in range(64)]
    calls = (client.manager("CreateVolume", "sta{sv}", name, GIB, {}) for name in names)
    operations = await asyncio.gather(*calls)
    assert len(set(operations)) == 64
    assert set(await asyncio.gather(*map(client.end, operations))) == {"DONE"}
    paths = await asyncio.gather(*(client.manager("GetVolume", "s", name) for name in names))
    assert paths == [path_of("volume", name) for name in names]
    finished = await client.heard("OperationFinished", 64)
    assert sorted(signal.body[0] for signal in finished) == sorted(operations)


async def test_a_full_socket(fixture: BusFixture) -> None:
    """Messages that do not fit into the socket are sent later."""
    client = await fixture.client()
    text = "x" * 100_000
    for _number in range(200):
        fixture.front.emit(ROOT, MANAGER, "OperationFinished", "oss", ["/", text, text])
    assert len(await client.heard("OperationFinished", 200)) == 200
    assert await client.get(ROOT, "Version") == "1.2.3"


async def test_list_pages(fixture: BusFixture) -> None:
    """The pages of a list are complete and do not overlap."""
    for name in ("a", "b.1", "c"):
        await create(fixture, name)
    client = await fixture.client()
    await client.done(
        path_of("volume", "c"),
        VOLUME,
        "Update",
        "a{sv}",
        options(labels=("a{ss}", {"app": "db", "x": "y"})),
    )
    rows, token = await client.call(
        ROOT, MANAGER, "ListVolumes", "a{sv}", options(page_size=("u", 2))
    )
    assert rows == [
        ["a", "/org/zfsilo1/volume/a", "CREATED", GIB],
        ["b.1", "/org/zfsilo1/volume/b_2e1", "CREATED", GIB],
    ]
    following = options(page_size=("u", 2), page_token=("s", token))
    rows, token = await client.call(ROOT, MANAGER, "ListVolumes", "a{sv}", following)
    assert ([row[0] for row in rows], token) == (["c"], "")
    for wanted, expected in (
        (options(labels=("a{ss}", {"app": "db"})), ["c"]),
        (options(labels=("a{ss}", {"app": "web"})), []),
        (options(state=("s", "PUBLISHED")), []),
    ):
        rows, token = await client.call(ROOT, MANAGER, "ListVolumes", "a{sv}", wanted)
        assert ([row[0] for row in rows], token) == (expected, "")
    names: list[str] = []
    token = ""
    while token or not names:
        page = options(page_size=("u", 3), page_token=("s", token), subject=("s", "volumes/a"))
        rows, token = await client.call(ROOT, MANAGER, "ListOperations", "a{sv}", page)
        names += [row[0] for row in rows]
    assert len(names) == len(set(names)) == 1


async def test_too_many_objects(fixture: BusFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit GetManagedObjects fails, introspection lists no children, and pages work."""
    monkeypatch.setattr(objects, "MAX_OBJECTS", 4)
    volumes = [path_of("volume", name) for name in ("a", "b", "c")]
    for name in ("a", "b", "c"):
        await create(fixture, name)
    client = await fixture.client()
    (managed,) = await client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    assert sorted(managed) == [path_of("host", "take"), *volumes]
    assert managed[volumes[0]][VOLUME]["CapacityBytes"].value == GIB
    await create(fixture, "d")
    await create(fixture, "e")
    refused = await client.try_call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    assert refused.error == f"{BUS_ERROR}.LimitsExceeded"
    assert "ListVolumes" in refused.body[0]
    (xml,) = await client.call("/org/zfsilo1/volume", INTROSPECTABLE, "Introspect")
    assert "<node name" not in xml
    assert "ListVolumes" in xml
    rows, _token = await client.call(ROOT, MANAGER, "ListVolumes", "a{sv}", {})
    assert len(rows) == 5


async def test_more_calls_than_the_limit(
    fixture: BusFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls above the limit are refused at once; running ones are replied to before the close."""
    release = asyncio.Event()

    async def slow(_volume: str) -> dict[str, int]:
        await release.wait()
        return {"used": 1}

    monkeypatch.setattr(fixture.service, "usage", slow)
    monkeypatch.setattr(admission, "MAX_CALLS", 2)
    client = await fixture.client()
    await client.try_call(ROOT, MANAGER, "ListHosts")  # its user is known from now on: calls run
    calls = [asyncio.create_task(client.try_call(DATA, VOLUME, "Stats")) for _number in range(3)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [call.result().error for call in done] == [f"{BUS_ERROR}.LimitsExceeded"]
    leaving = asyncio.create_task(fixture.front.close())
    await asyncio.sleep(0)
    release.set()
    await leaving
    assert [(await call).body for call in waiting] == [[{"used": 1}]] * 2


async def test_default_access_mode(fixture: BusFixture) -> None:
    """A volume that allows no writer is published with a mode that it allows."""
    client = await fixture.client()
    modes = options(access_modes=("as", ["MULTI_NODE_READER_ONLY"]))
    await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, modes)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    published = await client.get(DATA, "Publications")
    assert published["take"]["access_mode"].value == "MULTI_NODE_READER_ONLY"


async def test_no_reply_is_not_sent(fixture: BusFixture) -> None:
    """A call without a reply expected gets no reply, and is done."""
    client = await fixture.client()
    await client.bus.call(
        Message(
            destination=NAME,
            path=ROOT,
            interface=MANAGER,
            member="CreateVolume",
            signature="sta{sv}",
            body=["data", GIB, {}],
            flags=MessageFlag.NO_REPLY_EXPECTED,
        )
    )
    assert (await client.heard("OperationFinished"))[0].body[1:] == ["volumes/data", "DONE"]
