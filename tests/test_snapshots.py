"""Snapshots, groups and clones through the service, up to the mounted filesystem of a clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zfsilod.model.records import Attachment, Dependent, Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.context import Context
from zfsilod.requests.deletion import DeleteVolume
from zfsilod.requests.detach import Disconnect, UnmountFrom, Unstage
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
)
from zfsilod.requests.volumes import CreateVolume
from zfsilod.service.purger import Purger

if TYPE_CHECKING:
    from tests.doubles import House
    from zfsilod.model.host_facts import Filesystem
    from zfsilod.requests.request import Request

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
SNAP = CreateSnapshot(id="monday", volume="data")
COPY = CreateVolume(id="copy", capacity_bytes=GIB, source_snapshot="monday")
TWIN = CreateVolume(id="twin", capacity_bytes=GIB, source_volume="data")


def up(name: str, **options: Any) -> tuple[Request[Any], ...]:
    """Return the climb of a volume to its mount."""
    return (
        Publish(volume=name, host="take"),
        Connect(id=name, server="give", volume=name),
        Stage(id=name, **options),
        MountAt(id=name, path=f"/srv/{name}", readonly=bool(options)),
    )


def down(name: str) -> tuple[Request[Any], ...]:
    return (UnmountFrom(id=name), Unstage(id=name), Disconnect(id=name), Unpublish(volume=name))


@pytest.mark.parametrize("equal", [CREATE.but(id="other"), SNAP], ids=lambda equal: equal.kind)
async def test_an_equal_request_that_ended_while_this_one_looked(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch, equal: Request[Any]
) -> None:
    await zfsilo.do(CREATE)
    gather = type(equal).gather
    quicker = [equal]

    async def gather_slowly(asked: Request[Any], context: Context, operation_id: str) -> object:
        inputs = await gather(asked, context, operation_id)
        if quicker:
            await zfsilo.do(quicker.pop())
        return inputs

    monkeypatch.setattr(type(equal), "gather", gather_slowly)
    operation = await zfsilo.service.submit(equal, caller="test")
    assert operation.title.endswith("already so")


def get(zfsilo: House, kind: Any, key: str) -> Any:
    with zfsilo.service.context.store.read() as txn:
        return txn.get(kind, key)


def dependents(zfsilo: House, name: str = "data") -> list[str]:
    uid = get(zfsilo, Volume, name).uid
    with zfsilo.service.context.store.read() as txn:
        return [dependent.name for dependent in txn.scan_below(Dependent, uid)]


def facts(zfsilo: House, kind: str) -> dict[str, Any]:
    return {n: v for n, v in zfsilo.facts.items() if n.startswith(f"{kind}:")}


def filesystem(zfsilo: House, name: str) -> Filesystem:
    record: Filesystem = get(zfsilo, Volume, name).filesystem
    return record


async def purged(zfsilo: House) -> None:
    await Purger(zfsilo.service.context, zfsilo.service).purge()
    with zfsilo.service.context.store.read() as txn:
        live = list(txn.live())
    for operation in live:
        await zfsilo.service.wait(operation.id, 20)


async def test_a_snapshot_there_and_back(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    before = zfsilo.facts
    await zfsilo.do(SNAP)
    snapshot = get(zfsilo, Snapshot, "monday")
    assert (snapshot.volume, snapshot.size_bytes, snapshot.guid != "") == ("data", GIB, True)
    assert dependents(zfsilo) == ["snapshots/monday"]
    again = await zfsilo.do(SNAP)
    assert again.title.endswith("already so")
    await zfsilo.do(DeleteSnapshot(id="monday"))
    assert zfsilo.facts == before
    assert dependents(zfsilo) == []
    with pytest.raises(NotFound):
        await zfsilo.do(DeleteSnapshot(id="monday"))


async def test_what_is_refused(zfsilo: House) -> None:
    await zfsilo.do(CREATE, CREATE.but(id="other"), SNAP)
    refusals: list[tuple[Request[Any], type[Exception], str]] = [
        (SNAP.but(volume="other"), AlreadyExists, "of data"),
        (SNAP.but(volume="none"), NotFound, "no volume none"),
        (SNAP.but(id="No"), InvalidArgument, "snapshot id"),
        (DeleteVolume(id="data"), FailedPrecondition, "snapshots/monday"),
        (COPY.but(source_snapshot="none"), NotFound, "no snapshot none"),
        (COPY.but(source_volume="data"), InvalidArgument, "not from both"),
        (COPY.but(capacity_bytes=GIB // 2), InvalidArgument, "at least as large"),
        (COPY.but(properties=(("volblocksize", "8k"),)), InvalidArgument, "cannot be changed"),
        (CreateSnapshotGroup(id="g", volumes=()), InvalidArgument, "1 to 64"),
        (CreateSnapshotGroup(id="g", volumes=("data", "data")), InvalidArgument, "named once"),
        (CreateSnapshotGroup(id="g", volumes=("data", "none")), NotFound, "no volume none"),
    ]
    before = zfsilo.facts
    for request, error, message in refusals:
        with pytest.raises(error, match=message):
            await zfsilo.do(request)
    assert zfsilo.facts == before


async def test_a_lost_snapshot_is_not_taken_again(zfsilo: House) -> None:
    await zfsilo.do(CREATE, SNAP)
    (name,) = facts(zfsilo, "cut")
    zfsilo.host.facts.effect(name, None)
    with pytest.raises(FailedPrecondition, match="not taken again"):
        await zfsilo.do(SNAP)


async def test_a_group_is_one_cut_and_goes_as_a_whole(zfsilo: House) -> None:
    group = CreateSnapshotGroup(id="both", volumes=("data", "other"))
    await zfsilo.do(CREATE, CREATE.but(id="other"))
    before = zfsilo.facts
    await zfsilo.do(group)
    members = [get(zfsilo, Snapshot, name) for name in get(zfsilo, SnapshotGroup, "both").snapshots]
    assert [member.volume for member in members] == ["data", "other"]
    assert {member.group for member in members} == {"both"}
    assert len({member.uid for member in members}) == len(facts(zfsilo, "cut")) == 1
    assert (await zfsilo.do(group)).title.endswith("already so")
    with pytest.raises(AlreadyExists):
        await zfsilo.do(group.but(volumes=("other", "data")))
    with pytest.raises(FailedPrecondition, match="part of the group"):
        await zfsilo.do(DeleteSnapshot(id=members[0].id))
    await zfsilo.do(DeleteSnapshotGroup(id="both"))
    assert zfsilo.facts == before
    with zfsilo.service.context.store.read() as txn:
        assert [*txn.scan(Snapshot), *txn.scan(SnapshotGroup), *txn.scan(Dependent)] == []


async def test_a_clone_gets_its_own_uuid_and_the_whole_disk(zfsilo: House) -> None:
    await zfsilo.do(CREATE, *up("data"), SNAP)
    origin = filesystem(zfsilo, "data")
    await zfsilo.do(COPY.but(capacity_bytes=2 * GIB))
    cloned = filesystem(zfsilo, "copy")
    assert (cloned.state, cloned.type, cloned.origin) == ("CLONED", "ext4", origin.uuid)
    await zfsilo.do(*up("copy"))
    assert filesystem(zfsilo, "copy") == cloned.but(state="READY", host="take", origin="")
    assert get(zfsilo, Attachment, "copy").filesystem.uuid == cloned.uuid != origin.uuid
    content = zfsilo.facts[f"content:{get(zfsilo, Volume, 'copy').uid}"]
    assert content == {"type": "ext4", "uuid": cloned.uuid, "size": 2 * GIB, "whole": True}
    assert filesystem(zfsilo, "data") == origin


async def test_a_clone_is_read_as_it_is(zfsilo: House) -> None:
    await zfsilo.do(CREATE, *up("data"), SNAP, COPY)
    before = facts(zfsilo, "content")
    await zfsilo.do(*up("copy", readonly=True))
    assert filesystem(zfsilo, "copy").state == "CLONED"
    assert facts(zfsilo, "content") == before
    await zfsilo.do(*down("copy"), *up("copy"))
    assert filesystem(zfsilo, "copy").state == "READY"


async def test_a_clone_of_a_clone_that_nobody_used(zfsilo: House) -> None:
    await zfsilo.do(CREATE, *up("data"), SNAP, COPY, TWIN.but(source_volume="copy"))
    await zfsilo.do(*up("twin"))
    uuids = {filesystem(zfsilo, name).uuid for name in ("data", "copy", "twin")}
    assert len(uuids) == 3


async def test_a_volume_of_a_volume_leaves_no_snapshot_behind(zfsilo: House) -> None:
    await zfsilo.do(CREATE, TWIN.but(capacity_bytes=0))
    assert get(zfsilo, Volume, "twin").capacity_bytes == GIB
    assert (await zfsilo.do(TWIN.but(capacity_bytes=0))).title.endswith("already so")
    with zfsilo.service.context.store.read() as txn:
        assert list(txn.scan(Snapshot)) == []
    assert dependents(zfsilo) == ["volumes/twin"]
    await zfsilo.do(DeleteVolume(id="twin"))
    assert (facts(zfsilo, "cut"), dependents(zfsilo)) == ({}, [])
    await zfsilo.do(DeleteVolume(id="data"))


async def test_what_depends_on_a_volume_is_named_once(
    zfsilo: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await zfsilo.do(CREATE, SNAP, TWIN)
    look, data = zfsilo.host.zfs.dependents, "tank/zfsilo/data"
    seen = (*look(data), f"{data}@zfsilo-{'0' * 32}", "tank/zfsilo/twin")  # of an own snapshot
    monkeypatch.setattr(
        zfsilo.host.zfs, "dependents", lambda _dataset: (*seen, f"{data}@nightly", "tank/vm")
    )
    with pytest.raises(FailedPrecondition) as refused:
        await zfsilo.do(DeleteVolume(id="data"))
    named = f"snapshots/monday, volumes/twin, {data}@nightly, tank/vm"
    assert refused.value.facts["dependents"] == named
    assert "or keep them (--keep-dependents)" in refused.value.message


async def test_a_deleted_snapshot_goes_with_its_last_clone(zfsilo: House) -> None:
    await zfsilo.do(CREATE, SNAP, COPY, COPY.but(id="more"), DeleteSnapshot(id="monday"))
    assert len(facts(zfsilo, "cut")) == 1
    with pytest.raises(NotFound):
        await zfsilo.do(COPY.but(id="third"))
    await zfsilo.do(SNAP)  # the name is free
    await zfsilo.do(DeleteSnapshot(id="monday"), DeleteVolume(id="copy"))
    assert len(facts(zfsilo, "cut")) == 1
    await zfsilo.do(DeleteVolume(id="more"))
    assert facts(zfsilo, "cut") == {}


async def test_snapshots_outlive_their_volume(zfsilo: House) -> None:
    await zfsilo.do(CREATE, SNAP, DeleteVolume(id="data", dependents="KEEP"))
    await zfsilo.do(CREATE)  # another volume of that name, which the snapshot is not of
    with pytest.raises(AlreadyExists):
        await zfsilo.do(SNAP)
    await zfsilo.do(COPY, DeleteSnapshot(id="monday"))
    await purged(zfsilo)
    with zfsilo.service.context.store.read() as txn:
        assert len(list(txn.scan(Trashed))) == 1
    await zfsilo.do(DeleteVolume(id="copy"))
    await purged(zfsilo)
    assert set(facts(zfsilo, "zvol")) == {"zvol:tank/zfsilo/data"}
    assert facts(zfsilo, "cut") == {}


async def test_a_thick_clone_reserves_its_room(zfsilo: House) -> None:
    await zfsilo.do(CREATE, SNAP, COPY.but(thin=False))
    assert not facts(zfsilo, "zvol")["zvol:tank/zfsilo/copy"]["thin"]
    with pytest.raises(ResourceExhausted):
        await zfsilo.do(COPY.but(id="more", thin=False, capacity_bytes=2 << 40))


async def test_a_raw_block_volume_stays_one(zfsilo: House) -> None:
    await zfsilo.do(CREATE.but(mode="BLOCK"), SNAP)
    with pytest.raises(InvalidArgument, match="raw block"):
        await zfsilo.do(COPY)
    await zfsilo.do(COPY.but(mode="BLOCK"))


async def test_a_clone_that_fails_leaves_nothing(zfsilo: House) -> None:
    await zfsilo.do(CREATE, SNAP)
    before = zfsilo.facts
    for effect in range(1, 4):
        zfsilo.host.facts.light_fuse(effect, when="after", how="error")
        with pytest.raises(CommandFailed):
            await zfsilo.do(TWIN)
        assert {n: v for n, v in zfsilo.facts.items() if n != "blown"} == before
        assert get(zfsilo, Volume, "twin") is None


async def test_a_volume_that_grew_before_it_was_staged_is_filled(zfsilo: House) -> None:
    from zfsilod.requests.volumes import UpdateVolume

    await zfsilo.do(CREATE, *up("data"), *down("data")[:2])
    await zfsilo.do(UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB))
    await zfsilo.do(Stage(id="data"))
    assert get(zfsilo, Attachment, "data").disk.size_bytes == 2 * GIB
    (content,) = facts(zfsilo, "content").values()
    assert content["size"] == 2 * GIB
