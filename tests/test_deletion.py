"""Deletion: refused, at once, into the trash, undone, and purged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import SETTINGS, ServiceFixture, service_fixture
from tests.worker_rig import not_sticky
from zfsilod.model.errors import AlreadyExists, Busy, CommandFailed, FailedPrecondition, NotFound
from zfsilod.model.records import Dependent, Operation, Publication, Trashed, Volume
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.publications import Publish
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.purger import Purger
from zfsilod.storage.volume_view import volume_views, volume_views_with_deleted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
KEEP = DeleteVolume(id="data", dependents="KEEP")
WITHDRAW = DeleteVolume(id="data", unpublish=True)


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[ServiceFixture]:
    """A service that keeps deleted volumes for an hour."""
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=3600)) as built:
        yield built


def volume(fixture: ServiceFixture) -> Volume:
    with fixture.service.context.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def trashed(fixture: ServiceFixture) -> list[Trashed]:
    with fixture.service.context.store.read() as txn:
        return list(txn.scan(Trashed))


async def add_dependents(fixture: ServiceFixture, *names: str) -> None:
    """Add dependents of the volume."""
    uid = volume(fixture).uid
    for name in names:
        record = Dependent(id=f"{uid}/{name}", name=name)
        await fixture.service.context.write(lambda txn, record=record: txn.put(record))  # type: ignore[misc]


async def drop_dependents(fixture: ServiceFixture, uid: str, *names: str) -> None:
    """Remove dependents of a volume."""
    for name in names:
        await fixture.service.context.write(
            lambda txn, name=name: txn.drop("dependent", f"{uid}/{name}")  # type: ignore[misc]
        )


def zvols(fixture: ServiceFixture) -> set[str]:
    return {name for name in fixture.facts if name.startswith("zvol:")}


async def purged(fixture: ServiceFixture) -> None:
    """Purge the trash, and wait for the operations."""
    await Purger(fixture.service.context, fixture.service).purge()
    with fixture.service.context.store.read() as txn:
        live = list(txn.live())
    for operation in live:
        await fixture.service.wait(operation.id, 20)


# With its withdrawal


async def test_a_published_volume_is_withdrawn_and_deleted_in_one_unit(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE)
    before = fixture.facts
    await fixture.do(Publish(volume="data", host="take"))
    with pytest.raises(FailedPrecondition, match="published to take"):
        await fixture.do(DeleteVolume(id="data"))
    units = len(fixture.launcher.starts)
    deleted = await fixture.do(WITHDRAW)
    assert deleted.title == "delete data (1 GiB) and its data, unpublished from take"
    assert len(fixture.launcher.starts) == units + 1
    assert set(fixture.facts) == {name for name in before if not name.startswith("zvol:")}
    with fixture.service.context.store.read() as txn:
        assert not list(txn.scan(Publication))
        assert not [key for key, _raw in txn.items(b"secret/")]


async def test_a_volume_that_is_not_published_is_only_deleted(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    deleted = await fixture.do(WITHDRAW)
    assert deleted.title == "delete data (1 GiB) and its data"


async def test_a_volume_in_use_is_neither_withdrawn_nor_deleted(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, Publish(volume="data", host="take"))
    await fixture.do(Connect(id="data", server="give", volume="data"))
    before = fixture.facts
    with pytest.raises(FailedPrecondition) as refusal:
        await fixture.do(WITHDRAW)
    assert refusal.value.reason == "SESSION_LIVE"
    assert fixture.facts == before
    assert volume(fixture).state == "PUBLISHED"


async def test_a_destruction_that_is_refused_gives_the_access_back(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE, Publish(volume="data", host="take"))
    before = fixture.facts
    record = volume(fixture)

    def refuse(*_words: Any, **_named: Any) -> None:
        raise CommandFailed("zfs destroy: dataset is busy")

    monkeypatch.setattr(fixture.host.zfs, "destroy_zvol", refuse)
    with pytest.raises(CommandFailed, match="busy"):
        await fixture.do(WITHDRAW)
    assert not_sticky(fixture.facts) == not_sticky(before)
    assert volume(fixture).state == "PUBLISHED"
    assert volume(fixture).epoch > record.epoch
    with fixture.service.context.store.read() as txn:
        assert [one.host for one in txn.scan(Publication)] == ["take"]


async def test_a_withdrawn_volume_is_restored_from_the_trash(patient: ServiceFixture) -> None:
    await patient.do(CREATE, Publish(volume="data", host="take"), WITHDRAW)
    assert [one.volume.state for one in trashed(patient)] == ["CREATED"]
    await patient.do(UndeleteVolume(id="data"), Publish(volume="data", host="take"))
    assert volume(patient).state == "PUBLISHED"


# At once


async def test_a_volume_without_dependents_is_destroyed(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, KEEP)
    assert zvols(fixture) == set()
    assert trashed(fixture) == []


async def test_a_refusal_names_the_dependents(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    await add_dependents(fixture, "snapshots/a", "volumes/copy")
    with pytest.raises(FailedPrecondition, match="snapshots/a, volumes/copy") as refused:
        await fixture.do(DeleteVolume(id="data"))
    assert refused.value.reason == "DEPENDENTS"
    assert zvols(fixture) == {"zvol:tank/zfsilo/data"}


async def test_snapshots_without_records_refuse_a_deletion(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE)
    name = "tank/zfsilo/data@nightly"
    monkeypatch.setattr(fixture.host.zfs, "dependents", lambda _dataset: (name,))
    with pytest.raises(FailedPrecondition, match=name):
        await fixture.do(DeleteVolume(id="data"))
    await fixture.do(KEEP)
    await purged(fixture)
    assert len(trashed(fixture)) == 1
    with pytest.raises(FailedPrecondition, match=name):
        await fixture.do(PurgeVolume(id=trashed(fixture)[0].id))


async def test_a_deletion_that_keeps_dependents_ends_with_the_last_one(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE)
    await add_dependents(fixture, "snapshots/a", "volumes/copy")
    uid = volume(fixture).uid
    await fixture.do(KEEP)
    assert zvols(fixture) == {f"zvol:tank/zfsilo/.trash/{uid}"}
    with pytest.raises(NotFound):
        await fixture.do(DeleteVolume(id="data"))
    with fixture.service.context.store.read() as txn:
        assert list(volume_views(txn)) == []
        assert txn.promised() == 0
    await purged(fixture)
    await drop_dependents(fixture, uid, "snapshots/a")
    await purged(fixture)
    assert len(trashed(fixture)) == 1
    await drop_dependents(fixture, uid, "volumes/copy")
    await purged(fixture)
    assert (trashed(fixture), zvols(fixture)) == ([], set())


async def test_a_deletion_can_be_undone_within_the_retention(patient: ServiceFixture) -> None:
    await patient.do(CREATE)
    before, facts = volume(patient), patient.facts
    await patient.do(DeleteVolume(id="data"))
    await purged(patient)
    assert zvols(patient) == {f"zvol:tank/zfsilo/.trash/{before.uid}"}
    await patient.do(UndeleteVolume(id="data"))
    assert volume(patient) == before.but(
        revision=volume(patient).revision, updated_at=volume(patient).updated_at
    )
    assert patient.facts == facts
    assert trashed(patient) == []


async def test_a_volume_without_a_zvol_can_be_deleted(patient: ServiceFixture) -> None:
    await patient.do(CREATE)
    patient.host.facts.effect("zvol:tank/zfsilo/data", None)
    await patient.do(DeleteVolume(id="data"))
    assert trashed(patient) == []
    await patient.do(CREATE)


async def test_a_volume_is_purged_after_the_retention(patient: ServiceFixture) -> None:
    await patient.do(CREATE, DeleteVolume(id="data"))
    patient.clock.advance(3500)
    await purged(patient)
    assert len(trashed(patient)) == 1
    patient.clock.advance(101)
    await purged(patient)
    assert (trashed(patient), zvols(patient)) == ([], set())
    with pytest.raises(NotFound):
        await patient.do(UndeleteVolume(id="data"))


async def test_the_name_of_a_deleted_volume_can_be_used_again(patient: ServiceFixture) -> None:
    await patient.do(CREATE)
    first = volume(patient).uid
    await patient.do(DeleteVolume(id="data"), CREATE)
    second = volume(patient).uid
    with pytest.raises(AlreadyExists):
        await patient.do(UndeleteVolume(id="data"))
    await patient.do(DeleteVolume(id="data"))
    with patient.service.context.store.read() as txn:
        assert {view.uid for view in volume_views_with_deleted(txn)} == {first, second}
    await patient.do(UndeleteVolume(id="data", uid=first))
    assert volume(patient).uid == first
    with patient.service.context.store.read() as txn:
        assert [view.key for view in volume_views_with_deleted(txn)] == ["data", f"data/{second}"]


async def test_a_failed_rename_changes_nothing(patient: ServiceFixture) -> None:
    await patient.do(CREATE)
    facts: dict[str, Any] = patient.facts
    patient.host.facts.light_fuse(1, when="after", how="error")
    with pytest.raises(CommandFailed):
        await patient.do(DeleteVolume(id="data"))
    assert {n: v for n, v in patient.facts.items() if n.startswith("zvol")} == {
        n: v for n, v in facts.items() if n.startswith("zvol")
    }
    assert trashed(patient) == []
    assert volume(patient).id == "data"


async def test_a_purge_that_is_refused_is_not_tried_in_every_pass(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE)
    await add_dependents(fixture, "snapshots/a")
    uid = volume(fixture).uid
    await fixture.do(KEEP)
    await drop_dependents(fixture, uid, "snapshots/a")
    asked: list[str] = []

    def look(dataset: str) -> tuple[str, ...]:
        asked.append(dataset)
        return (f"{dataset}@nightly",)

    monkeypatch.setattr(fixture.host.zfs, "dependents", look)
    purger = Purger(fixture.service.context, fixture.service)
    for _round in range(3):
        await purger.purge()
    assert asked == [f"tank/zfsilo/.trash/{uid}"]


async def test_a_failed_purge_is_not_retried_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_fixture(tmp_path, SETTINGS.but(trash_retention_s=1)) as fixture:
        await fixture.do(CREATE, DeleteVolume(id="data"))

        def busy(*_words: Any, **_more: Any) -> None:
            raise Busy("the zvol is in use")

        monkeypatch.setattr(fixture.host.zfs, "destroy_zvol", busy)
        purger = Purger(fixture.service.context, fixture.service)
        fixture.clock.advance(10 + 60 * 60)
        for _round in range(3):
            await purger.purge()
            await asyncio.gather(*fixture.launcher.tasks.values())
        with fixture.service.context.store.read() as txn:
            assert [operation.kind for operation in txn.scan(Operation)].count("purge") == 1
