"""A server that moves to another address: its clients take the present portals over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.examples import HOW
from tests.service_fixture import SETTINGS, administrator
from zfsilod.host.fake.iscsi import MULTIPATHD
from zfsilod.model.errors import Unavailable
from zfsilod.model.records import Attachment, Condition, Operation
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.context import recorded_portals
from zfsilod.service.secret_rotation import SecretRotation
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.host.fake.iscsi import FakeIscsi
    from zfsilod.model.words import Transport

MOVED, BESIDE = ("10.77.0.9:3260",), "10.88.0.1:3260"
CONNECT = Connect(id="data", server="give", volume="data", restore="BOOT")
UP = (
    CreateVolume(id="data", capacity_bytes=1 << 30),
    Publish(volume="data", host="take"),
    CONNECT,
    Stage(id="data"),
    MountAt(id="data", path="/srv/data"),
)


def move(fixture: ServiceFixture, *, lose: bool) -> None:
    """Give the server other portals, after which the sessions may be lost."""
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(portals=MOVED))
    facts = fixture.host.facts
    for target in facts.names("session") if lose else ():
        facts.effect(f"session:{target}", facts.get(f"session:{target}") | {"lost": True})


def refuse(_self: FakeIscsi, *_args: object) -> None:
    raise Unavailable("the session did not come back")


def refuse_connect(*_args: object, **_options: object) -> None:
    raise Unavailable("nothing answers")


def operations(fixture: ServiceFixture) -> int:
    with fixture.service.context.store.read() as txn:
        return sum(1 for _operation in txn.scan(Operation))


def attachment(fixture: ServiceFixture) -> Attachment:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    return record


def node(fixture: ServiceFixture) -> tuple[str, ...]:
    (target,) = fixture.host.facts.names("node")
    return tuple(fixture.host.facts.get(f"node:{target}")["portals"])


async def follow(fixture: ServiceFixture) -> None:
    await SecretRotation(fixture.service.context, fixture.service).follow()


async def test_a_connect_takes_other_portals_over(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    move(fixture, lose=False)
    operation = await fixture.do(CONNECT)
    assert attachment(fixture).portals == node(fixture) == MOVED
    assert any(action.status == "DONE" for action in operation.actions)
    mounts = fixture.host.facts.names("mount")
    assert "/srv/data" in mounts
    again = await fixture.do(CONNECT)
    assert not any(action.status == "DONE" for action in again.actions)


async def test_a_connect_without_the_server_is_judged_by_the_records(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    fixture.server.away = True
    assert (await fixture.do(CONNECT)).state == "DONE"


async def test_the_portals_in_use_are_those_of_the_attachments(fixture: ServiceFixture) -> None:
    store = fixture.service.context.store
    assert recorded_portals(store, "give") == set()
    await fixture.do(*UP[:3])
    assert recorded_portals(store, "give") == set(HOW.portals)
    assert recorded_portals(store, "other") == set()


async def test_a_lost_session_follows_its_server_with_its_mounts(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    mounts = {name: fixture.facts[name] for name in fixture.facts if name.startswith("mount:")}
    move(fixture, lose=True)
    await follow(fixture)
    assert attachment(fixture).portals == node(fixture) == MOVED
    assert fixture.host.iscsi.portal(attachment(fixture).disk) == MOVED[0]
    assert not fixture.host.iscsi.is_lost(attachment(fixture).disk)
    assert mounts.items() <= fixture.facts.items()


async def test_a_live_session_is_left_alone(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    before = fixture.facts
    move(fixture, lose=False)
    await follow(fixture)
    assert fixture.facts == before


async def test_a_live_disk_over_nvme_gets_the_paths(fixture: ServiceFixture) -> None:
    await fixture.do(UP[0], Publish(volume="data", host="take", transport="NVME"), *UP[2:])
    mounts = {name: fixture.facts[name] for name in fixture.facts if name.startswith("mount:")}
    more = (*HOW.nvme_portals, "10.88.0.1:4420")
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(nvme_portals=more))
    await follow(fixture)
    assert attachment(fixture).portals == more
    (session,) = fixture.host.facts.of_kind("session").values()
    assert session["beside"] == ["10.88.0.1:4420"]
    assert mounts.items() <= fixture.facts.items()


async def connect_over_two(fixture: ServiceFixture) -> Attachment:
    """Mount a volume over iSCSI whose server has two portals, on a client with multipathd."""
    fixture.host.facts.memory[MULTIPATHD] = True
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(portals=(*HOW.portals, BESIDE)))
    await fixture.do(*UP)
    return attachment(fixture)


async def test_the_sessions_at_two_portals_are_one_disk(fixture: ServiceFixture) -> None:
    disk = (await connect_over_two(fixture)).disk
    (session,) = fixture.host.facts.of_kind("session").values()
    assert (session["map"], session["beside"]) == (True, [BESIDE])
    assert await fixture.service.stats.broken_sessions() == {}
    assert fixture.host.iscsi.has_paths(disk)
    await fixture.do(Disconnect(id="data", force=True))
    assert not fixture.host.facts.of_kind("session")
    assert not fixture.host.facts.of_kind("node")


async def test_a_live_map_follows_its_server(fixture: ServiceFixture) -> None:
    await connect_over_two(fixture)
    mounts = {name: fixture.facts[name] for name in fixture.facts if name.startswith("mount:")}
    now = (BESIDE, *MOVED)
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(portals=now))
    await follow(fixture)
    assert attachment(fixture).portals == node(fixture) == now
    (session,) = fixture.host.facts.of_kind("session").values()
    assert (session["portal"], session["beside"]) == (BESIDE, [*MOVED])
    assert mounts.items() <= fixture.facts.items()


async def test_a_path_joins_a_map_when_its_portal_answers(fixture: ServiceFixture) -> None:
    fixture.host.iscsi.closed = (BESIDE,)
    await connect_over_two(fixture)
    (session,) = fixture.host.facts.of_kind("session").values()
    assert "beside" not in session
    fixture.host.iscsi.closed = ()
    await follow(fixture)
    (session,) = fixture.host.facts.of_kind("session").values()
    assert session["beside"] == [BESIDE]


async def test_a_map_whose_multipathd_has_stopped_says_so(fixture: ServiceFixture) -> None:
    await connect_over_two(fixture)
    del fixture.host.facts.memory[MULTIPATHD]
    (sentence,) = (await fixture.service.stats.broken_sessions()).values()
    assert "multipathd does not run" in sentence


async def test_without_multipathd_a_disk_has_one_path_and_keeps_it(
    fixture: ServiceFixture,
) -> None:
    """Also when multipathd is started later: a mounted disk never becomes another device."""
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(portals=(*HOW.portals, BESIDE)))
    await fixture.do(*UP)
    (sentence,) = (await fixture.service.stats.broken_sessions()).values()
    assert "uses one of its 2 portals" in sentence
    with fixture.service.context.read() as txn:
        stats = await fixture.service.stats.sample(volume_view(txn, "data"))
    assert [problem.reason for problem in stats.problems] == ["ONE_PATH"]
    fixture.host.facts.memory[MULTIPATHD] = True
    before = fixture.facts
    await follow(fixture)
    await fixture.service.reconciler.sync_all(caller=administrator("pass"))
    await fixture.do(CONNECT)
    assert fixture.facts == before


@pytest.mark.parametrize("transport", ["ISCSI", "NVME"])
async def test_a_new_portal_that_fails_leaves_the_former_ones(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, transport: Transport
) -> None:
    """Clients are connected at them: no rollback may close them."""
    await fixture.do(UP[0], Publish(volume="data", host="take", transport=transport))
    listening = fixture.host.facts.of_kind("portals")
    more = HOW.but(
        portals=(*HOW.portals, "10.88.0.1:3260"), nvme_portals=(*HOW.nvme_portals, "10.88.0.1:4420")
    )
    fixture.service.context.settings = SETTINGS.but(export=more)
    adapter = fixture.host.nvmet if transport == "NVME" else fixture.host.lio
    monkeypatch.setattr(adapter, "add_portals", refuse_connect)
    result = await fixture.service.reconciler.sync_all(caller=administrator("pass"))
    assert [volume for volume, _why in result.complaints] == ["data"]
    assert fixture.host.facts.of_kind("portals") == listening
    monkeypatch.undo()
    await fixture.service.reconciler.sync_all(caller=administrator("pass"))
    (portals,) = fixture.host.facts.of_kind("portals").values()
    assert len(portals) == 2


async def test_a_path_is_added_when_its_portal_answers(fixture: ServiceFixture) -> None:
    fixture.host.nvme.closed = ("10.88.0.1:4420",)
    more = (*HOW.nvme_portals, "10.88.0.1:4420")
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(nvme_portals=more))
    await fixture.do(UP[0], Publish(volume="data", host="take", transport="NVME"), *UP[2:])
    (session,) = fixture.host.facts.of_kind("session").values()
    assert "beside" not in session
    await fixture.service.reconciler.sync_all(caller=administrator("pass"))
    assert fixture.host.facts.of_kind("session") == {attachment(fixture).disk.target: session}
    fixture.host.nvme.closed = ()
    await fixture.service.reconciler.sync_all(caller=administrator("pass"))
    (session,) = fixture.host.facts.of_kind("session").values()
    assert session["beside"] == ["10.88.0.1:4420"]


async def test_a_portal_that_answers_later_is_tried_at_a_poll(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvme, asked = fixture.host.nvme, SecretRotation(fixture.service.context, fixture.service)
    nvme.closed = ("10.88.0.1:4420",)
    more = (*HOW.nvme_portals, "10.88.0.1:4420")
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(nvme_portals=more))
    await fixture.do(UP[0], Publish(volume="data", host="take", transport="NVME"), *UP[2:])
    before = fixture.facts
    await asked.follow()
    assert fixture.facts == before
    nvme.closed = ()
    monkeypatch.setattr(nvme, "connect", refuse_connect)
    await asked.follow()
    count = operations(fixture)
    await asked.follow()
    assert operations(fixture) == count, "it is not tried at each poll"
    monkeypatch.undo()
    await SecretRotation(fixture.service.context, fixture.service).follow()
    (session,) = fixture.host.facts.of_kind("session").values()
    assert session["beside"] == ["10.88.0.1:4420"]


async def test_a_session_that_does_not_come_back_keeps_its_record(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation is rolled back: the node record exists, and names the former portals."""
    await fixture.do(*UP)
    before = fixture.facts
    move(fixture, lose=True)
    monkeypatch.setattr(fixture.host.iscsi, "follow", refuse.__get__(fixture.host.iscsi))
    await follow(fixture)
    await asyncio.gather(*fixture.launcher.tasks.values())
    with fixture.service.context.store.read() as txn:
        assert list(txn.live()) == []
    assert node(fixture) == tuple(SETTINGS.export.portals)
    assert set(fixture.facts) == set(before)
    assert attachment(fixture).portals == SETTINGS.export.portals


