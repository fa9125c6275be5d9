"""Who may hold a volume: one host, several where its modes allow it, and how it is taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples import TAKE
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
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.hosts import CreateHost, UpdateHost
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.volumes import CreateVolume, need_publication

if TYPE_CHECKING:
    from tests.doubles import House
    from zfsilod.model.host_facts import Disk
    from zfsilod.model.records import AccessMode, Mode

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


async def prepare(zfsilo: House, mode: Mode = "FILESYSTEM") -> None:
    await zfsilo.do(
        CreateHost(id="other", iqn=OTHER),
        CreateVolume(id="data", capacity_bytes=GIB, mode=mode, access_modes=MULTI),
    )


def publications(zfsilo: House) -> dict[str, Publication]:
    with zfsilo.service.context.store.read() as txn:
        records = list(txn.scan_below(Publication, "data"))
    return {publication.host: publication for publication in records}


def acls(zfsilo: House) -> set[str]:
    return {name.rpartition("/")[2] for name in zfsilo.host.facts.names("acl")}


def publish(host: str, mode: AccessMode, *, readonly: bool = False) -> Publish:
    return Publish(volume="data", host=host, access_mode=mode, readonly=readonly)


async def test_a_second_host_is_refused_and_the_first_named(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(UP[0])
    with pytest.raises(FailedPrecondition, match="published to take") as refused:
        await zfsilo.do(Publish(volume="data", host="other"))
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
async def test_several_hosts_where_their_modes_allow_it(
    zfsilo: House,
    first: AccessMode,
    first_ro: bool,
    second: AccessMode,
    second_ro: bool,
    fits: bool,
) -> None:
    await prepare(zfsilo, "BLOCK")
    await zfsilo.do(publish("take", first, readonly=first_ro))
    wanted = publish("other", second, readonly=second_ro)
    if not fits:
        with pytest.raises(FailedPrecondition, match="published to take"):
            await zfsilo.do(wanted)
        return
    await zfsilo.do(wanted)
    assert acls(zfsilo) == {TAKE, OTHER}
    await zfsilo.do(Unpublish(volume="data", host="take"))
    assert acls(zfsilo) == {OTHER}, "taken from one, it stays with the other"


async def test_a_mode_for_readers_is_write_protected(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(publish("take", "MULTI_NODE_READER_ONLY"))
    assert publications(zfsilo)["take"].readonly
    mapped = [f"mapped:{name}" for name in zfsilo.host.facts.names("mapped")]
    assert [zfsilo.host.facts.get(name) for name in mapped] == ["readonly"]


async def test_several_writers_of_one_filesystem_are_refused(zfsilo: House) -> None:
    await prepare(zfsilo)
    with pytest.raises(InvalidArgument, match="would be destroyed"):
        await zfsilo.do(publish("take", "MULTI_NODE_MULTI_WRITER"))


async def test_a_fence_ends_a_live_session(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(*UP)
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await zfsilo.do(Unpublish(volume="data", host="take"))
    await zfsilo.do(Unpublish(volume="data", host="take", fence=True, grace_s=0))
    assert publications(zfsilo) == {}
    assert acls(zfsilo) == set()
    with pytest.raises(Unavailable, match="is being recovered"):
        await zfsilo.do(Stage(id="data"))


async def connected(zfsilo: House) -> Disk:
    """Connect and log out behind the record's back; return the disk to log in to again."""
    await prepare(zfsilo)
    await zfsilo.do(*UP[:2])
    with zfsilo.service.context.store.read() as txn:
        record = txn.get(Attachment, "data")
    assert record is not None
    zfsilo.host.iscsi.logout(record.disk)
    return record.disk


