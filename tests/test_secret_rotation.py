"""Rotation of secrets under a live session, and how the client gets the new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service_fixture import DEADLINE_S, ServiceFixture, administrator
from tests.test_service import CREATE, DOWN, PUBLISH, UP, attachment, raw_keys
from zfsilod.host.fake.secrets import digest
from zfsilod.model.errors import FailedPrecondition, NotFound, StoreCorrupt, Unavailable
from zfsilod.model.records import Attachment, Operation, Publication
from zfsilod.requests.connect import Connect
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.hosts import CreateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.rotate_secrets import RefreshSecrets, RotateSecrets
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.secret_rotation import SecretRotation
from zfsilod.storage.secrets import seal

if TYPE_CHECKING:
    from zfsilod.model.chap import Chap
    from zfsilod.model.words import AccessMode, Transport

ROTATE = RotateSecrets(volume="data", force=True)


def publication(fixture: ServiceFixture, name: str = "data/take") -> Publication:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Publication, name)
    assert record is not None
    return record


def secrets(fixture: ServiceFixture) -> Chap:
    return fixture.service.context.store.chap(publication(fixture).secret)


def kinds(fixture: ServiceFixture) -> list[str]:
    with fixture.service.context.store.read() as txn:
        return [operation.kind for operation in txn.scan(Operation)]


def session_name(fixture: ServiceFixture) -> str:
    (name,) = (name for name in fixture.host.facts.memory if name.startswith("session:"))
    return str(name)


def session(fixture: ServiceFixture) -> dict[str, str]:
    fact: dict[str, str] = fixture.host.facts.memory[session_name(fixture)]
    return fact


def break_session(fixture: ServiceFixture) -> None:
    name = session_name(fixture)
    fixture.host.facts.memory[name] = fixture.host.facts.memory[name] | {"lost": True}


async def refresh(fixture: ServiceFixture) -> None:
    await SecretRotation(fixture.service.context, fixture.service).follow()


async def test_a_rotation_keeps_session_and_publication(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    before, old, facts = publication(fixture), secrets(fixture), fixture.facts
    await fixture.do(ROTATE)
    after = publication(fixture)
    assert (after.rotation, after.epoch) == (1, before.epoch)
    assert secrets(fixture) != old
    changed = {name for name, fact in fixture.facts.items() if facts[name] != fact}
    assert {name.partition(":")[0] for name in changed} == {"acl", "zvol"}
    assert raw_keys(fixture, "secret") == [b"secret/data", b"secret/data/take#1"]


async def test_a_connected_host_rotates_when_it_refreshes(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    old = secrets(fixture)
    asked = await fixture.do(ROTATE.but(force=False))
    assert (asked.title, asked.actions) == (
        "ask take to use new secrets for data within a minute",
        (),
    )
    assert (publication(fixture).rotation, publication(fixture).rotation_due) == (0, True)
    assert secrets(fixture) == old
    await refresh(fixture)
    assert (publication(fixture).rotation, publication(fixture).rotation_due) == (1, False)
    assert secrets(fixture) != old
    assert session(fixture)["chap"] == digest(secrets(fixture))
    assert attachment(fixture).rotation == 1
    assert raw_keys(fixture, "secret") == [b"secret/data#1", b"secret/data/take#1"]


async def test_a_host_with_a_lost_session_does_not_rotate(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, ROTATE.but(force=False))
    break_session(fixture)
    await refresh(fixture)
    assert (publication(fixture).rotation, publication(fixture).rotation_due) == (0, True)


async def test_a_refusal_of_the_server_changes_nothing(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*UP, ROTATE.but(force=False))
    before, count = fixture.facts, len(kinds(fixture))

    async def refuse(*_words: str) -> None:
        raise FailedPrecondition("not now")

    monkeypatch.setattr(fixture.server, "rotate", refuse)
    await refresh(fixture)
    assert (fixture.facts, len(kinds(fixture))) == (before, count)


async def test_portals_that_are_not_told_stop_no_rotation(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of a poll may fail where the others do not, as with a server of an older version."""
    await fixture.do(UP[0], PUBLISH.but(transport="NVME"), *UP[2:], ROTATE.but(force=False))
    asked = []

    async def refuse(server: str, _transport: Transport, *, tls: bool) -> tuple[str, ...]:
        assert not tls
        asked.append(server)
        raise Unavailable("not now")

    monkeypatch.setattr(fixture.server, "portals", refuse)
    await refresh(fixture)
    assert asked == ["give"]
    assert (publication(fixture).rotation, attachment(fixture).rotation) == (1, 1)


