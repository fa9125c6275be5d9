"""D-Bus methods, signals and operations, called through busctl and dbus-next."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from dbus_next import MessageType

from tests.api.dbus_fixture import (
    CREATE_ZVOL,
    DATA,
    GIB,
    NQN,
    OBJECT_MANAGER,
    PROPERTIES,
    BusClient,
    BusFixture,
    create,
    options,
)
from tests.examples import TAKE
from tests.service_fixture import administrator
from zfsilod.api.dbus import objects
from zfsilod.api.dbus.contract import (
    HOST,
    MANAGER,
    NAME,
    OPERATION,
    REPLICATION_POLICY,
    ROOT,
    SNAPSHOT_POLICY,
    VOLUME,
    path_of,
    split,
)
from zfsilod.engine import worker
from zfsilod.model.errors import CommandFailed
from zfsilod.service.replication import Transfer
from zfsilod.storage.volume_view import volume_view
from zfsilod.wire import convert

if TYPE_CHECKING:
    from zfsilod.model.records import Operation

pytestmark = pytest.mark.skipif(
    not (shutil.which("dbus-daemon") and shutil.which("busctl")),
    reason="needs dbus-daemon and busctl",
)


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
        "tls": False,
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

    old = options(etag=("s", "1"))
    for method, *path in (
        *(("Publish", "take"), ("Unpublish", "take"), ("Stage", ""), ("Unstage", "")),
        *(("Mount", "/srv"), ("Unmount", "/srv"), ("Detach",), ("Disconnect",), ("Grow",)),
    ):
        signature = "sa{sv}" if path else "a{sv}"
        stale = await client.try_call(DATA, VOLUME, method, signature, *path, old)
        assert (stale.error, stale.body[1]) == (f"{NAME}.Error.Busy", "ETAG"), method

    await client.done(DATA, VOLUME, "Unmount", "sa{sv}", "/srv", {})
    await client.done(DATA, VOLUME, "Unstage", "sa{sv}", "", {})
    await client.done(DATA, VOLUME, "Disconnect", "a{sv}", {})
    await client.done(DATA, VOLUME, "Unpublish", "sa{sv}", "", {})
    etag = options(etag=("s", await client.get(DATA, "Etag")))
    await client.done(DATA, VOLUME, "Delete", "a{sv}", etag)
    facts = fixture.host.facts.snapshot()
    assert {n: v for n, v in facts.items() if not n.startswith("content:")} == before


async def test_limits_of_a_volume(fixture: BusFixture) -> None:
    client = await fixture.client()
    asked = options(limit_read_iops=("t", 500), limit_write_bytes=("t", 20 << 20))
    await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, asked)
    assert await client.get(DATA, "LimitReadIops") == 500
    assert await client.get(DATA, "LimitWriteBytes") == 20 << 20
    assert await client.get(DATA, "LimitReadBytes") == 0
    await client.done(DATA, VOLUME, "Update", "a{sv}", options(limit_read_iops=("t", 0)))
    assert await client.get(DATA, "LimitReadIops") == 0
    assert await client.get(DATA, "LimitWriteBytes") == 20 << 20


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
        "/org/zfsilo1/policy",
        "/org/zfsilo1/replication",
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


async def test_snapshot_policies(fixture: BusFixture) -> None:
    """A policy is created, changed, run and deleted; its snapshots stay."""
    client = await fixture.client()
    await create(fixture)
    path = path_of("policy", "nightly")
    typed = ("nightly", "daily", "7x1d", options(max_delay_seconds=("u", 60)))
    await client.done(ROOT, MANAGER, "CreateSnapshotPolicy", "sssa{sv}", *typed)
    appeared = await client.heard("InterfacesAdded", 2)
    assert [signal.body[0] for signal in appeared].count(path) == 1
    assert await client.manager("GetSnapshotPolicy", "s", "nightly") == path
    (rows,) = await client.call(ROOT, MANAGER, "ListSnapshotPolicies")
    assert rows == [["nightly", path, "daily", "7x1d"]]

    etag = await client.get(path, "Etag")
    update = options(selector=("a{ss}", {"app": "db"}), etag=("s", etag))
    await client.done(path, SNAPSHOT_POLICY, "Update", "a{sv}", update)
    stale = await client.try_call(path, SNAPSHOT_POLICY, "Update", "a{sv}", update)
    assert (stale.error, stale.body[1]) == (f"{NAME}.Error.Busy", "ETAG")
    assert await client.call(path, SNAPSHOT_POLICY, "Run", "a{sv}", {}) == [[]]
    everything = options(selector=("a{ss}", {}))
    wrong = await client.try_call(path, SNAPSHOT_POLICY, "Update", "a{sv}", everything)
    assert (wrong.error, wrong.body[1]) == (f"{NAME}.Error.InvalidArgument", "SELECTS_ALL")
    everything |= options(select_all=("b", True))
    await client.done(path, SNAPSHOT_POLICY, "Update", "a{sv}", everything)
    ((taken,),) = await client.call(path, SNAPSHOT_POLICY, "Run", "a{sv}", {})
    assert await client.end(taken) == "DONE"

    (known,) = await client.call(path, PROPERTIES, "GetAll", "s", SNAPSHOT_POLICY)
    values = {name: variant.value for name, variant in known.items()}
    assert (values["Selector"], values["MaxDelaySeconds"], values["Failures"]) == ({}, 60, [])
    assert 0 < values["SucceededAt"] == values["RunAt"]
    (snapshots, _token) = await client.call(ROOT, MANAGER, "ListSnapshots", "a{sv}", {})
    assert [row[2] for row in snapshots] == ["data"]
    await client.done(path, SNAPSHOT_POLICY, "Delete", "a{sv}", {})
    gone = await client.try_call(path, SNAPSHOT_POLICY, "Run", "a{sv}", {})
    assert gone.error == f"{NAME}.Error.NotFound"
    assert (await client.call(ROOT, MANAGER, "ListSnapshots", "a{sv}", {}))[0] == snapshots


async def test_replication_policies(fixture: BusFixture) -> None:
    client = await fixture.client()
    await create(fixture)
    path = path_of("replication", "hourly")
    typed = ("hourly", "other", "hourly", options(volumes=("as", ["gone"])))
    await client.done(ROOT, MANAGER, "CreateReplicationPolicy", "sssa{sv}", *typed)
    appeared = await client.heard("InterfacesAdded", 2)
    assert [signal.body[0] for signal in appeared].count(path) == 1
    assert await client.manager("GetReplicationPolicy", "s", "hourly") == path
    (rows,) = await client.call(ROOT, MANAGER, "ListReplicationPolicies")
    assert rows == [["hourly", path, "other", "hourly"]]
    etag = await client.get(path, "Etag")
    update = options(bytes_per_second=("t", 1 << 20), etag=("s", etag))
    await client.done(path, REPLICATION_POLICY, "Update", "a{sv}", update)
    failed = await client.try_call(path, REPLICATION_POLICY, "Run", "a{sv}", {})
    assert (failed.error, failed.body[1]) == (f"{NAME}.Error.Unavailable", "POLICY_FAILED")
    (known,) = await client.call(path, PROPERTIES, "GetAll", "s", REPLICATION_POLICY)
    values = {name: variant.value for name, variant in known.items()}
    assert (values["Peer"], values["BytesPerSecond"]) == ("other", 1 << 20)
    assert (values["Volumes"], values["Running"]) == (["gone"], False)
    assert values["Failures"][0].startswith("gone: ")
    unnamed = options(volumes=("as", []))
    wrong = await client.try_call(path, REPLICATION_POLICY, "Update", "a{sv}", unnamed)
    assert (wrong.error, wrong.body[1]) == (f"{NAME}.Error.InvalidArgument", "SELECTS_ALL")
    labelled = unnamed | options(selector=("a{ss}", {"a": "b"}))
    await client.done(path, REPLICATION_POLICY, "Update", "a{sv}", labelled)
    assert await client.call(path, REPLICATION_POLICY, "Run", "a{sv}", {}) == [[]]
    assert await client.get(path, "SucceededAt") == await client.get(path, "RunAt")
    await client.done(path, REPLICATION_POLICY, "Delete", "a{sv}", {})
    gone = await client.try_call(path, REPLICATION_POLICY, "Run", "a{sv}", {})
    assert gone.error == f"{NAME}.Error.NotFound"


async def test_the_stream_of_an_operation(fixture: BusFixture) -> None:
    client = await fixture.client()
    operation = await client.done(ROOT, MANAGER, "CreateVolume", "sta{sv}", "data", GIB, {})
    assert await client.get(operation, "Transfer") == [0, 0, 0]
    transfer = Transfer(sent_bytes=5, total_bytes=9, rate=2)
    _kind, operation_id = split(operation) or ("", "")
    fixture.service.replicator.transfers[operation_id] = transfer
    assert await client.get(operation, "Transfer") == [5, 9, 2]


# Signals


async def test_signals_of_a_volume(fixture: BusFixture) -> None:
    """Additions, changes and removals are signalled once, in a defined order."""
    client = await fixture.client()
    await create(fixture)
    (operation,) = (await client.heard("OperationFinished"))[0].body[:1]
    await client.heard("InterfacesRemoved")
    signals = [(s.path, s.member, s.body[0]) for s in client.signals]
    assert signals == [
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
    assert set(about_data[-1].body[1]) - {"UpdatedAt"} == {"Etag", "Labels", "Operation"}

    client.messages.clear()
    await client.call(DATA, VOLUME, "Delete", "a{sv}", {})
    removed = await client.heard("InterfacesRemoved", 2)
    assert removed[0].body == [DATA, [VOLUME]]
    busy = next(s for s in client.signals if s.path == DATA)
    assert set(busy.body[1]) == {"Operation"}  # of the properties only those that have changed
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

    assert await client.call(operation, OPERATION, "Cancel", "a{sv}", {}) == []
    assert await client.end(operation) == "ROLLED_BACK"
    assert (await client.get(operation, "Error"))[0] == f"{NAME}.Error.Busy"
    assert await client.call(operation, OPERATION, "Cancel", "a{sv}", {}) == []


async def test_repair(fixture: BusFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that needs repair is signalled, and shown among the volume's conditions."""
    client = await fixture.client()
    await create(fixture)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "rollback", break_down)
        await check_needs_repair(fixture, client)
    operation = await client.get(DATA, "Operation")
    assert await client.call(operation, OPERATION, "Repair", "a{sv}", {}) == []
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
    assert await client.get(DATA, "ConditionReasons") == ["NEEDS_REPAIR"]
    assert await client.get(DATA, "Operation") == operation
    refused = await client.try_call(DATA, VOLUME, "Delete", "a{sv}", {})
    assert (refused.error, refused.body[1]) == (f"{NAME}.Error.Busy", "NEEDS_REPAIR")


