"""Encrypted volumes: their keys, after reboots, rotations, losses and deletions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from zfsilod.host.fake.secrets import key_digest, loaded_fact
from zfsilod.model.disk_key import CURRENT
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
)
from zfsilod.model.records import Trashed, Volume, VolumeKey
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.snapshots import CreateSnapshot
from zfsilod.requests.sync import SyncVolume
from zfsilod.requests.volume_keys import RotateVolumeKey, check_export
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.pool_scan import find_zvol
from zfsilod.storage.volume_view import volume_view

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture

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