async def test_who_logs_in_before_its_lun_is_gone_keeps_it(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, lio, iscsi = await connected(zfsilo), zfsilo.host.lio, zfsilo.host.iscsi
    unmap = lio.unmap_lun

    def log_in_and_unmap(target: str, initiator: str) -> None:
        iscsi.login(disk)
        unmap(target, initiator)

    monkeypatch.setattr(lio, "unmap_lun", log_in_and_unmap)
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await zfsilo.do(Unpublish(volume="data", host="take"))
    assert set(publications(zfsilo)) == {"take"}
    assert not iscsi.is_lost(disk)
    assert zfsilo.host.facts.names("mapped") == [f"{disk.target}/{TAKE}"]


async def test_who_logs_in_after_its_lun_is_gone_finds_no_disk(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, lio, iscsi = await connected(zfsilo), zfsilo.host.lio, zfsilo.host.iscsi
    remove = lio.remove_acl

    def log_in_and_remove(target: str, initiator: str) -> None:
        with pytest.raises(Unavailable, match="did not appear"):
            iscsi.login(disk)
        remove(target, initiator)

    monkeypatch.setattr(lio, "remove_acl", log_in_and_remove)
    await zfsilo.do(Unpublish(volume="data", host="take"))
    assert acls(zfsilo) == set()


async def test_force_fences_the_holder_and_admits_the_new_one(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(*UP)
    old = zfsilo.service.context.store.chap("data/take")
    await zfsilo.do(FORCED)
    assert set(publications(zfsilo)) == {"other"}
    assert acls(zfsilo) == {OTHER}
    assert publications(zfsilo)["other"].epoch == 2
    assert zfsilo.service.context.store.chap("data/other") != old


async def test_force_tells_beforehand_what_it_would_do(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(*UP)
    before = zfsilo.facts
    planned = await zfsilo.service.plan(FORCED, caller="uid 0 (unix)")
    kinds = [f"{action.way} {type(action.step).__name__}" for action in planned.actions]
    assert kinds[:3] == ["do Fenced", "undo MappedLun", "undo Acl"]
    assert kinds[-2:] == ["do Acl", "do MappedLun"]
    assert zfsilo.facts == before
    assert set(publications(zfsilo)) == {"take"}


WRONG: list[tuple[Publish, type[ZfsiloError]]] = [
    (FORCED.but(access_mode="SINGLE_NODE_MULTI_WRITER"), InvalidArgument),
    (FORCED.but(access_mode="MULTI_NODE_MULTI_WRITER"), InvalidArgument),
    (FORCED.but(host="poor"), FailedPrecondition),
]


@pytest.mark.parametrize(("wrong", "kind"), WRONG)
async def test_force_ends_nothing_when_the_request_is_wrong(
    zfsilo: House, wrong: Publish, kind: type[ZfsiloError]
) -> None:
    await prepare(zfsilo)
    await zfsilo.do(*UP, CreateHost(id="poor"))
    before = zfsilo.facts
    with pytest.raises(kind):
        await zfsilo.do(wrong)
    assert zfsilo.facts == before


async def test_a_host_with_a_new_name_is_let_in_anew(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(UP[0], UpdateHost(id="take", mask=("iqn",), iqn=f"{TAKE}-new"))
    with (
        zfsilo.service.context.store.read() as txn,
        pytest.raises(FailedPrecondition, match="not published"),
    ):
        need_publication(txn, "data", "take")
    await zfsilo.do(UP[0])
    assert acls(zfsilo) == {f"{TAKE}-new"}
    assert publications(zfsilo)["take"].epoch == 2
    with pytest.raises(AlreadyExists):
        await zfsilo.do(UP[0].but(readonly=True))


async def test_a_host_with_a_new_name_and_an_old_session_is_refused(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(*UP[:2], UpdateHost(id="take", mask=("iqn",), iqn=f"{TAKE}-new"))
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await zfsilo.do(UP[0])
    assert acls(zfsilo) == {TAKE}


async def test_a_host_may_hold_no_more_than_its_limit(zfsilo: House) -> None:
    await prepare(zfsilo)
    await zfsilo.do(
        CreateVolume(id="more", capacity_bytes=GIB),
        UpdateHost(id="take", mask=("max_attachments",), max_attachments=1),
        UP[0],
        UP[0],
    )
    with pytest.raises(ResourceExhausted, match="which is its limit"):
        await zfsilo.do(Publish(volume="more", host="take"))


def test_a_fence_is_never_turned_back() -> None:
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