@pytest.mark.parametrize(
    ("fact", "value", "part", "reason"),
    [
        ("zvol:tank/zfsilo/data", None, "tank/zfsilo/data", "LOST"),
        ("backstore:{}", {"dataset": "tank/other"}, "has another device", "CONFLICT"),
    ],
)
async def test_conditions_are_those_of_the_other_interfaces(
    fixture: BusFixture, fact: str, value: object, part: str, reason: str
) -> None:
    """LOST and CONFLICT are shown in the words of gRPC, and vanish after the repair."""
    client = await fixture.client()
    await create(fixture)
    await client.done(DATA, VOLUME, "Publish", "sa{sv}", "take", {})
    name = fact.format(*fixture.host.facts.names("backstore"))
    before = fixture.host.facts.get(name)
    fixture.host.facts.effect(name, value and before | value)
    await fixture.service.reconciler.sync_all(administrator("test"))
    (condition,) = await client.get(DATA, "Conditions")
    assert part in condition
    assert await client.get(DATA, "ConditionReasons") == [reason]
    with fixture.store.read() as txn:
        shown = convert.volume(volume_view(txn, "data"))
    assert shown.conditions == [condition]
    assert shown.condition_reasons == [reason]
    fixture.host.facts.effect(name, before)
    await fixture.service.reconciler.sync_all(administrator("test"))
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
