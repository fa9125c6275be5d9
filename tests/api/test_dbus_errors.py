"""Errors over D-Bus: those of zfsilo, those of D-Bus itself, and unexpected ones."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from dbus_next import Variant

from tests.api.dbus_fixture import (
    BUS_ERROR,
    DATA,
    GIB,
    INTROSPECTABLE,
    OBJECT_MANAGER,
    PROPERTIES,
    BusFixture,
)
from zfsilod.api.dbus.contract import (
    MANAGER,
    NAME,
    OPERATION,
    ROOT,
    VOLUME,
    path_of,
)
from zfsilod.model.records import Host

pytestmark = pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour": Variant("s", "red")}, "colour"),
        ({"thin": Variant("s", "yes")}, "thin"),
        ({"limit_bytes": Variant("u", 1)}, "limit_bytes"),
        ({"mode": Variant("s", "FILE")}, "mode"),
        ({"access_modes": Variant("as", ["ANY"])}, "access_modes"),
        ({"access_modes": Variant("as", [])}, "access_modes"),
        ({"hosts": Variant("s", "*")}, "hosts"),
        ({"labels": Variant("as", [])}, "labels"),
        ({"x" * 500: Variant("b", True)}, "xxx"),
    ],
)
async def test_errors_name_the_invalid_option(
    fixture: BusFixture, values: dict[str, Variant], named: str
) -> None:
    """An unknown key or a wrong type is refused by name."""
    client = await fixture.client()
    refused = await client.try_call(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, values)
    assert refused.error == f"{NAME}.Error.InvalidArgument"
    assert refused.signature == "ssa{ss}"
    assert named in refused.body[0]
    assert refused.body[1] == "BAD_OPTION"
    assert refused.body[2]["option"].startswith(named)
    assert fixture.host.facts.names("zvol") == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((ROOT, MANAGER, "Nix"), "UnknownMethod"),
        ((ROOT, None, "Nix"), "UnknownMethod"),
        ((ROOT, "org.example.Nix", "GetVolume", "s", "data"), "UnknownInterface"),
        ((ROOT, VOLUME, "Stats"), "UnknownInterface"),
        ((ROOT, MANAGER, "GetVolume"), "InvalidArgs"),
        ((ROOT, MANAGER, "GetVolume", "t", 5), "InvalidArgs"),
        ((ROOT, MANAGER, "CreateVolume", "sua{sv}", "data", 5, {}), "InvalidArgs"),
        (("/nix", MANAGER, "GetVolume", "s", "data"), "UnknownObject"),
        (("/org/zfsilo1/nix/data", VOLUME, "Stats"), "UnknownObject"),
        (("/org/zfsilo1/volume/da_74a", VOLUME, "Stats"), "UnknownObject"),
        (("/org/zfsilo1/volume/data/more", VOLUME, "Stats"), "UnknownObject"),
        (("/org/zfsilo1/volume", VOLUME, "Stats"), "UnknownInterface"),
        ((DATA, INTROSPECTABLE, "Introspect"), "UnknownObject"),
        ((DATA, PROPERTIES, "GetAll", "s", VOLUME), "UnknownObject"),
        (("/org/zfsilo1/volume/_2e_2e", PROPERTIES, "GetAll", "s", VOLUME), "UnknownObject"),
        ((ROOT, PROPERTIES, "Get", "ss", MANAGER, "Nix"), "UnknownProperty"),
        ((ROOT, PROPERTIES, "Get", "ss", PROPERTIES, "Version"), "UnknownProperty"),
        ((ROOT, PROPERTIES, "Get", "ss", "org.example", "Version"), "UnknownInterface"),
        ((ROOT, PROPERTIES, "GetAll", "s", VOLUME), "UnknownInterface"),
        ((ROOT, PROPERTIES, "Set", "ssv", "", "Version", Variant("s", "2")), "PropertyReadOnly"),
        ((DATA, OBJECT_MANAGER, "GetManagedObjects"), "UnknownInterface"),
    ],
)
async def test_errors_defined_by_dbus(
    fixture: BusFixture, call: tuple[Any, ...], error: str
) -> None:
    """Unknown names and wrong types are refused with the errors of D-Bus itself."""
    client = await fixture.client()
    assert (await client.try_call(*call)).error == f"{BUS_ERROR}.{error}"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((ROOT, MANAGER, "GetVolume", "s", "nix"), "NotFound"),
        ((ROOT, MANAGER, "GetVolume", "s", "../nix"), "InvalidArgument"),
        ((ROOT, MANAGER, "GetHost", "s", "nix"), "NotFound"),
        ((ROOT, MANAGER, "GetOperation", "s", "0" * 26), "NotFound"),
        ((ROOT, MANAGER, "GetCapacity", "s", "other"), "InvalidArgument"),
        ((ROOT, MANAGER, "CreateVolume", "sta{sv}", "Data", GIB, {}), "InvalidArgument"),
        ((ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", 2**64 - 1, {}), "InvalidArgument"),
        ((ROOT, MANAGER, "Connect", "ssa{sv}", "take", "nix", {}), "NotFound"),
        (
            (ROOT, MANAGER, "ListVolumes", "a{sv}", {"state": Variant("s", "mounted")}),
            "InvalidArgument",
        ),
        (
            (ROOT, MANAGER, "ListVolumes", "a{sv}", {"page_token": Variant("s", "x" * 600)}),
            "InvalidArgument",
        ),
        ((DATA, VOLUME, "Stats"), "NotFound"),
        ((DATA, VOLUME, "Update", "a{sv}", {}), "InvalidArgument"),
        ((DATA, VOLUME, "Delete", "a{sv}", {}), "NotFound"),
        ((DATA, VOLUME, "Stage", "sa{sv}", "/stage", {}), "FailedPrecondition"),
        ((path_of("operation", "0" * 26), OPERATION, "Cancel", "a{sv}", {}), "NotFound"),
    ],
)
async def test_errors_defined_by_zfsilo(
    fixture: BusFixture, call: tuple[Any, ...], error: str
) -> None:
    """An error of zfsilo has a name, a message and a reason."""
    client = await fixture.client()
    refused = await client.try_call(*call)
    assert refused.error == f"{NAME}.Error.{error}"
    assert refused.body[0]
    assert refused.body[1].isupper()


async def test_an_unexpected_exception_is_logged_and_not_shown(
    fixture: BusFixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is Internal: the journal has the traceback, the caller does not."""
    monkeypatch.setattr(fixture.service, "capacity", lambda _root: 1 / 0)
    client = await fixture.client()
    refused = await client.try_call(ROOT, MANAGER, "GetCapacity", "s", "")
    assert refused.error == f"{NAME}.Error.Internal"
    assert "ZeroDivision" not in str(refused.body)
    assert "ZeroDivisionError" in caplog.text


async def test_a_value_of_the_wrong_type_is_an_internal_error(
    fixture: BusFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that does not fit its type is replied to with an error."""

    async def usage(_volume: str) -> dict[str, int]:
        return {"used": -1}

    monkeypatch.setattr(fixture.service, "usage", usage)
    client = await fixture.client()
    assert (await client.try_call(DATA, VOLUME, "Stats")).error == f"{NAME}.Error.Internal"


async def test_strings_that_are_invalid_on_dbus(fixture: BusFixture) -> None:
    """A NUL, which would close the connection, is replaced."""
    with fixture.store.write() as txn:
        txn.put(Host(id="odd", labels=(("a", "b\0c"),), nqn="\udc80", iqn="iqn.2024-01.lab:ä"))
    client = await fixture.client()
    path = path_of("host", "odd")
    assert await client.get(path, "Labels") == {"a": "b\ufffdc"}
    assert await client.get(path, "Iqn") == "iqn.2024-01.lab:ä"
    assert await client.get(path, "Nqn") == "?"