async def test_forced_secrets_reach_the_session(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, ROTATE)
    assert session(fixture)["chap"] != digest(secrets(fixture))
    await refresh(fixture)
    assert session(fixture)["chap"] == digest(secrets(fixture))
    await refresh(fixture)
    assert kinds(fixture).count("refresh-secrets") == 1


async def test_the_next_login_uses_the_new_secrets(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, ROTATE)
    break_session(fixture)
    await refresh(fixture)
    assert attachment(fixture).rotation == 1
    assert fixture.service.context.store.chap(attachment(fixture).secret) == secrets(fixture)
    assert raw_keys(fixture, "secret") == [b"secret/data#1", b"secret/data/take#1"]
    await fixture.do(Disconnect(id="data", force=True), *DOWN[3:])
    assert raw_keys(fixture, "secret") == []


async def test_many_sessions_are_refreshed_in_one_operation(fixture: ServiceFixture) -> None:
    for name in ("data", "more"):
        await fixture.do(
            CREATE.but(id=name),
            PUBLISH.but(volume=name),
            Connect(id=name, server="give", volume=name),
            RotateSecrets(volume=name),
        )
    await refresh(fixture)
    assert kinds(fixture).count("refresh-secrets") == 1
    with fixture.service.context.store.read() as txn:
        assert [attached.rotation for attached in txn.scan(Attachment)] == [1, 1]


async def test_a_volume_with_a_running_operation_waits(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, ROTATE.but(force=False))
    fixture.launcher.gate.clear()
    grown = await fixture.service.submit(SyncVolume(id="data"), caller=administrator("a test"))
    await refresh(fixture)
    assert publication(fixture).rotation_due
    fixture.launcher.gate.set()
    await fixture.service.wait(grown.id, DEADLINE_S)


async def test_a_lost_session_with_current_secrets_needs_no_operation(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    break_session(fixture)
    before = kinds(fixture)
    await refresh(fixture)
    fixture.server.away = True
    await fixture.do(ROTATE)
    await refresh(fixture)
    assert kinds(fixture) == [*before, "rotate-secrets"]


async def test_a_new_connect_uses_the_new_secrets(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH, Connect(id="data", server="give", volume="data"), ROTATE)
    del fixture.host.facts.memory[session_name(fixture)]
    await fixture.do(Connect(id="data", server="give", volume="data"))
    assert attachment(fixture).rotation == 1


async def test_a_fenced_host_does_not_get_the_secrets_of_a_new_publication(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP, Unpublish(volume="data", host="take", fence=True), PUBLISH, ROTATE)
    await refresh(fixture)
    assert attachment(fixture).rotation == 0
    request = RefreshSecrets(server="give", ids=("data",))
    submitted = await fixture.service.submit(request, caller=administrator("a test"))
    await fixture.service.wait(submitted.id, DEADLINE_S)
    assert attachment(fixture).rotation == 0


async def test_a_wrong_key_is_reported_and_stops_nothing_else(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    name, store = publication(fixture).secret, fixture.service.context.store
    sealed = seal(bytes(32), name, store.chap(name))
    await fixture.service.context.write(lambda txn: txn.put_raw("secret", name, sealed))
    with pytest.raises(StoreCorrupt, match="cannot be decrypted with the key"):
        secrets(fixture)
    report = await fixture.service.reconciler.report("data")
    assert [problem.reason for problem in report.problems] == ["UNKNOWN"]


async def test_a_rotation_of_one_host(fixture: ServiceFixture) -> None:
    modes: tuple[AccessMode, ...] = ("MULTI_NODE_READER_ONLY",)
    read = Publish(volume="data", host="take", access_mode="MULTI_NODE_READER_ONLY")
    await fixture.do(
        CreateVolume(id="data", capacity_bytes=1 << 30, access_modes=modes),
        CreateHost(id="other", iqn="iqn.2024-01.lab.other:host"),
        read,
        read.but(host="other"),
        ROTATE.but(host="other"),
        ROTATE,
    )
    assert publication(fixture).rotation == 1
    assert publication(fixture, "data/other").rotation == 2


async def test_a_rotation_needs_a_publication(fixture: ServiceFixture) -> None:
    with pytest.raises(NotFound):
        await fixture.do(ROTATE)
    with pytest.raises(FailedPrecondition, match="published to no host"):
        await fixture.do(CREATE, ROTATE)
    with pytest.raises(FailedPrecondition):
        await fixture.do(ROTATE.but(host="take"))