async def test_a_fenced_session_does_not_follow(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    record = attachment(fixture)
    await fixture.service.context.write(lambda txn: txn.put(record.but(epoch=record.epoch - 1)))
    move(fixture, lose=True)
    await follow(fixture)
    assert attachment(fixture).portals == HOW.portals


async def test_a_session_that_cannot_follow_is_a_condition(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*UP)
    move(fixture, lose=True)
    monkeypatch.setattr(fixture.host.iscsi, "follow", refuse.__get__(fixture.host.iscsi))
    await follow(fixture)
    with fixture.service.context.store.read() as txn:
        (condition,) = txn.scan(Condition)
    (sentence,) = condition.sentences
    assert HOW.portals[0] in sentence
    assert MOVED[0] in sentence
    assert "systemctl restart zfsilo-volume@data.service" in sentence


async def test_a_restart_is_not_advised_for_a_live_disk(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would unmount a volume that works."""
    await fixture.do(UP[0], Publish(volume="data", host="take", transport="NVME"), *UP[2:])
    more = (*HOW.nvme_portals, "10.88.0.1:4420")
    fixture.service.context.settings = SETTINGS.but(export=HOW.but(nvme_portals=more))
    monkeypatch.setattr(fixture.host.nvme, "connect", refuse_connect)
    await follow(fixture)
    with fixture.service.context.store.read() as txn:
        (condition,) = txn.scan(Condition)
    (sentence,) = condition.sentences
    assert more[1] in sentence
    assert "tries again" in sentence
    assert "restart" not in sentence
