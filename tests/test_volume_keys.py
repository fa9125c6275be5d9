"""Encrypted volumes: their keys, after reboots, rotations, losses and deletions."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from zfsilod.host.fake.secrets import key_digest, loaded_fact
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
)
from zfsilod.model.marks import SEALED_KEY
from zfsilod.model.records import Trashed, Volume, VolumeKey
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volume_keys import RotateVolumeKey, check_export
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service import pool_import
from zfsilod.service.pool_scan import find_zvol
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.disk_key import DiskKey

GIB = 1 << 30
DATA = CreateVolume(id="data", capacity_bytes=GIB, encrypt=True)
PLAIN = CreateVolume(id="data", capacity_bytes=GIB)
TWIN = CreateVolume(id="twin", capacity_bytes=GIB, source_volume="data")
PUBLISH = Publish(volume="data", host="take")
ROTATE = RotateVolumeKey(id="data")
DELETE = DeleteVolume(id="data")
ME = administrator("test")


def zvol(server: ServiceFixture, name: str = "data") -> Any:
    return server.host.facts.get(f"zvol:tank/zfsilo/{name}")


def record(server: ServiceFixture, kind: Any = VolumeKey) -> Any:
    """Return the only record of a kind, or None."""
    with server.service.context.read() as txn:
        records = list(txn.scan(kind))
    assert len(records) < 2
    return records[0] if records else None


def secrets(server: ServiceFixture) -> list[str]:
    with server.service.context.read() as txn:
        keys = [key.decode() for key, _raw in txn.items()]
    return [key.removeprefix("secret/") for key in keys if key.startswith("secret/keys/")]


def present_digest(server: ServiceFixture) -> str:
    """Return the digest of the key that the store has for the volume."""
    uid = zvol(server)["uid"]
    return key_digest(server.service.context.store.disk_key(uid, CURRENT))


def forget_key(server: ServiceFixture) -> None:
    """Lose what the store knows of keys, as a new store does."""
    store = server.service.context.store
    with store.write() as txn:
        for name in secrets(server):
            txn.drop("secret", name)
        for key in list(txn.scan(VolumeKey)):
            txn.drop(key.bucket(), key.key)


async def reasons(server: ServiceFixture, *requests: Any) -> list[str]:
    refused = []
    for request in requests:
        with pytest.raises((FailedPrecondition, InvalidArgument, AlreadyExists)) as raised:
            await server.do(request)
        refused.append(raised.value.reason)
    return refused


async def test_an_encrypted_volume_has_a_key_of_its_own(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH)
    assert zvol(fixture)["root"] == record(fixture, Volume).key_uid == record(fixture).id
    assert zvol(fixture)["wrapped"] == present_digest(fixture)
    await fixture.do(DATA)  # already so
    assert len(secrets(fixture)) == 1
    with pytest.raises(AlreadyExists, match="encrypted"):
        await fixture.do(PLAIN)


async def test_a_plain_volume_is_not_an_encrypted_one(fixture: ServiceFixture) -> None:
    await fixture.do(PLAIN)
    with pytest.raises(AlreadyExists, match="encrypted"):
        await fixture.do(DATA)
    assert await reasons(fixture, ROTATE, TWIN.but(encrypt=True)) == ["NOT_ENCRYPTED", "BAD_SOURCE"]
    assert secrets(fixture) == []


async def test_no_key_is_made_where_it_would_be_in_a_file(fixture: ServiceFixture) -> None:
    context = fixture.service.context
    sealed = context.settings
    context.settings = sealed.but(key_is_sealed=False)
    assert await reasons(fixture, DATA) == ["KEY_NOT_SEALED"]
    await fixture.do(PLAIN)  # needs none
    await fixture.do(DELETE)
    context.settings = sealed
    await fixture.do(DATA)
    context.settings = sealed.but(key_is_sealed=False)
    assert await reasons(fixture, ROTATE) == ["KEY_NOT_SEALED"]


async def test_a_key_is_loaded_after_a_reboot_before_the_export(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH)
    exported = fixture.facts
    fixture.host.facts.reboot()
    assert not any(name.startswith(("key:", "backstore:")) for name in fixture.facts)
    report = await fixture.service.reconciler.sync_all(ME)
    assert not report.complaints
    assert fixture.facts == exported


async def test_the_key_of_a_volume_without_an_export_is_loaded_too(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    before = fixture.facts
    fixture.host.facts.reboot()
    assert fixture.facts != before
    report = await fixture.service.reconciler.sync_all(ME)
    assert [one.missing for one in report.reports] == [("key is loaded",)]
    assert fixture.facts == before


async def test_a_publication_loads_the_key(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    fixture.host.facts.reboot()
    await fixture.do(PUBLISH)
    assert fixture.host.facts.get(loaded_fact(zvol(fixture)["uid"])) == "loaded"


async def test_a_zvol_grows_after_a_reboot(fixture: ServiceFixture) -> None:
    """ZFS changes the size of an encrypted zvol with a loaded key only."""
    await fixture.do(DATA)
    fixture.host.facts.reboot()
    grow = UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB)
    await fixture.do(grow)
    assert zvol(fixture)["size"] == 2 * GIB
    fixture.host.facts.reboot()
    fixture.host.facts.effect("zvol:tank/zfsilo/data", zvol(fixture) | {"size": GIB})
    await fixture.do(SyncVolume(id="data"))
    assert zvol(fixture)["size"] == 2 * GIB
    smaller = zvol(fixture) | {"size": GIB}
    fixture.host.facts.effect("zvol:tank/zfsilo/a", smaller, instead_of="zvol:tank/zfsilo/data")
    fixture.host.facts.reboot()
    await fixture.do(await find_zvol(fixture.service.context, "tank/zfsilo/a", "data"))
    assert zvol(fixture)["size"] == 2 * GIB


async def test_a_key_that_does_not_open_is_a_condition(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH)
    fixture.host.facts.reboot()
    fixture.host.facts.effect("zvol:tank/zfsilo/data", zvol(fixture) | {"wrapped": "another"})
    report = await fixture.service.reconciler.sync_all(ME)
    (complaint,) = dict(report.complaints).values()
    assert "does not open tank/zfsilo/data" in complaint
    with fixture.service.context.read() as txn:
        view = volume_view(txn, "data")
    assert (view.conditions, view.condition_reasons) == ((complaint,), ("KEY_MISMATCH",))
    assert await reasons(fixture, SyncVolume(id="data"), ROTATE) == ["KEY_MISMATCH"] * 2


async def test_a_rotation_replaces_the_key_while_it_is_in_use(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, PUBLISH)
    former = zvol(fixture)["wrapped"]
    await fixture.do(ROTATE)
    assert zvol(fixture)["wrapped"] == present_digest(fixture) != former
    assert (record(fixture).rotation, len(secrets(fixture))) == (1, 1)
    fixture.host.facts.reboot()
    assert not (await fixture.service.reconciler.sync_all(ME)).complaints
    await fixture.do(ROTATE, Unpublish(volume="data"))
    assert record(fixture).rotation == 2


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


async def test_a_clone_has_the_key_of_its_origin(fixture: ServiceFixture) -> None:
    await fixture.do(DATA, TWIN, TWIN.but(id="third", source_volume="twin"))
    uid = zvol(fixture)["uid"]
    assert [zvol(fixture, name)["root"] for name in ("twin", "third")] == [uid, uid]
    fixture.host.facts.reboot()
    await fixture.do(Publish(volume="third", host="take"))
    assert fixture.host.facts.get(loaded_fact(uid)) == "loaded"
    fixture.host.facts.reboot()
    await fixture.do(TWIN.but(id="fourth"))  # ZFS clones with a loaded key only
    with pytest.raises(FailedPrecondition, match="has the key of volume data") as raised:
        await fixture.do(RotateVolumeKey(id="third"))
    assert raised.value.reason == "KEY_OF_ORIGIN"


async def test_a_clone_is_never_moved_to_the_trash(fixture: ServiceFixture) -> None:
    """ZFS renames it to no other parent: it belongs to the encryption root of its origin."""
    context = fixture.service.context
    context.settings = context.settings.but(trash_retention_s=3600)
    await fixture.do(DATA, TWIN, CreateSnapshot(id="monday", volume="twin"))
    keep = DeleteVolume(id="twin", dependents="KEEP")
    assert await reasons(fixture, keep) == ["DEPENDENTS"]
    third = TWIN.but(id="third", source_volume="data")
    await fixture.do(third)
    deleted = await fixture.do(DeleteVolume(id="third"))
    assert "moves no encrypted clone to the trash" in deleted.title
    assert zvol(fixture, "third") is None


async def test_the_key_is_erased_with_the_last_copy_of_the_data(fixture: ServiceFixture) -> None:
    context = fixture.service.context
    context.settings = context.settings.but(trash_retention_s=3600)
    await fixture.do(DATA)
    trashed = f"data/{zvol(fixture)['uid']}"
    await fixture.do(DELETE)
    assert len(secrets(fixture)) == 1, "the key of a volume that can be restored"
    await fixture.do(UndeleteVolume(id="data"), PUBLISH, Unpublish(volume="data"), DELETE)
    await fixture.do(PurgeVolume(id=trashed))
    assert (secrets(fixture), record(fixture)) == ([], None)
    context.settings = context.settings.but(trash_retention_s=0)
    await fixture.do(DATA)
    assert "its data, and its key" in (await fixture.do(DELETE)).title
    assert (secrets(fixture), record(fixture)) == ([], None)


@pytest.mark.parametrize("record_only", [True, False])
async def test_the_key_of_a_lost_zvol_is_kept(
    fixture: ServiceFixture, *, record_only: bool
) -> None:
    """Its data may come back: with the record alone no data are deleted."""
    await fixture.do(DATA)
    fixture.host.facts.effect("zvol:tank/zfsilo/data", None)
    await fixture.do(DeleteVolume(id="data", record_only=record_only))
    assert len(secrets(fixture)) == 1


async def test_a_purge_keeps_the_key_of_a_lost_zvol(fixture: ServiceFixture) -> None:
    context = fixture.service.context
    context.settings = context.settings.but(trash_retention_s=3600)
    await fixture.do(DATA)
    trashed = f"data/{zvol(fixture)['uid']}"
    await fixture.do(DELETE)
    with context.read() as txn:
        (deleted,) = txn.scan(Trashed)
    fixture.host.facts.effect(f"zvol:{deleted.volume.dataset}", None)
    await fixture.do(PurgeVolume(id=trashed))
    assert len(secrets(fixture)) == 1


async def test_the_recovery_key_is_shown_once(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    context = fixture.service.context
    with context.store.write() as txn:
        txn.put(check_export(txn, "data").but(exported_at=1))
    with context.read() as txn, pytest.raises(FailedPrecondition) as raised:
        check_export(txn, "data")
    assert raised.value.reason == "KEY_EXPORTED"
    await fixture.do(ROTATE)
    with context.read() as txn:
        assert check_export(txn, "data").rotation == 1


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


async def test_a_carried_key_is_sealed(fixture: ServiceFixture) -> None:
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
    store._key = bytes(32)
    with pytest.raises(FailedPrecondition) as raised:
        store.disk_keys("f" * 32, carried)
    assert raised.value.reason == "KEY_LOST"


async def test_a_store_under_another_key_has_lost_the_keys(fixture: ServiceFixture) -> None:
    await fixture.do(DATA)
    fixture.service.context.store._key = bytes(32)
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
