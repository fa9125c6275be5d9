"""zfsilod on a private bus, called through busctl and through dbus-next."""

from __future__ import annotations

import asyncio
import gc
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from dbus_next import DBusError, Message, MessageFlag, MessageType, Variant

from tests.api.dbus_fixture import (
    GIB,
    NOBODY,
    OPEN,
    SYSTEM,
    BusClient,
    BusFixture,
    connect,
    disconnect,
    on_private_bus,
    options,
    private_bus,
)
from tests.examples import TAKE
from zfsilod.api.dbus import objects, server
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    NAME,
    OPERATION,
    ROOT,
    VOLUME,
    path_of,
    split,
)
from zfsilod.engine import worker
from zfsilod.model.errors import CommandFailed, PermissionDenied, Unavailable
from zfsilod.model.records import Host, Operation
from zfsilod.storage.volume_view import volume_view
from zfsilod.wire import convert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)
DATA = path_of("volume", "data")
CREATE_ZVOL = "create zvol tank/zfsilo/data (1 GiB, thin)"
NQN = "nqn.2024-01.lab.other:host"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
BUS_ERROR = "org.freedesktop.DBus.Error"


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[BusFixture]:
    """Run a zfsilod on a private bus."""
    async with on_private_bus(tmp_path) as fixture:
        yield fixture


async def create(fixture: BusFixture, name: str = "data") -> str:
    """Create a volume, and return its path."""
    client = await fixture.client()
    await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", name, GIB, {})
    return path_of("volume", name)


# Life of a volume


async def test_life_of_a_volume(fixture: BusFixture) -> None:
    """A volume is created, mounted and deleted, and nothing is left."""
    client = await fixture.client()
    before = fixture.host.facts.snapshot()

    await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    assert await client.get(DATA, "State") == "PUBLISHED"
    published = (await client.get(DATA, "Publications"))["take"]
    assert {name: value.value for name, value in published.items()} | {"created_at": 0} == {
        "initiator": TAKE,
        "transport": "ISCSI",
        "access_mode": "SINGLE_NODE_WRITER",
        "readonly": False,
        "epoch": 1,
        "published_by": "uid 0 (dbus)",
        "created_at": 0,
    }

    await client.done(ROOT, MANAGER, "Connect", "ssa{sv}", "take", "data", {})
    await client.done(DATA, VOLUME, "Stage", "sa{sv}", "/stage", options(fs_type=("s", "xfs")))
    assert await client.get(DATA, "StagingPath") == "/stage"
    await client.done(DATA, VOLUME, "Mount", "sa{sv}", "/srv", options(readonly=("b", True)))
    assert await client.get(DATA, "State") == "MOUNTED"
    assert (await client.get(DATA, "Mounts"))["/srv"]["readonly"].value is True
    assert (await client.get(DATA, "Filesystem"))[:2] == ["READY", "xfs"]
    (figures,) = await client.call(DATA, VOLUME, "Stats")
    assert figures["bytes_total"] == GIB

    await client.done(DATA, VOLUME, "Resize", "ta{sv}", 2 * GIB, {})
    await client.done(DATA, VOLUME, "Grow", "a{sv}", {})
    assert await client.get(DATA, "CapacityBytes") == 2 * GIB
    await client.done(DATA, VOLUME, "Sync", "a{sv}", {})

    secrets = fixture.store.chap("data/take")
    await client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    said = repr([message.body for message in client.messages])
    assert not [
        secret for secret in (secrets.password, secrets.mutual_password) if secret.reveal() in said
    ]

    await client.done(DATA, VOLUME, "Unmount", "sa{sv}", "/srv", {})
    await client.done(DATA, VOLUME, "Unstage", "sa{sv}", "", {})
    await client.done(DATA, VOLUME, "Disconnect", "a{sv}", {})
    await client.done(DATA, VOLUME, "Unpublish", "sa{sv}", "", {})
    etag = options(etag=("s", await client.get(DATA, "Etag")))
    await client.done(DATA, VOLUME, "Delete", "a{sv}", etag)
    facts = fixture.host.facts.snapshot()
    assert {n: v for n, v in facts.items() if not n.startswith("content:")} == before


