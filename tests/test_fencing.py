"""Publications to several hosts: which access modes fit together, fencing, and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import TAKE
from tests.service_fixture import administrator
from zfsilod.engine import plans
from zfsilod.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.records import Attachment, Publication, Volume
from zfsilod.model.settings import Export
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
from zfsilod.requests.hosts import CreateHost, UpdateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, need_publication

if TYPE_CHECKING:
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.words import AccessMode, Mode

GIB = 1 << 30
OTHER = "iqn.2024-01.lab.other:host"
MULTI: tuple[AccessMode, ...] = (
    "SINGLE_NODE_WRITER",
    "MULTI_NODE_READER_ONLY",
    "MULTI_NODE_SINGLE_WRITER",
    "MULTI_NODE_MULTI_WRITER",
)
UP = (
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
    Stage(id="data"),
    MountAt(id="data", path="/srv/data"),
)
FORCED = Publish(volume="data", host="other", force=True)


async def prepare(fixture: ServiceFixture, mode: Mode = "FILESYSTEM") -> None:
    await fixture.do(
        CreateHost(id="other", iqn=OTHER),
        CreateVolume(id="data", capacity_bytes=GIB, mode=mode, access_modes=MULTI),
    )


def publications(fixture: ServiceFixture) -> dict[str, Publication]:
    with fixture.service.context.store.read() as txn:
        records = list(txn.scan_below(Publication, "data"))
    return {publication.host: publication for publication in records}


def acls(fixture: ServiceFixture) -> set[str]:
    return {name.rpartition("/")[2] for name in fixture.host.facts.names("acl")}


def publish(host: str, mode: AccessMode, *, readonly: bool = False) -> Publish:
    return Publish(volume="data", host=host, access_mode=mode, readonly=readonly)


async def test_a_refusal_of_a_second_host_names_the_first(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(UP[0])
    with pytest.raises(FailedPrecondition, match="published to take") as refused:
        await fixture.do(Publish(volume="data", host="other"))
    assert refused.value.facts["host"] == "take"


TOGETHER: list[tuple[AccessMode, bool, AccessMode, bool, bool]] = [
    ("MULTI_NODE_READER_ONLY", False, "MULTI_NODE_READER_ONLY", False, True),
    ("MULTI_NODE_SINGLE_WRITER", False, "MULTI_NODE_SINGLE_WRITER", True, True),
    ("MULTI_NODE_SINGLE_WRITER", False, "MULTI_NODE_SINGLE_WRITER", False, False),
    ("MULTI_NODE_SINGLE_WRITER", False, "MULTI_NODE_READER_ONLY", False, False),
    ("MULTI_NODE_MULTI_WRITER", False, "MULTI_NODE_MULTI_WRITER", False, True),
    ("MULTI_NODE_MULTI_WRITER", False, "SINGLE_NODE_WRITER", False, False),
    ("SINGLE_NODE_WRITER", False, "MULTI_NODE_MULTI_WRITER", True, False),
]


@pytest.mark.parametrize(("first", "first_ro", "second", "second_ro", "fits"), TOGETHER)
async def test_several_hosts_need_compatible_access_modes(
    fixture: ServiceFixture,
    first: AccessMode,
    first_ro: bool,
    second: AccessMode,
    second_ro: bool,
    fits: bool,
) -> None:
    await prepare(fixture, "BLOCK")
    await fixture.do(publish("take", first, readonly=first_ro))
    wanted = publish("other", second, readonly=second_ro)
    if not fits:
        with pytest.raises(FailedPrecondition, match="published to take"):
            await fixture.do(wanted)
        return
    await fixture.do(wanted)
    assert acls(fixture) == {TAKE, OTHER}
    await fixture.do(Unpublish(volume="data", host="take"))
    assert acls(fixture) == {OTHER}, "an unpublish from one host keeps the ACL of the other"


async def test_a_reader_mode_is_read_only_at_the_target(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(publish("take", "MULTI_NODE_READER_ONLY"))
    assert publications(fixture)["take"].readonly
    mapped = [f"mapped:{name}" for name in fixture.host.facts.names("mapped")]
    assert [fixture.host.facts.get(name) for name in mapped] == ["readonly"]


async def test_several_writers_of_one_filesystem_are_refused(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    with pytest.raises(InvalidArgument, match="would destroy the filesystem"):
        await fixture.do(publish("take", "MULTI_NODE_MULTI_WRITER"))


async def test_a_fence_ends_a_live_session(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(*UP)
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await fixture.do(Unpublish(volume="data", host="take"))
    await fixture.do(Unpublish(volume="data", host="take", fence=True, grace_s=0))
    assert publications(fixture) == {}
    assert acls(fixture) == set()
    with pytest.raises(Unavailable, match="is being recovered"):
        await fixture.do(Stage(id="data"))


async def connected(fixture: ServiceFixture) -> Disk:
    """Connect, log out without changing the record, and return the disk for a new login."""
    await prepare(fixture)
    await fixture.do(*UP[:2])
    with fixture.service.context.store.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    fixture.host.iscsi.logout(record.disk)
    return record.disk


async def test_a_login_before_the_lun_is_unmapped_refuses_the_unpublish(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, lio, iscsi = await connected(fixture), fixture.host.lio, fixture.host.iscsi
    unmap = lio.unmap_lun

    def log_in_and_unmap(target: str, initiator: str) -> None:
        iscsi.login(disk)
        unmap(target, initiator)

    monkeypatch.setattr(lio, "unmap_lun", log_in_and_unmap)
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await fixture.do(Unpublish(volume="data", host="take"))
    assert set(publications(fixture)) == {"take"}
    assert not iscsi.is_lost(disk)
    assert fixture.host.facts.names("mapped") == [f"{disk.target}/{TAKE}"]


async def test_a_login_after_the_lun_is_unmapped_has_no_disk(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, lio, iscsi = await connected(fixture), fixture.host.lio, fixture.host.iscsi
    remove = lio.remove_acl

    def log_in_and_remove(target: str, initiator: str) -> None:
        with pytest.raises(Unavailable, match="did not appear"):
            iscsi.login(disk)
        remove(target, initiator)

    monkeypatch.setattr(lio, "remove_acl", log_in_and_remove)
    await fixture.do(Unpublish(volume="data", host="take"))
    assert acls(fixture) == set()


async def test_force_fences_the_old_host_and_publishes_to_the_new_one(
    fixture: ServiceFixture,
) -> None:
    await prepare(fixture)
    await fixture.do(*UP)
    old = fixture.service.context.store.chap("data/take")
    await fixture.do(FORCED)
    assert set(publications(fixture)) == {"other"}
    assert acls(fixture) == {OTHER}
    assert publications(fixture)["other"].epoch == 3
    assert fixture.service.context.store.chap("data/other") != old


async def test_a_plan_of_a_forced_publish_has_the_fence(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(*UP)
    before = fixture.facts
    planned = await fixture.service.plan(FORCED, caller=administrator("uid 0 (unix)"))
    kinds = [f"{action.way} {type(action.step).__name__}" for action in planned.actions]
    assert kinds[:2] == ["do NoOtherPath", "do Epoch"]
    assert kinds[2:5] == ["do Fenced", "undo MappedLun", "undo Acl"]
    assert kinds[-4:] == ["do Acl", "do MappedLun", "do Portals", "do Enabled"]
    assert fixture.facts == before
    assert set(publications(fixture)) == {"take"}


WRONG: list[tuple[Publish, type[ZfsiloError]]] = [
    (FORCED.but(access_mode="SINGLE_NODE_MULTI_WRITER"), InvalidArgument),
    (FORCED.but(access_mode="MULTI_NODE_MULTI_WRITER"), InvalidArgument),
    (FORCED.but(host="poor"), FailedPrecondition),
]


@pytest.mark.parametrize(("wrong", "kind"), WRONG)
async def test_a_wrong_forced_request_fences_nobody(
    fixture: ServiceFixture, wrong: Publish, kind: type[ZfsiloError]
) -> None:
    await prepare(fixture)
    await fixture.do(*UP, CreateHost(id="poor"))
    before = fixture.facts
    with pytest.raises(kind):
        await fixture.do(wrong)
    assert fixture.facts == before


async def test_a_host_with_a_new_iqn_gets_a_new_publication(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(UP[0], UpdateHost(id="take", mask=("iqn",), iqn=f"{TAKE}-new"))
    with (
        fixture.service.context.store.read() as txn,
        pytest.raises(FailedPrecondition, match="not published"),
    ):
        need_publication(txn, "data", "take")
    await fixture.do(UP[0])
    assert acls(fixture) == {f"{TAKE}-new"}
    assert publications(fixture)["take"].epoch == 2
    with pytest.raises(AlreadyExists):
        await fixture.do(UP[0].but(readonly=True))


async def test_a_host_with_a_new_iqn_and_an_old_session_is_refused(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(*UP[:2], UpdateHost(id="take", mask=("iqn",), iqn=f"{TAKE}-new"))
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await fixture.do(UP[0])
    assert acls(fixture) == {TAKE}


async def test_a_host_may_hold_no_more_than_its_limit(fixture: ServiceFixture) -> None:
    await prepare(fixture)
    await fixture.do(
        CreateVolume(id="more", capacity_bytes=GIB),
        UpdateHost(id="take", mask=("max_attachments",), max_attachments=1),
        UP[0],
        UP[0],
    )
    with pytest.raises(ResourceExhausted, match="the limit of its host record"):
        await fixture.do(Publish(volume="more", host="take"))


def test_a_fence_is_final() -> None:
    volume = Volume(
        id="data",
        uid="0" * 32,
        dataset="tank/data",
        capacity_bytes=GIB,
        thin=True,
        mode="BLOCK",
        volblocksize=4096,
    )
    how = Export(prefix="iqn.2026-01.org.zfsilo:give", portals=())
    publication = Publication(id="data/take", volume="data", host="take", initiator=TAKE)
    actions = plans.unpublish(volume, publication, how, [], fence=plans.Fence(grace_s=5))
    assert actions[0].final
