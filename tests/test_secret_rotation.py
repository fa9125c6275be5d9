"""New secrets under a live session, and how a consumer comes to know them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.doubles import DEADLINE_S, House
from tests.test_service import CREATE, DOWN, PUBLISH, UP, attachment, raw_keys
from zfsilod.host.fake.secrets import digest
from zfsilod.model.errors import FailedPrecondition, NotFound, StoreCorrupt
from zfsilod.model.records import Attachment, Operation, Publication
from zfsilod.requests.attach import Connect
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
    from zfsilod.model.records import AccessMode

ROTATE = RotateSecrets(volume="data", force=True)


def publication(zfsilo: House, name: str = "data/take") -> Publication:
    with zfsilo.service.context.store.read() as txn:
        record = txn.get(Publication, name)
    assert record is not None
    return record


def secrets(zfsilo: House) -> Chap:
    return zfsilo.service.context.store.chap(publication(zfsilo).secret)


def kinds(zfsilo: House) -> list[str]:
    with zfsilo.service.context.store.read() as txn:
        return [operation.kind for operation in txn.scan(Operation)]


def session_name(zfsilo: House) -> str:
    (name,) = (name for name in zfsilo.host.facts.memory if name.startswith("session:"))
    return name


def session(zfsilo: House) -> dict[str, str]:
    fact: dict[str, str] = zfsilo.host.facts.memory[session_name(zfsilo)]
    return fact


def break_session(zfsilo: House) -> None:
    name = session_name(zfsilo)
    zfsilo.host.facts.memory[name] = zfsilo.host.facts.memory[name] | {"lost": True}


async def refresh(zfsilo: House) -> None:
    await SecretRotation(zfsilo.service.context, zfsilo.service).follow()


async def test_the_session_lives_on_and_the_holder_stays_the_holder(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    before, old, facts = publication(zfsilo), secrets(zfsilo), zfsilo.facts
    await zfsilo.do(ROTATE)
    after = publication(zfsilo)
    assert (after.rotation, after.epoch) == (1, before.epoch)
    assert secrets(zfsilo) != old
    changed = {name for name, fact in zfsilo.facts.items() if facts[name] != fact}
    assert {name.partition(":")[0] for name in changed} == {"acl"}
    assert raw_keys(zfsilo, "secret") == [b"secret/data", b"secret/data/take#1"]


async def test_a_host_that_is_logged_in_takes_them_when_it_looks(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    old = secrets(zfsilo)
    asked = await zfsilo.do(ROTATE.but(force=False))
    assert (asked.title, asked.actions) == (
        "ask take to use new secrets for data within a minute",
        (),
    )
    assert (publication(zfsilo).rotation, publication(zfsilo).rotation_due) == (0, True)
    assert secrets(zfsilo) == old
    await refresh(zfsilo)
    assert (publication(zfsilo).rotation, publication(zfsilo).rotation_due) == (1, False)
    assert secrets(zfsilo) != old
    assert session(zfsilo)["chap"] == digest(secrets(zfsilo))
    assert attachment(zfsilo).rotation == 1
    assert raw_keys(zfsilo, "secret") == [b"secret/data#1", b"secret/data/take#1"]


async def test_a_host_whose_session_is_lost_is_not_asked(zfsilo: House) -> None:
    await zfsilo.do(*UP, ROTATE.but(force=False))
    break_session(zfsilo)
    await refresh(zfsilo)
    assert (publication(zfsilo).rotation, publication(zfsilo).rotation_due) == (0, True)


async def test_a_server_that_makes_none_leaves_the_session_as_it_is(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(*UP, ROTATE.but(force=False))
    before, count = zfsilo.facts, len(kinds(zfsilo))

    async def refuse(*_words: str) -> None:
        raise FailedPrecondition("not now")

    monkeypatch.setattr(zfsilo.server, "rotate", refuse)
    await refresh(zfsilo)
    assert (zfsilo.facts, len(kinds(zfsilo))) == (before, count)


async def test_secrets_that_were_forced_reach_the_session(zfsilo: House) -> None:
    await zfsilo.do(*UP, ROTATE)
    assert session(zfsilo)["chap"] != digest(secrets(zfsilo))
    await refresh(zfsilo)
    assert session(zfsilo)["chap"] == digest(secrets(zfsilo))
    await refresh(zfsilo)
    assert kinds(zfsilo).count("refresh-secrets") == 1


async def test_the_next_login_is_with_the_new_ones(zfsilo: House) -> None:
    await zfsilo.do(*UP, ROTATE)
    break_session(zfsilo)
    await refresh(zfsilo)
    assert attachment(zfsilo).rotation == 1
    assert zfsilo.service.context.store.chap(attachment(zfsilo).secret) == secrets(zfsilo)
    assert raw_keys(zfsilo, "secret") == [b"secret/data#1", b"secret/data/take#1"]
    await zfsilo.do(Disconnect(id="data", force=True), *DOWN[3:])
    assert raw_keys(zfsilo, "secret") == []


async def test_many_sessions_are_one_operation(zfsilo: House) -> None:
    for name in ("data", "more"):
        await zfsilo.do(
            CREATE.but(id=name),
            PUBLISH.but(volume=name),
            Connect(id=name, server="give", volume=name),
            RotateSecrets(volume=name),
        )
    await refresh(zfsilo)
    assert kinds(zfsilo).count("refresh-secrets") == 1
    with zfsilo.service.context.store.read() as txn:
        assert [attached.rotation for attached in txn.scan(Attachment)] == [1, 1]


async def test_what_something_is_at_work_on_waits(zfsilo: House) -> None:
    await zfsilo.do(*UP, ROTATE.but(force=False))
    zfsilo.launcher.gate.clear()
    grown = await zfsilo.service.submit(SyncVolume(id="data"), caller="a test")
    await refresh(zfsilo)
    assert publication(zfsilo).rotation_due
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(grown.id, DEADLINE_S)


async def test_a_lost_session_whose_secrets_stand_makes_no_operation(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    break_session(zfsilo)
    before = kinds(zfsilo)
    await refresh(zfsilo)
    zfsilo.server.away = True
    await zfsilo.do(ROTATE)
    await refresh(zfsilo)
    assert kinds(zfsilo) == [*before, "rotate-secrets"]


async def test_who_connects_again_logs_in_with_the_new_ones(zfsilo: House) -> None:
    await zfsilo.do(CREATE, PUBLISH, Connect(id="data", server="give", volume="data"), ROTATE)
    del zfsilo.host.facts.memory[session_name(zfsilo)]
    await zfsilo.do(Connect(id="data", server="give", volume="data"))
    assert attachment(zfsilo).rotation == 1


async def test_a_fenced_host_does_not_learn_the_secrets_of_its_successor(zfsilo: House) -> None:
    await zfsilo.do(*UP, Unpublish(volume="data", host="take", fence=True), PUBLISH, ROTATE)
    await refresh(zfsilo)
    assert attachment(zfsilo).rotation == 0
    request = RefreshSecrets(server="give", ids=("data",))
    begun = await zfsilo.service.submit(request, caller="a test")
    await zfsilo.service.wait(begun.id, DEADLINE_S)
    assert attachment(zfsilo).rotation == 0


async def test_a_key_that_is_another_is_said_and_stops_nothing_else(zfsilo: House) -> None:
    await zfsilo.do(CREATE, PUBLISH)
    name, store = publication(zfsilo).secret, zfsilo.service.context.store
    sealed = seal(bytes(32), name, store.chap(name))
    await zfsilo.service.context.write(lambda txn: txn.put_raw("secret", name, sealed))
    with pytest.raises(StoreCorrupt, match="do not open with the key"):
        secrets(zfsilo)
    report = await zfsilo.service.reconciler.report("data")
    assert [problem.reason for problem in report.problems] == ["UNKNOWN"]


async def test_one_host_only(zfsilo: House) -> None:
    modes: tuple[AccessMode, ...] = ("MULTI_NODE_READER_ONLY",)
    read = Publish(volume="data", host="take", access_mode="MULTI_NODE_READER_ONLY")
    await zfsilo.do(
        CreateVolume(id="data", capacity_bytes=1 << 30, access_modes=modes),
        CreateHost(id="other", iqn="iqn.2024-01.lab.other:host"),
        read,
        read.but(host="other"),
        ROTATE.but(host="other"),
        ROTATE,
    )
    assert publication(zfsilo).rotation == 1
    assert publication(zfsilo, "data/other").rotation == 2


async def test_what_is_not_published_has_none(zfsilo: House) -> None:
    with pytest.raises(NotFound):
        await zfsilo.do(ROTATE)
    with pytest.raises(FailedPrecondition, match="published to no host"):
        await zfsilo.do(CREATE, ROTATE)
    with pytest.raises(FailedPrecondition):
        await zfsilo.do(ROTATE.but(host="take"))
