"""Access over D-Bus: other users, the policy of the bus, its name, and lost connections."""

from __future__ import annotations

import asyncio
import gc
import shutil
from typing import TYPE_CHECKING

import pytest
from dbus_next import DBusError

from tests.api.dbus_fixture import (
    BUS_ERROR,
    DATA,
    INTROSPECTABLE,
    NOBODY,
    OBJECT_MANAGER,
    OPEN,
    SYSTEM,
    BusFixture,
    connect,
    create,
    disconnect,
    on_private_bus,
    private_bus,
)
from zfsilod.api.dbus import server
from zfsilod.api.dbus.contract import (
    KINDS,
    MANAGER,
    NAME,
    ROOT,
    VOLUME,
    path_of,
)
from zfsilod.model.errors import PermissionDenied, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)


@pytest.mark.skipif("os.geteuid() != 0")
async def test_only_root_may_call(tmp_path: Path) -> None:
    """The daemon itself refuses other users, whatever the policy of the bus allows."""
    async with on_private_bus(tmp_path, OPEN) as fixture:
        await create(fixture)
        for typed in (
            ("call", NAME, ROOT, MANAGER, "GetVolume", "s", "data"),
            ("call", NAME, DATA, VOLUME, "Delete", "a{sv}", "0"),
            ("get-property", NAME, ROOT, MANAGER, "Version"),
            ("introspect", NAME, DATA),
            ("call", NAME, ROOT, OBJECT_MANAGER, "GetManagedObjects"),
        ):
            assert "Access denied" in await fixture.busctl(*typed, user=NOBODY)
        nobody = await fixture.client(NOBODY)
        refused = await nobody.try_call(DATA, VOLUME, "Delete", "a{sv}", {})
        assert refused.error == f"{BUS_ERROR}.AccessDenied"
        assert refused.body == [
            "uid 65534 may not use org.zfsilo1.destroy, only root: polkit does not run"
        ]
        assert fixture.host.facts.names("zvol") == ["tank/zfsilo/data"]


@pytest.mark.skipif("os.geteuid() != 0")
async def test_any_user_may_introspect(tmp_path: Path) -> None:
    """As with systemd and udisks; the names of objects are shown to those who may read them."""
    nodes = ["/", "/org", ROOT, *(f"{ROOT}/{kind}" for kind in sorted(KINDS))]
    async with on_private_bus(tmp_path, SYSTEM) as fixture:
        await create(fixture)
        tree = (await fixture.busctl("tree", "--list", NAME, user=NOBODY)).split()
        assert tree == nodes
        assert DATA in (await fixture.busctl("tree", "--list", NAME)).split()
        nobody = await fixture.client(NOBODY)
        for path in (ROOT, DATA, path_of("volume", "nothing")):
            (xml,) = await nobody.call(path, INTROSPECTABLE, "Introspect")
            assert "org.zfsilo1" in xml
        root = await fixture.client()
        assert (await root.try_call(path, INTROSPECTABLE, "Introspect")).error.endswith(
            "UnknownObject"
        )


@pytest.mark.skipif("os.geteuid() != 0")
async def test_with_the_policy_only_root_owns_the_name_and_receives_signals(tmp_path: Path) -> None:
    """On a bus like the system bus all users may call, and zfsilod decides."""
    async with on_private_bus(tmp_path, SYSTEM) as fixture:
        await create(fixture)
        call = ("call", NAME, ROOT, MANAGER, "GetVolume", "s", "data")
        assert await fixture.busctl(*call) == f'o "{DATA}"'
        assert "Access denied" in await fixture.busctl(*call, user=NOBODY)
        root, nobody = await fixture.client(), await fixture.client(NOBODY)
        await create(fixture, "second")
        await root.heard("OperationFinished")
        refused = await nobody.try_call(ROOT, MANAGER, "GetVolume", "s", "data")
        assert refused.error == f"{BUS_ERROR}.AccessDenied"
        # The bus would have sent signals before the reply.
        assert nobody.signals == []
        with pytest.raises(DBusError, match="not allowed to own"):
            await nobody.bus.request_name(NAME)


async def test_a_name_with_another_owner(fixture: BusFixture) -> None:
    """A second daemon reports the first one."""
    with pytest.raises(Unavailable, match="has another owner: stop the other zfsilod"):
        await server.serve(fixture.address, fixture.service, version="2")
    client = await fixture.client()
    assert await client.get(ROOT, "Version") == "1.2.3"
    await create(fixture)
    assert len(await client.heard("OperationFinished")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_bus(fixture: BusFixture) -> None:
    """Without a bus the error contains its address."""
    with pytest.raises(Unavailable, match="cannot reach unix:path=/nowhere"):
        await server.serve("unix:path=/nowhere", fixture.service, version="2")
    gc.collect()  # the library forgets a socket when it cannot connect: collected here


async def test_a_policy_that_denies_the_name(fixture: BusFixture) -> None:
    """Without the policy, the error names the file to install."""
    policy = OPEN.replace('<allow own="*"/>', f'<deny own="{NAME}"/>')
    refused = pytest.raises(PermissionDenied, match=r"org\.zfsilo1\.conf")
    with private_bus(policy) as address, refused:
        await server.serve(address, fixture.service, version="2")


async def test_the_bus_disappears(fixture: BusFixture, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon notices a lost bus, and continues without it."""
    with private_bus() as address:
        front = await server.serve(address, fixture.service, version="2")
        waiting = asyncio.create_task(front.closed())
    await asyncio.wait_for(waiting, 5)
    assert "lost the connection to the bus" in caplog.text
    await create(fixture)
    await front.close()


async def test_callers_are_forgotten(fixture: BusFixture) -> None:
    """A caller is forgotten when its name loses its owner."""
    bus = await connect(fixture.address)
    known = fixture.front.identities.uids
    await bus.introspect(NAME, ROOT)
    name = bus.unique_name
    assert name in known
    await disconnect(bus)
    client = await fixture.client()
    await client.manager("GetCapacity", "s", "")
    assert name not in known
