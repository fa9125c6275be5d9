"""Deletion through the service: refused, at once, into the trash and back, and purged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import SETTINGS, House, house
from zfsilod.model.errors import AlreadyExists, CommandFailed, FailedPrecondition, NotFound
from zfsilod.model.records import Dependent, Trashed, Volume
from zfsilod.requests.deletion import DeleteVolume, PurgeVolume, UndeleteVolume
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.purger import Purger
from zfsilod.storage.volume_view import volume_views, volume_views_with_deleted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
KEEP = DeleteVolume(id="data", dependents="KEEP")


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[House]:
    """A service that keeps what was deleted for an hour."""
    async with house(tmp_path, SETTINGS.but(trash_retention_s=3600)) as built:
        yield built


def volume(zfsilo: House) -> Volume:
    with zfsilo.service.context.store.read() as txn:
        record = txn.get(Volume, "data")
    assert record is not None
    return record


def trashed(zfsilo: House) -> list[Trashed]:
    with zfsilo.service.context.store.read() as txn:
        return list(txn.scan(Trashed))


async def depend(zfsilo: House, *names: str) -> None:
    """Let something depend on the volume."""
    uid = volume(zfsilo).uid
    for name in names:
        record = Dependent(id=f"{uid}/{name}", name=name)
        await zfsilo.service.context.write(lambda txn, record=record: txn.put(record))  # type: ignore[misc]


async def forsake(zfsilo: House, uid: str, *names: str) -> None:
    """Let nothing depend on the volume any more."""
    for name in names:
        await zfsilo.service.context.write(
            lambda txn, name=name: txn.drop("dependent", f"{uid}/{name}")  # type: ignore[misc]
        )


def zvols(zfsilo: House) -> set[str]:
    return {name for name in zfsilo.facts if name.startswith("zvol:")}


async def purged(zfsilo: House) -> None:
    """Let the watchman look into the trash, and its operations end."""
    await Purger(zfsilo.service.context, zfsilo.service).purge()
    with zfsilo.service.context.store.read() as txn:
        live = list(txn.live())
    for operation in live:
        await zfsilo.service.wait(operation.id, 20)


async def test_it_is_destroyed_when_nothing_depends_on_it(zfsilo: House) -> None:
    await zfsilo.do(CREATE, KEEP)
    assert zvols(zfsilo) == set()
    assert trashed(zfsilo) == []


async def test_dependents_refuse_by_name(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    await depend(zfsilo, "snapshots/a", "volumes/copy")
    with pytest.raises(FailedPrecondition, match="snapshots/a, volumes/copy") as refused:
        await zfsilo.do(DeleteVolume(id="data"))
    assert refused.value.reason == "DEPENDENTS"
    assert zvols(zfsilo) == {"zvol:tank/zfsilo/data"}


async def test_somebody_elses_snapshots_refuse_too(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(CREATE)
    name = "tank/zfsilo/data@nightly"
    monkeypatch.setattr(zfsilo.host.zfs, "dependents", lambda _dataset: (name,))
    with pytest.raises(FailedPrecondition, match=name):
        await zfsilo.do(DeleteVolume(id="data"))
    await zfsilo.do(KEEP)
    await purged(zfsilo)
    assert len(trashed(zfsilo)) == 1
    with pytest.raises(FailedPrecondition, match=name):
        await zfsilo.do(PurgeVolume(id=trashed(zfsilo)[0].id))


async def test_kept_dependents_hide_it_and_the_last_one_takes_it_along(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    await depend(zfsilo, "snapshots/a", "volumes/copy")
    uid = volume(zfsilo).uid
    await zfsilo.do(KEEP)
    assert zvols(zfsilo) == {f"zvol:tank/zfsilo/.trash/{uid}"}
    with pytest.raises(NotFound):
        await zfsilo.do(DeleteVolume(id="data"))
    with zfsilo.service.context.store.read() as txn:
        assert list(volume_views(txn)) == []
        assert txn.promised() == 0
    await purged(zfsilo)
    await forsake(zfsilo, uid, "snapshots/a")
    await purged(zfsilo)
    assert len(trashed(zfsilo)) == 1
    await forsake(zfsilo, uid, "volumes/copy")
    await purged(zfsilo)
    assert (trashed(zfsilo), zvols(zfsilo)) == ([], set())


async def test_with_a_retention_a_deletion_can_be_undone(patient: House) -> None:
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


async def test_what_is_lost_can_be_deleted(patient: House) -> None:
    await patient.do(CREATE)
    patient.host.facts.effect("zvol:tank/zfsilo/data", None)
    await patient.do(DeleteVolume(id="data"))
    assert trashed(patient) == []
    await patient.do(CREATE)


async def test_the_retention_ends(patient: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await patient.do(CREATE, DeleteVolume(id="data"))
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    await purged(patient)
    assert (trashed(patient), zvols(patient)) == ([], set())
    with pytest.raises(NotFound):
        await patient.do(UndeleteVolume(id="data"))


async def test_its_name_is_free_and_given_away(patient: House) -> None:
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


async def test_a_rename_that_fails_leaves_all_as_it_was(patient: House) -> None:
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


async def test_what_cannot_be_purged_is_not_tried_all_the_time(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(CREATE)
    await depend(zfsilo, "snapshots/a")
    uid = volume(zfsilo).uid
    await zfsilo.do(KEEP)
    await forsake(zfsilo, uid, "snapshots/a")
    asked: list[str] = []

    def look(dataset: str) -> tuple[str, ...]:
        asked.append(dataset)
        return (f"{dataset}@nightly",)

    monkeypatch.setattr(zfsilo.host.zfs, "dependents", look)
    purger = Purger(zfsilo.service.context, zfsilo.service)
    for _round in range(3):
        await purger.purge()
    assert asked == [f"tank/zfsilo/.trash/{uid}"]
