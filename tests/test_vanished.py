"""A zvol that vanished comes back under its record, or the record goes without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import SETTINGS, administrator, service_fixture
from zfsilod.model.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    PermissionDenied,
    ZfsiloError,
)
from zfsilod.model.records import Attachment, Condition, Operation, Publication, Trashed, Volume
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.pool_scan import find_zvol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.service_fixture import ServiceFixture

GIB = 1 << 30
HOME, ELSEWHERE = "tank/zfsilo/data", "tank/zfsilo/aside"
CREATE = CreateVolume(id="data", capacity_bytes=GIB, properties=(("compression", "zstd"),))
PUBLISH = Publish(volume="data", host="take")
CONNECT = Connect(id="data", server="give", volume="data")
MOUNT = (CONNECT, Stage(id="data"), MountAt(id="data", path="/srv/data"))
RECORD_ONLY = DeleteVolume(id="data", record_only=True)
FENCE = Unpublish(volume="data", fence=True, grace_s=0)
STATES = {
    "created": (CREATE,),
    "published": (CREATE, PUBLISH),
    "attached": (CREATE, PUBLISH, *MOUNT),
}


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


def records(fixture: ServiceFixture, kind: type[Any]) -> list[Any]:
    with fixture.service.context.store.read() as txn:
        return list(txn.scan(kind))


def fact(fixture: ServiceFixture, name: str) -> Any:
    return fixture.host.facts.get(name)


def rename(fixture: ServiceFixture, source: str, target: str) -> None:
    """Rename a zvol by hand: `zfs rename`."""
    zvol = fact(fixture, f"zvol:{source}")
    fixture.host.facts.effect(f"zvol:{target}", zvol, instead_of=f"zvol:{source}")


def receive(fixture: ServiceFixture, source: str, target: str, **marks: str) -> None:
    """Replace a zvol by a copy: `zfs send -p | zfs receive`. Its guid is another one."""
    zvol = fact(fixture, f"zvol:{source}")
    own = {n: v for n, v in zvol["properties"].items() if n.startswith("zfsilo:")}
    copy = {
        "uid": "",
        "guid": "4711",
        "size": zvol["size"],
        "thin": True,
        "properties": {"volblocksize": zvol["properties"]["volblocksize"]},
        "received": own | marks,
    }
    fixture.host.facts.effect(f"zvol:{target}", copy, instead_of=f"zvol:{source}")


def lose_exports(fixture: ServiceFixture) -> None:
    """Reboot, after which exports are made again for existing zvols only."""
    fixture.host.facts.reboot()


async def adopt(
    fixture: ServiceFixture, dataset: str, name: str = "", **options: bool
) -> Operation:
    return await fixture.do(await find_zvol(fixture.service.context, dataset, name, **options))


async def differences(fixture: ServiceFixture) -> list[str]:
    """Return the problems of the volume, and everything else that differs from its records."""
    report = await fixture.service.reconciler.report("data")
    return [difference.problem or difference.fact for difference in report.differences]


@pytest.mark.parametrize("before", STATES.values(), ids=STATES)
async def test_a_renamed_zvol_gets_its_name_back(
    fixture: ServiceFixture, before: tuple[Any, ...]
) -> None:
    await fixture.do(*before)
    facts, record = fixture.facts, volume(fixture)
    rename(fixture, HOME, ELSEWHERE)
    (problem,) = await differences(fixture)
    assert f"run `zfsiloctl adopt {HOME}`" in problem
    operation = await adopt(fixture, ELSEWHERE)
    assert operation.kind == "put-back"
    assert {k: v for k, v in fixture.facts.items() if k[:5] != "zvol:"} == {
        k: v for k, v in facts.items() if k[:5] != "zvol:"
    }, "sessions and mounts went on"
    assert fact(fixture, f"zvol:{ELSEWHERE}") is None
    assert volume(fixture).but(revision=0, updated_at=0) == record.but(revision=0, updated_at=0)
    assert await differences(fixture) == []
    assert records(fixture, Condition) == []
    assert (await adopt(fixture, HOME)).title.endswith("already so")


@pytest.mark.parametrize("before", [STATES["created"], STATES["published"]], ids=list(STATES)[:2])
async def test_a_renamed_zvol_is_exported_again_after_a_reboot(
    fixture: ServiceFixture, before: tuple[Any, ...]
) -> None:
    await fixture.do(*before)
    rename(fixture, HOME, ELSEWHERE)
    lose_exports(fixture)
    await adopt(fixture, ELSEWHERE)
    assert await differences(fixture) == []
    assert bool(fact(fixture, "backstore:zfsilo-" + volume(fixture).uid)) == (len(before) > 1)


@pytest.mark.parametrize("before", [STATES["created"], STATES["published"]], ids=list(STATES)[:2])
async def test_a_copy_needs_an_explicit_word(
    fixture: ServiceFixture, before: tuple[Any, ...]
) -> None:
    await fixture.do(*before)
    old, publications = volume(fixture), records(fixture, Publication)
    secrets = dict(fixture.host.facts.of_kind("acl"))
    receive(fixture, HOME, HOME)
    (problem, *_) = await differences(fixture)
    assert f"zfsiloctl adopt {HOME} --accept-copy" in problem
    facts = fixture.facts
    with pytest.raises(FailedPrecondition, match="has the guid 4711") as refused:
        await adopt(fixture, HOME)
    assert refused.value.reason == "OTHER_GUID"
    with pytest.raises(ZfsiloError, match=r"--record-only|is published"):
        await fixture.do(DeleteVolume(id="data"))
    update = UpdateVolume(id="data", mask=("properties",), properties=(("compression", "lz4"),))
    for request in (*(() if publications else (PUBLISH,)), update):
        with pytest.raises(Conflict) as foreign:
            await fixture.do(request)
        assert foreign.value.reason == "NOT_OURS"
    assert fixture.facts == facts

    await adopt(fixture, HOME, accept_copy=True)

    new = volume(fixture)
    assert (new.uid, new.guid, new.dataset) == (old.uid, "4711", HOME)
    assert new.epoch > old.epoch, "a client with the former content must connect again"
    assert fixture.host.zfs.find_epoch(HOME)[0] == new.epoch
    marks = fact(fixture, f"zvol:{HOME}")["properties"]
    assert (marks["zfsilo:uid"], marks["sync"], marks["compression"]) == (old.uid, "always", "zstd")
    assert await differences(fixture) == []
    for former, current in zip(publications, records(fixture, Publication), strict=True):
        assert current.epoch > former.epoch
        assert current.secret != former.secret
    assert len(fixture.host.facts.names("acl")) == len(publications)
    assert not secrets.items() & fixture.host.facts.of_kind("acl").items(), "new secrets"
    await fixture.do(*(() if publications else (PUBLISH,)), *MOUNT)


async def test_a_copy_under_another_name_is_named_with_its_volume(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    lose_exports(fixture)
    receive(fixture, HOME, ELSEWHERE)
    with pytest.raises(FailedPrecondition, match=f"adopt {ELSEWHERE} --id data --accept-copy"):
        await adopt(fixture, ELSEWHERE, "data")
    await adopt(fixture, ELSEWHERE, "data", accept_copy=True)
    assert volume(fixture).dataset == HOME
    assert await differences(fixture) == []


async def test_a_live_session_refuses_a_copy_before_anything_is_removed(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*STATES["attached"])
    receive(fixture, HOME, HOME)
    before = fixture.facts
    with pytest.raises(FailedPrecondition, match="is still logged in"):
        await adopt(fixture, HOME, accept_copy=True)
    assert fixture.facts == before
    await fixture.do(FENCE)
    await adopt(fixture, HOME, accept_copy=True)
    await fixture.do(PUBLISH, Disconnect(id="data", force=True), *MOUNT)


async def test_a_client_of_the_former_zvol_is_refused(fixture: ServiceFixture) -> None:
    await fixture.do(*STATES["attached"])
    (attachment,) = records(fixture, Attachment)
    receive(fixture, HOME, HOME)
    lose_exports(fixture)
    await adopt(fixture, HOME, accept_copy=True)
    with pytest.raises(PermissionDenied):
        fixture.host.iscsi.login(attachment.disk)
    await fixture.do(CONNECT, Stage(id="data"))
    (attachment,) = records(fixture, Attachment)
    assert attachment.epoch == volume(fixture).epoch


async def test_received_marks_prove_nothing(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CREATE.but(id="more"))
    uid = volume(fixture).uid
    rename(fixture, HOME, ELSEWHERE)
    receive(fixture, ELSEWHERE, HOME)
    zvol = fact(fixture, f"zvol:{HOME}")
    assert zvol["received"]["zfsilo:uid"] == uid
    with pytest.raises(FailedPrecondition) as refused:
        await adopt(fixture, HOME)
    assert refused.value.reason == "OTHER_GUID"


async def test_a_later_epoch_of_a_copy_is_not_given_again(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, PUBLISH)
    receive(fixture, HOME, HOME, **{"zfsilo:epoch": "41:01jd"})
    await adopt(fixture, HOME, accept_copy=True)
    assert volume(fixture).epoch == records(fixture, Publication)[0].epoch == 42


async def test_a_filesystem_that_the_copy_has_is_not_formatted(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    mark = "READY:ext4:6b1ac1d0-3c6e-4d0c-9e0e-0f5d7e3f8a11"
    receive(fixture, HOME, HOME, **{"zfsilo:filesystem": mark})
    await adopt(fixture, HOME, accept_copy=True)
    assert volume(fixture).filesystem.state == "READY"
    assert fact(fixture, f"zvol:{HOME}")["properties"]["zfsilo:filesystem"] == mark


async def test_an_older_and_smaller_copy_grows_to_its_record(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    receive(fixture, HOME, HOME)
    zvol = fact(fixture, f"zvol:{HOME}")
    fixture.host.facts.effect(f"zvol:{HOME}", zvol | {"size": GIB // 2})
    await adopt(fixture, HOME, accept_copy=True)
    assert fact(fixture, f"zvol:{HOME}")["size"] == volume(fixture).capacity_bytes == GIB


async def test_lost_marks_are_written_again(fixture: ServiceFixture) -> None:
    """The guid proves which zvol it is: `zfs inherit zfsilo:uid` loses nothing."""
    await fixture.do(CREATE, PUBLISH)
    fixture.host.zfs.set_property(HOME, "zfsilo:uid", "")
    epoch = volume(fixture).epoch
    with pytest.raises(Conflict):
        await fixture.service.reconciler.sync("data", caller=administrator("a"))
    await adopt(fixture, HOME)
    assert await differences(fixture) == []
    assert volume(fixture).epoch == epoch


async def test_zvols_of_others_are_refused(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CREATE.but(id="more"))
    rename(fixture, HOME, ELSEWHERE)
    receive(fixture, "tank/zfsilo/more", "tank/zfsilo/strange")
    rename(fixture, ELSEWHERE, HOME)
    with pytest.raises(AlreadyExists, match="adopt tank/zfsilo/strange under another id"):
        await adopt(fixture, "tank/zfsilo/strange", "data", accept_copy=True)
    rename(fixture, HOME, "rpool/aside")
    with pytest.raises(FailedPrecondition, match="in another pool") as refused:
        await adopt(fixture, "rpool/aside")
    assert refused.value.reason == "OTHER_POOL"
    rename(fixture, "tank/zfsilo/strange", HOME)
    with pytest.raises(FailedPrecondition, match=f"another dataset has the name {HOME}"):
        await adopt(fixture, "rpool/aside")


async def test_a_zvol_of_another_volume_is_no_copy(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CREATE.but(id="more"))
    fixture.host.facts.effect(f"zvol:{HOME}", None)
    rename(fixture, "tank/zfsilo/more", HOME)
    # Its local marks say that it is the other volume, and its name is that of the first.
    with pytest.raises(AlreadyExists, match=f"{HOME} is the zvol of volume data already"):
        await adopt(fixture, HOME, accept_copy=True)
    rename(fixture, HOME, ELSEWHERE)
    assert (await adopt(fixture, ELSEWHERE)).subject == "volumes/more"
    with pytest.raises(FailedPrecondition):
        await adopt(fixture, HOME, "data")


@pytest.mark.parametrize("way", ["renamed", "received"])
async def test_a_deleted_volume_comes_back_from_where_its_zvol_is(
    patient: ServiceFixture, way: str
) -> None:
    await patient.do(CREATE, DeleteVolume(id="data"))
    (trashed,) = records(patient, Trashed)
    trash = trashed.volume.dataset
    if way == "renamed":
        rename(patient, trash, ELSEWHERE)
        await adopt(patient, ELSEWHERE)
    else:
        receive(patient, trash, trash)
        with pytest.raises(FailedPrecondition, match=f"adopt {trash} --accept-copy"):
            await adopt(patient, trash)
        await adopt(patient, trash, accept_copy=True)
    assert records(patient, Trashed) == []
    assert volume(patient).dataset == HOME
    assert await differences(patient) == []
    await patient.do(PUBLISH)


async def test_a_zvol_that_vanished_in_mid_operation_comes_back(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    rename(fixture, HOME, ELSEWHERE)
    update = UpdateVolume(id="data", mask=("properties",), properties=(("compression", "lz4"),))
    with pytest.raises(ZfsiloError):
        await fixture.do(update)
    await adopt(fixture, ELSEWHERE)
    assert await differences(fixture) == []
    await fixture.do(update)


async def test_an_operation_that_cannot_be_rolled_back_gives_way(fixture: ServiceFixture) -> None:
    """The zvol vanishes behind the first change of two: the rollback does not find it."""
    await fixture.do(CREATE)
    host, effect = fixture.host.facts, fixture.host.facts.effect

    def vanishing(name: str, value: Any, **options: Any) -> None:
        effect(name, value, **options)
        if value is not None and name == f"zvol:{HOME}":
            effect(f"zvol:{ELSEWHERE}", value, instead_of=f"zvol:{HOME}")

    host.effect = vanishing  # type: ignore[method-assign]
    changes = (("compression", "lz4"), ("sync", "disabled"))
    with pytest.raises(ZfsiloError):
        await fixture.do(UpdateVolume(id="data", mask=("properties",), properties=changes))
    host.effect = effect  # type: ignore[method-assign]
    (stuck,) = [one for one in records(fixture, Operation) if one.state == "NEEDS_REPAIR"]
    await adopt(fixture, ELSEWHERE)
    with fixture.service.context.store.read() as txn:
        abandoned = txn.get(Operation, stuck.id)
    assert abandoned is not None
    assert abandoned.ended
    assert fact(fixture, f"zvol:{HOME}")["properties"]["compression"] == "zstd"


@pytest.mark.parametrize("before", STATES.values(), ids=STATES)
@pytest.mark.parametrize("way", ["destroyed", "replaced"])
async def test_the_record_alone_is_deleted(
    fixture: ServiceFixture, before: tuple[Any, ...], way: str
) -> None:
    await fixture.do(*before)
    with pytest.raises(FailedPrecondition) as refused:
        await fixture.do(*([FENCE] if before[1:] else []), RECORD_ONLY)
    assert refused.value.reason == "NOT_LOST"
    if before[1:]:
        await fixture.do(PUBLISH)
    if way == "destroyed":
        fixture.host.facts.effect(f"zvol:{HOME}", None)
    else:
        receive(fixture, HOME, HOME)
    copy = fact(fixture, f"zvol:{HOME}")
    if before[1:]:
        with pytest.raises(FailedPrecondition, match="is published to take"):
            await fixture.do(RECORD_ONLY)
        await fixture.do(FENCE)
    await fixture.do(RECORD_ONLY)
    assert records(fixture, Volume) == []
    assert fact(fixture, f"zvol:{HOME}") == copy, "no data were touched"