async def test_busctl(fixture: BusFixture) -> None:
    """Calls by busctl work, and print what a person needs."""
    client = await fixture.client()
    call = ("call", NAME)
    for typed in (
        (ROOT, MANAGER, "RegisterHost", "sa{sv}", "other", "1", "nqn", "s", NQN),
        (ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", str(GIB), "1", "thin", "b", "false"),
        (DATA, VOLUME, "Publish", "sa{sv}", "take", "0"),
        (DATA, VOLUME, "Update", "a{sv}", "1", "labels", "a{ss}", "1", "app", "db"),
    ):
        printed = await fixture.busctl(*call, *typed)
        assert printed.startswith('o "/org/zfsilo1/operation/_30')
        assert await client.end(printed.split('"')[1]) == "DONE"

    assert await fixture.busctl("get-property", NAME, DATA, VOLUME, "State") == 's "PUBLISHED"'
    assert (
        await fixture.busctl("get-property", NAME, DATA, VOLUME, "Labels") == 'a{ss} 1 "app" "db"'
    )
    assert await fixture.busctl(*call, ROOT, MANAGER, "GetVolume", "s", "data") == f'o "{DATA}"'
    listed = await fixture.busctl(*call, ROOT, MANAGER, "ListVolumes", "a{sv}", "0")
    assert listed == f'a(sost)s 1 "data" "{DATA}" "PUBLISHED" {GIB} ""'
    free = await fixture.busctl_json(*call, ROOT, MANAGER, "GetCapacity", "s", "")
    assert 0 < free[0] <= free[1]
    refused = await fixture.busctl(*call, DATA, VOLUME, "Delete", "a{sv}", "0")
    assert refused == "Call failed: data is published to take: unpublish it first"

    tree = await fixture.busctl("tree", "--list", NAME)
    assert tree.split() == [
        "/",
        "/org",
        "/org/zfsilo1",
        "/org/zfsilo1/host",
        path_of("host", "other"),
        path_of("host", "take"),
        "/org/zfsilo1/operation",
        "/org/zfsilo1/snapshot",
        "/org/zfsilo1/volume",
        DATA,
    ]
    shown = await fixture.busctl("introspect", "--list", NAME, DATA)
    assert 'State property s "PUBLISHED" emits-change' in " ".join(shown.split())
    assert await fixture.busctl("call", NAME, "/", "org.freedesktop.DBus.Peer", "Ping") == ""


async def test_hosts(fixture: BusFixture) -> None:
    """Hosts are registered, listed, updated and removed."""
    client = await fixture.client()
    path = path_of("host", "other")
    nqn = options(nqn=("s", NQN))
    await client.done(ROOT, MANAGER, "RegisterHost", "sa{sv}", "other", nqn)
    appeared = await client.heard("InterfacesAdded", 2)
    assert [signal.body[0] for signal in appeared].count(path) == 1
    assert await client.manager("GetHost", "s", "other") == path
    rows, token = await client.call(ROOT, MANAGER, "ListHosts", "a{sv}", {})
    assert (rows, token) == ([["other", path, ""], ["take", path_of("host", "take"), TAKE]], "")
    update = options(addresses=("as", ["10.0.0.2"]), max_attachments=("u", 3))
    await client.done(path, HOST, "Update", "a{sv}", update)
    (known,) = await client.call(path, PROPERTIES, "GetAll", "s", HOST)
    assert (known["Nqn"].value, known["Addresses"].value, known["MaxAttachments"].value) == (
        NQN,
        ["10.0.0.2"],
        3,
    )
    await client.done(ROOT, MANAGER, "DeleteHost", "sa{sv}", "other", {})
    assert (await client.try_call(path, HOST, "Update", "a{sv}", update)).error.endswith("NotFound")
    assert [signal.body[0] for signal in await client.heard("InterfacesRemoved", 4)].count(
        path
    ) == 1


# Signals


async def test_signals_of_a_volume(fixture: BusFixture) -> None:
    """Additions, changes and removals are signalled once, in a defined order."""
    client = await fixture.client()
    await create(fixture)
    (operation,) = (await client.heard("OperationFinished"))[0].body[:1]
    await client.heard("InterfacesRemoved")
    told = [(s.path, s.member, s.body[0]) for s in client.signals]
    assert told == [
        (ROOT, "InterfacesAdded", operation),
        (operation, "PropertiesChanged", OPERATION),
        (ROOT, "InterfacesAdded", DATA),
        (ROOT, "OperationFinished", operation),
        (ROOT, "InterfacesRemoved", operation),
    ]
    changed = client.signals[1].body[1]
    assert changed["State"].value == "DONE"
    assert not {"Progress", "Step", "Actions", "Id"} & set(changed)
    assert client.signals[2].body[1][VOLUME]["State"].value == "CREATED"
    assert client.signals[3].body[1:] == ["volumes/data", "DONE"]

    client.messages.clear()
    await client.call(DATA, VOLUME, "Update", "a{sv}", options(labels=("a{ss}", {"a": "b"})))
    await client.heard("InterfacesRemoved")
    about_data = [s for s in client.signals if s.path == DATA]
    assert {s.member for s in about_data} == {"PropertiesChanged"}
    assert about_data[-1].body[1]["Labels"].value == {"a": "b"}
    assert "Mode" not in about_data[-1].body[1]

    client.messages.clear()
    await client.call(DATA, VOLUME, "Delete", "a{sv}", {})
    removed = await client.heard("InterfacesRemoved", 2)
    assert removed[0].body == [DATA, [VOLUME]]
    busy = next(s for s in client.signals if s.path == DATA)
    assert busy.body[1]["Operation"].value == removed[1].body[0]


async def test_attachment_beside_its_volume(fixture: BusFixture) -> None:
    """An attachment of the id of a volume changes its object; one of another id adds an object."""
    client = await fixture.client()
    await create(fixture)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    copy = path_of("volume", "copy")
    for name, path in (("data", DATA), ("copy", copy)):
        client.messages.clear()
        local = options(local_name=("s", name))
        await client.done(ROOT, MANAGER, "Connect", "ssa{sv}", "take", "data", local)
        await client.heard("OperationFinished")
        added = 2 if name == "copy" else 1  # the operation appears in any case
        appeared = [s.body[0] for s in await client.heard("InterfacesAdded", added)]
        assert (path in appeared) == (name == "copy")
        await client.done(path, VOLUME, "Disconnect", "a{sv}", {})
    assert copy in [s.body[0] for s in await client.heard("InterfacesRemoved", 3)]
    assert await client.get(DATA, "State") == "PUBLISHED"


async def test_an_unchanged_request_finishes_after_the_reply(fixture: BusFixture) -> None:
    """A request without a change returns an operation, and then signals that it is done."""
    client = await fixture.client()
    await create(fixture)
    await client.heard("InterfacesRemoved")
    client.messages.clear()
    operation = await client.manager("CreateVolume", "sta{sv}", "data", GIB, {})
    finished = await client.heard("OperationFinished")
    assert client.messages[0].body == [operation]
    assert client.messages[0].message_type is MessageType.METHOD_RETURN
    assert [signal.body for signal in finished] == [[operation, "volumes/data", "DONE"]]
    assert await client.get(operation, "State") == "DONE"


# Operations


async def test_a_failure_is_rolled_back_and_signalled(fixture: BusFixture) -> None:
    """A failed operation has an error, and its end is signalled."""
    client = await fixture.client()
    fixture.host.facts.light_fuse(1, when="before", how="error")
    (operation,) = await client.call(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
    assert await client.end(operation) == "ROLLED_BACK"
    name, message, reason, facts = await client.get(operation, "Error")
    assert (name, reason) == (f"{NAME}.Error.CommandFailed", "COMMAND_FAILED")
    assert "fuse" in message
    assert facts == {"step": CREATE_ZVOL}
    assert await client.get(operation, "Progress") == 0
    finished = await client.heard("OperationFinished")
    assert finished[0].body == [operation, "volumes/data", "ROLLED_BACK"]
    assert (await client.try_call(DATA, VOLUME, "Stats")).error == f"{NAME}.Error.NotFound"


async def test_cancel_and_busy(fixture: BusFixture) -> None:
    """A running operation shows its actions, is joined by equal requests, and can be cancelled."""
    client = await fixture.client()
    fixture.launcher.gate.clear()
    arguments = (ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB)
    (operation,) = await client.call(*arguments, {})
    assert await client.get(operation, "State") == "RUNNING"
    assert await client.get(operation, "Step") == CREATE_ZVOL
    assert (await client.get(operation, "Actions"))[0] == ["do", CREATE_ZVOL, "PENDING"]
    assert await client.call(*arguments, {}) == [operation]
    rows, _token = await client.call(
        ROOT, MANAGER, "ListOperations", "a{sv}", options(state=("s", "RUNNING"))
    )
    assert rows == [[operation, "create", "volumes/data", "RUNNING"]]
    listed = await fixture.busctl("tree", "--list", NAME)
    assert operation in listed.split()
    (managed,) = await client.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    assert set(managed) == {operation, path_of("host", "take")}

    assert await client.call(operation, OPERATION, "Cancel") == []
    assert await client.end(operation) == "ROLLED_BACK"
    assert (await client.get(operation, "Error"))[0] == f"{NAME}.Error.Busy"
    assert await client.call(operation, OPERATION, "Cancel") == []


async def test_repair(fixture: BusFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that needs repair is signalled, and shown among the volume's conditions."""
    client = await fixture.client()
    await create(fixture)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "rollback", break_down)
        await check_needs_repair(fixture, client)
    operation = await client.get(DATA, "Operation")
    assert await client.call(operation, OPERATION, "Repair") == []
    finished = await client.heard("OperationFinished", 3)
    assert [signal.body[2] for signal in finished] == ["DONE", "NEEDS_REPAIR", "ROLLED_BACK"]
    assert await client.get(DATA, "Conditions") == []
    assert await client.get(DATA, "Operation") == "/"


async def check_needs_repair(fixture: BusFixture, client: BusClient) -> None:
    """Let an operation and its rollback fail, and check that both are shown."""
    fixture.host.facts.light_fuse(1, when="after", how="error")
    changes = options(properties=("a{ss}", {"compression": "zstd"}))
    (operation,) = await client.call(DATA, VOLUME, "Update", "a{sv}", changes)
    assert await client.end(operation) == "NEEDS_REPAIR"
    (condition,) = await client.get(DATA, "Conditions")
    assert "needs repair" in condition
    _kind, name = split(operation) or ("", "")
    assert f"zfsiloctl operation repair {name}" in condition
    assert await client.get(DATA, "Operation") == operation
    refused = await client.try_call(DATA, VOLUME, "Delete", "a{sv}", {})
    assert (refused.error, refused.body[1]) == (f"{NAME}.Error.Busy", "NEEDS_REPAIR")


@pytest.mark.parametrize(
    ("fact", "value", "part"),
    [
        ("zvol:tank/zfsilo/data", None, "tank/zfsilo/data"),  # LOST
        ("backstore:{}", {"dataset": "tank/other"}, "has another device"),  # CONFLICT
    ],
)
async def test_conditions_are_those_of_the_other_interfaces(
    fixture: BusFixture, fact: str, value: object, part: str
) -> None:
    """LOST and CONFLICT are shown in the words of gRPC, and vanish after the repair."""
    client = await fixture.client()
    await create(fixture)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    name = fact.format(*fixture.host.facts.names("backstore"))
    before = fixture.host.facts.get(name)
    fixture.host.facts.effect(name, value and before | value)
    await fixture.service.reconciler.sync_all("test")
    (condition,) = await client.get(DATA, "Conditions")
    assert part in condition
    with fixture.store.read() as txn:
        assert convert.volume(volume_view(txn, "data")).conditions == [condition]
    fixture.host.facts.effect(name, before)
    await fixture.service.reconciler.sync_all("test")
    assert await client.get(DATA, "Conditions") == []


def break_down(*_arguments: object, **_options: object) -> Operation:
    """Fail in place of a rollback."""
    raise CommandFailed("the tool to undo it is broken")


async def test_validate_only(fixture: BusFixture) -> None:
    """A plan can be read like an operation, and nothing is changed."""
    client = await fixture.client()
    only = options(validate_only=("b", True))
    (planned,) = await client.call(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, only)
    assert await client.get(planned, "State") == "PLANNED"
    assert [action[0] for action in await client.get(planned, "Actions")] == ["do"]
    assert (await client.try_call(ROOT, MANAGER, "GetVolume", "s", "data")).error
    for number in range(objects.MAX_PLANNED):
        await client.call(ROOT, MANAGER, "CreateVolume", "sta{sv}", f"v{number}", GIB, only)
    assert (await client.try_call(planned, PROPERTIES, "GetAll", "s", "")).error
    assert client.signals == []


# Errors


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
        ((path_of("operation", "0" * 26), OPERATION, "Cancel"), "NotFound"),
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


# Many


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
    monkeypatch.setattr(server, "MAX_CALLS", 2)
    client = await fixture.client()
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


# Access control


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
    with pytest.raises(Unavailable, match="another zfsilod runs"):
        await server.serve(fixture.address, fixture.service, version="2")
    client = await fixture.client()
    assert await client.get(ROOT, "Version") == "1.2.3"
    await create(fixture)
    assert len(await client.heard("OperationFinished")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_bus(fixture: BusFixture) -> None:
    """Without a bus the error contains its address."""
    with pytest.raises(Unavailable, match="unix:path=/nowhere cannot be reached"):
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
