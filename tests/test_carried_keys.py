"""Encrypted volumes whose zvol carries the key: lost stores, copies, adoptions, rotations."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_volume_keys import (
    DATA,
    ME,
    PUBLISH,
    ROTATE,
    TWIN,
    forget_key,
    present_digest,
    reasons,
    secrets,
    zvol,
)
from zfsilod.host.fake.secrets import loaded_fact
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.errors import (
    CommandFailed,
    Conflict,
    FailedPrecondition,
)
from zfsilod.model.marks import SEALED_KEY
from zfsilod.model.records import Volume
from zfsilod.requests.publications import Publish
from zfsilod.service import pool_import
from zfsilod.service.pool_scan import find_zvol
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.disk_key import DiskKey


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("changed", [True, False])
async def test_an_abandoned_rotation_loses_no_key(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, *, known: bool, changed: bool
) -> None:
    """Whichever key the zvol has then, it carries that one."""
    await fixture.do(DATA)
    if not known:
        forget_key(fixture)
    keys = fixture.host.keys
    real_change = keys.change

    def fail(*_args: object) -> bool:
        raise CommandFailed("the pool is suspended")

    def change(dataset: str, key: DiskKey) -> None:
        if changed:
            real_change(dataset, key)
        monkeypatch.setattr(keys, "opens", fail)
        fail()

    monkeypatch.setattr(keys, "change", change)
    submitted = await fixture.service.submit(ROTATE, caller=ME)
    ended = await fixture.service.ended(submitted.id, 10)
    assert ended.state == "NEEDS_REPAIR"
    monkeypatch.undo()
    await fixture.service.abandon(ended.id)
    fixture.host.facts.reboot()
    assert not (await fixture.service.reconciler.sync_all(ME)).complaints
    await fixture.do(ROTATE)
    assert zvol(fixture)["wrapped"] == present_digest(fixture)
    assert " " not in zvol(fixture)["properties"][SEALED_KEY], "it carries one key"


async def test_a_zvol_carries_its_key_for_an_older_store(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH)
    store = fixture.service.context.store
    with store.read() as txn:
        backup = [(key, raw) for key, raw in txn.items() if b"keys/" in key or b"volumekey/" in key]
    assert len(backup) == 2
    await fixture.do(ROTATE)
    forget_key(fixture)
    with store.change() as txn:  # the administrator restores a backup from before the rotation
        for key, raw in backup:
            bucket, _slash, name = key.decode().partition("/")
            txn.put_raw(bucket, name, raw)
    fixture.host.facts.reboot()
    assert not (await fixture.service.reconciler.sync_all(ME)).complaints
    assert any(name.startswith("backstore:") for name in fixture.facts)


async def test_a_zvol_carries_its_key_for_a_new_store(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, TWIN, ROTATE)
    forget_key(fixture)
    fixture.host.facts.reboot()
    await fixture.do(Publish(volume="twin", host="take"), ROTATE)
    assert zvol(fixture)["wrapped"] == present_digest(fixture)


async def test_a_carried_key_is_sealed(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(DATA)
    key = fixture.service.context.store.disk_key(zvol(fixture)["uid"], CURRENT)
    carried = zvol(fixture)["properties"][SEALED_KEY]
    assert key.reveal().hex() not in carried
    rotation, _colon, text = carried.partition(":")
    assert rotation == "0"
    for secret in (key.reveal(), key.reveal().hex().encode()):
        assert secret not in b64decode(text)
    # The key of another store does not open it.
    store = fixture.service.context.store
    monkeypatch.setattr(store, "_key", bytes(32))
    with pytest.raises(FailedPrecondition) as raised:
        store.disk_keys("f" * 32, carried)
    assert raised.value.reason == "KEY_LOST"


async def test_a_store_under_another_key_has_lost_the_keys(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(DATA)
    monkeypatch.setattr(fixture.service.context.store, "_key", bytes(32))
    fixture.host.facts.reboot()
    report = await fixture.service.reconciler.sync_all(ME)
    (complaint,) = dict(report.complaints).values()
    assert "zfsilo has no key of tank/zfsilo/data" in complaint
    with fixture.service.context.read() as txn:
        assert volume_view(txn, "data").condition_reasons == ("KEY_LOST",)


async def test_a_volume_without_its_key_is_taken_over_by_a_rotation(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(DATA)
    uid = zvol(fixture)["uid"]
    forget_key(fixture)
    fixture.host.zfs.set_property("tank/zfsilo/data", SEALED_KEY, "")
    fixture.host.facts.reboot()
    assert await reasons(fixture, PUBLISH, ROTATE) == ["KEY_LOST", "KEY_LOST"]
    assert secrets(fixture) == []
    fixture.host.facts.effect(loaded_fact(uid), "loaded")  # zfs load-key, with the recovery key
    await fixture.do(ROTATE, PUBLISH)
    assert zvol(fixture)["wrapped"] == present_digest(fixture)


def send_raw(server: ServiceFixture, name: str, *, properties: bool) -> None:
    """Replace a zvol by a raw copy: `zfs send -w | zfs receive`, with -p or without."""
    sent = zvol(server, name)
    root = next(
        one for one in server.host.facts.of_kind("zvol").values() if one["uid"] == sent["root"]
    )
    marks = sent["properties"] if properties else {}
    copy = sent | {"uid": "", "guid": "4711", "root": "4711", "wrapped": root["wrapped"]}
    own = {"volblocksize": sent["properties"]["volblocksize"]}
    copy |= {"properties": own, "received": marks}
    server.host.facts.effect(f"zvol:tank/zfsilo/{name}", copy)
    server.host.facts.reboot()


async def put_back(server: ServiceFixture, name: str) -> None:
    dataset = f"tank/zfsilo/{name}"
    await server.do(await find_zvol(server.service.context, dataset, name, accept_copy=True))


@pytest.mark.parametrize("properties", [True, False])
async def test_a_copy_carries_its_key(fixture: ServiceFixture, *, properties: bool) -> None:
    await fixture.do(DATA)
    send_raw(fixture, "data", properties=properties)
    await put_back(fixture, "data")
    forget_key(fixture)
    fixture.host.facts.reboot()
    await fixture.do(PUBLISH)


async def test_a_plain_copy_is_refused(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    send_raw(fixture, "data", properties=True)
    copy = {name: value for name, value in zvol(fixture).items() if name not in ("root", "wrapped")}
    fixture.host.facts.effect("zvol:tank/zfsilo/data", copy)
    with pytest.raises(Conflict, match="sent without `zfs send --raw`"):
        await put_back(fixture, "data")
    assert zvol(fixture) == copy


async def test_an_older_copy_keeps_the_key_that_it_carries(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    older = zvol(fixture)
    await fixture.do(ROTATE)
    fixture.host.facts.effect("zvol:tank/zfsilo/data", older)
    send_raw(fixture, "data", properties=True)
    await put_back(fixture, "data")
    fixture.host.facts.reboot()
    await fixture.do(PUBLISH, ROTATE)
    assert zvol(fixture)["wrapped"] == present_digest(fixture)


async def test_a_copy_of_a_clone_keeps_the_key_that_its_origin_had(fixture: ServiceFixture) -> None:
    """It is an encryption root of its own, which no rotation of its origin changes."""
    await fixture.do(DATA, TWIN)
    send_raw(fixture, "twin", properties=True)
    await put_back(fixture, "twin")
    await fixture.do(ROTATE)
    fixture.host.facts.reboot()
    await fixture.do(Publish(volume="twin", host="take"))


async def test_a_zvol_that_a_rollback_keeps_carries_its_key(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    zfs = fixture.host.zfs
    real_create = zfs.create_zvol

    def create(dataset: str, **options: Any) -> None:
        real_create(dataset, **options)
        fixture.host.facts.effect(f"content:{zvol(fixture)['uid']}", "written")
        raise CommandFailed("zfs was stopped")

    monkeypatch.setattr(zfs, "create_zvol", create)
    with pytest.raises(CommandFailed, match="was kept: it has data"):
        await fixture.do(DATA)
    monkeypatch.undo()
    fixture.host.facts.reboot()
    await pool_import.adopt_all(fixture.service.context, fixture.service, ME)
    await fixture.do(PUBLISH)


async def test_an_adoption_claims_the_pool_although_no_key_can_be_looked_at(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(DATA)
    context = fixture.service.context
    with context.store.write() as txn:
        txn.drop(Volume.bucket(), "data")

    def fail(_dataset: str) -> str:
        raise CommandFailed("zfs get hangs")

    monkeypatch.setattr(fixture.host.keys, "find_sealed", fail)
    result = await pool_import.adopt_all(context, fixture.service, ME)
    assert [request.subject for request in result.adopted] == ["volumes/data"]
    assert pool_import.KEYS_UNKNOWN not in result.unknown


async def test_an_adoption_says_that_the_keys_are_missing(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, TWIN)
    context = fixture.service.context
    forget_key(fixture)
    with context.store.write() as txn:
        for volume in list(txn.scan(Volume)):
            txn.drop(volume.bucket(), volume.key)
    planned = await pool_import.adopt_all(context, fixture.service, ME, validate_only=True)
    assert pool_import.KEYS_UNKNOWN not in planned.unknown, "the zvol carries it"
    fixture.host.zfs.set_property("tank/zfsilo/data", SEALED_KEY, "")
    result = await pool_import.adopt_all(context, fixture.service, ME)
    assert pool_import.KEYS_UNKNOWN in result.unknown
    uid = zvol(fixture)["uid"]
    with context.read() as txn:
        assert {volume.key_uid for volume in txn.scan(Volume)} == {uid}
