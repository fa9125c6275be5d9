"""Snapshots, groups and clones, up to the mounted filesystem of a clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from zfsilod.model.errors import (
    AlreadyExists,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zfsilod.model.records import Attachment, Dependent, Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
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
    from tests.service_fixture import ServiceFixture
    from zfsilod.model.host_facts import Filesystem
    from zfsilod.requests.context import Context
    from zfsilod.requests.request import Request

GIB = 1 << 30
CREATE = CreateVolume(id="data", capacity_bytes=GIB)
SNAP = CreateSnapshot(id="monday", volume="data")
COPY = CreateVolume(id="copy", capacity_bytes=GIB, source_snapshot="monday")
TWIN = CreateVolume(id="twin", capacity_bytes=GIB, source_volume="data")


def up(name: str, **options: Any) -> tuple[Request[Any], ...]:
    """Return the requests from the publication of a volume to its mount."""
    return (
        Publish(volume=name, host="take"),
        Connect(id=name, server="give", volume=name),
        Stage(id=name, **options),
        MountAt(id=name, path=f"/srv/{name}", readonly=bool(options)),
    )


def down(name: str) -> tuple[Request[Any], ...]:
    return (UnmountFrom(id=name), Unstage(id=name), Disconnect(id=name), Unpublish(volume=name))


@pytest.mark.parametrize("equal", [CREATE.but(id="other"), SNAP], ids=lambda equal: equal.kind)
async def test_an_equal_request_that_ended_while_inputs_were_gathered(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch, equal: Request[Any]
) -> None:
    await fixture.do(CREATE)
    gather = type(equal).gather
    quicker = [equal]

    async def gather_slowly(asked: Request[Any], context: Context, operation_id: str) -> object:
        inputs = await gather(asked, context, operation_id)
        if quicker:
            await fixture.do(quicker.pop())
        return inputs

    monkeypatch.setattr(type(equal), "gather", gather_slowly)
    operation = await fixture.service.submit(equal, caller=administrator("test"))
    assert operation.title.endswith("already so")


def get(fixture: ServiceFixture, kind: Any, key: str) -> Any:
    with fixture.service.context.store.read() as txn:
        return txn.get(kind, key)


def dependents(fixture: ServiceFixture, name: str = "data") -> list[str]:
    uid = get(fixture, Volume, name).uid
    with fixture.service.context.store.read() as txn:
        return [dependent.name for dependent in txn.scan_below(Dependent, uid)]


def facts(fixture: ServiceFixture, kind: str) -> dict[str, Any]:
    return {n: v for n, v in fixture.facts.items() if n.startswith(f"{kind}:")}


def filesystem(fixture: ServiceFixture, name: str) -> Filesystem:
    record: Filesystem = get(fixture, Volume, name).filesystem
    return record


async def purged(fixture: ServiceFixture) -> None:
    await Purger(fixture.service.context, fixture.service).purge()
    with fixture.service.context.store.read() as txn:
        live = list(txn.live())
    for operation in live:
        await fixture.service.wait(operation.id, 20)


async def test_create_and_delete_a_snapshot(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE)
    before = fixture.facts
    await fixture.do(SNAP)
    snapshot = get(fixture, Snapshot, "monday")
    assert (snapshot.volume, snapshot.size_bytes, snapshot.guid != "") == ("data", GIB, True)
    assert dependents(fixture) == ["snapshots/monday"]
    again = await fixture.do(SNAP)
    assert again.title.endswith("already so")
    await fixture.do(DeleteSnapshot(id="monday"))
    assert fixture.facts == before
    assert dependents(fixture) == []
    with pytest.raises(NotFound):
        await fixture.do(DeleteSnapshot(id="monday"))


async def test_refusals(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, CREATE.but(id="other"), SNAP)
    refusals: list[tuple[Request[Any], type[Exception], str]] = [
        (SNAP.but(volume="other"), AlreadyExists, "of volume data"),
        (SNAP.but(volume="none"), NotFound, "no volume none"),
        (SNAP.but(id="No"), InvalidArgument, "snapshot id"),
        (DeleteVolume(id="data"), FailedPrecondition, "snapshots/monday"),
        (COPY.but(source_snapshot="none"), NotFound, "no snapshot none"),
        (COPY.but(source_volume="data"), InvalidArgument, "not both"),
        (COPY.but(capacity_bytes=GIB // 2), InvalidArgument, "smaller than its source"),
        (
            COPY.but(properties=(("volblocksize", "8k"),)),
            InvalidArgument,
            "keeps the one of its source",
        ),
        (CreateSnapshotGroup(id="g", volumes=()), InvalidArgument, "1 to 64"),
        (CreateSnapshotGroup(id="g", volumes=("data", "data")), InvalidArgument, "each once"),
        (CreateSnapshotGroup(id="g", volumes=("data", "none")), NotFound, "no volume none"),
    ]
    before = fixture.facts
    for request, error, message in refusals:
        with pytest.raises(error, match=message):
            await fixture.do(request)
    assert fixture.facts == before


async def test_a_missing_snapshot_is_not_recreated(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, SNAP)
    (name,) = facts(fixture, "cut")
    fixture.host.facts.effect(name, None)
    with pytest.raises(FailedPrecondition, match="not taken again"):
        await fixture.do(SNAP)


async def test_members_of_a_group_have_the_names_of_group_and_volume(
    fixture: ServiceFixture,
) -> None:
    group = CreateSnapshotGroup(id="pair", volumes=("data", "other"))
    await fixture.do(CREATE, CREATE.but(id="other"), group)
    with fixture.service.context.read() as txn:
        assert [one.id for one in txn.scan(Snapshot)] == ["pair-data", "pair-other"]
    await fixture.do(CreateSnapshot(id="both-data", volume="data"))
    for name in ("both", "b" * 60):
        await fixture.do(group.but(id=name))
        with fixture.service.context.read() as txn:
            members = [one.id for one in txn.scan(Snapshot) if one.group == name]
        assert [len(member) for member in members] == [26, 26], "taken, or too long: ULIDs"


async def test_a_group_is_taken_and_deleted_as_a_whole(fixture: ServiceFixture) -> None:
    group = CreateSnapshotGroup(id="both", volumes=("data", "other"))
    await fixture.do(CREATE, CREATE.but(id="other"))
    before = fixture.facts
    await fixture.do(group)
    members = [
        get(fixture, Snapshot, name) for name in get(fixture, SnapshotGroup, "both").snapshots
    ]
    assert [member.volume for member in members] == ["data", "other"]
    assert {member.group for member in members} == {"both"}
    assert len({member.uid for member in members}) == len(facts(fixture, "cut")) == 1
    assert (await fixture.do(group)).title.endswith("already so")
    with pytest.raises(AlreadyExists):
        await fixture.do(group.but(volumes=("other", "data")))
    with pytest.raises(FailedPrecondition, match="part of the group"):
        await fixture.do(DeleteSnapshot(id=members[0].id))
    await fixture.do(DeleteSnapshotGroup(id="both"))
    assert fixture.facts == before
    with fixture.service.context.store.read() as txn:
        assert [*txn.scan(Snapshot), *txn.scan(SnapshotGroup), *txn.scan(Dependent)] == []


async def test_a_clone_gets_its_own_uuid_and_the_whole_disk(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, *up("data"), SNAP)
    origin = filesystem(fixture, "data")
    await fixture.do(COPY.but(capacity_bytes=2 * GIB))
    cloned = filesystem(fixture, "copy")
    assert (cloned.state, cloned.type, cloned.origin) == ("CLONED", "ext4", origin.uuid)
    await fixture.do(*up("copy"))
    assert filesystem(fixture, "copy") == cloned.but(state="READY", host="take", origin="")
    assert get(fixture, Attachment, "copy").filesystem.uuid == cloned.uuid != origin.uuid
    content = fixture.facts[f"content:{get(fixture, Volume, 'copy').uid}"]
    assert content == {"type": "ext4", "uuid": cloned.uuid, "size": 2 * GIB, "whole": True}
    assert filesystem(fixture, "data") == origin


async def test_a_clone_mounted_read_only_keeps_its_uuid(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, *up("data"), SNAP, COPY)
    before = facts(fixture, "content")
    await fixture.do(*up("copy", readonly=True))
    assert filesystem(fixture, "copy").state == "CLONED"
    assert facts(fixture, "content") == before
    await fixture.do(*down("copy"), *up("copy"))
    assert filesystem(fixture, "copy").state == "READY"


async def test_a_clone_of_an_unused_clone_gets_its_own_uuid(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, *up("data"), SNAP, COPY, TWIN.but(source_volume="copy"))
    await fixture.do(*up("twin"))
    uuids = {filesystem(fixture, name).uuid for name in ("data", "copy", "twin")}
    assert len(uuids) == 3


async def test_a_volume_of_a_volume_leaves_no_snapshot_behind(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, TWIN.but(capacity_bytes=0))
    assert get(fixture, Volume, "twin").capacity_bytes == GIB
    assert (await fixture.do(TWIN.but(capacity_bytes=0))).title.endswith("already so")
    with fixture.service.context.store.read() as txn:
        assert list(txn.scan(Snapshot)) == []
    assert dependents(fixture) == ["volumes/twin"]
    await fixture.do(DeleteVolume(id="twin"))
    assert (facts(fixture, "cut"), dependents(fixture)) == ({}, [])
    await fixture.do(DeleteVolume(id="data"))


async def test_a_refusal_names_each_dependent_once(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(CREATE, SNAP, TWIN)
    look, data = fixture.host.zfs.dependents, "tank/zfsilo/data"
    seen = (
        *look(data),
        f"{data}@zfsilo-{'0' * 32}",
        "tank/zfsilo/twin",
    )  # a snapshot with a record
    monkeypatch.setattr(
        fixture.host.zfs, "dependents", lambda _dataset: (*seen, f"{data}@nightly", "tank/vm")
    )
    with pytest.raises(FailedPrecondition) as refused:
        await fixture.do(DeleteVolume(id="data"))
    named = f"snapshots/monday, volumes/twin, {data}@nightly, tank/vm"
    assert refused.value.facts["dependents"] == named
    assert "or keep them (--keep-dependents)" in refused.value.message


async def test_a_deleted_snapshot_goes_with_its_last_clone(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, SNAP, COPY, COPY.but(id="more"), DeleteSnapshot(id="monday"))
    assert len(facts(fixture, "cut")) == 1
    with pytest.raises(NotFound):
        await fixture.do(COPY.but(id="third"))
    await fixture.do(SNAP)  # the name is free
    await fixture.do(DeleteSnapshot(id="monday"), DeleteVolume(id="copy"))
    assert len(facts(fixture, "cut")) == 1
    await fixture.do(DeleteVolume(id="more"))
    assert facts(fixture, "cut") == {}


async def test_snapshots_outlive_their_volume(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, SNAP, DeleteVolume(id="data", dependents="KEEP"))
    await fixture.do(CREATE)  # another volume with this name, not the origin of the snapshot
    with pytest.raises(AlreadyExists):
        await fixture.do(SNAP)
    await fixture.do(COPY, DeleteSnapshot(id="monday"))
    await purged(fixture)
    with fixture.service.context.store.read() as txn:
        assert len(list(txn.scan(Trashed))) == 1
    await fixture.do(DeleteVolume(id="copy"))
    await purged(fixture)
    assert set(facts(fixture, "zvol")) == {"zvol:tank/zfsilo/data"}
    assert facts(fixture, "cut") == {}


async def test_a_thick_clone_reserves_its_space(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, SNAP, COPY.but(thin=False))
    assert not facts(fixture, "zvol")["zvol:tank/zfsilo/copy"]["thin"]
    with pytest.raises(ResourceExhausted):
        await fixture.do(COPY.but(id="more", thin=False, capacity_bytes=2 << 40))


async def test_a_clone_of_a_block_volume_is_a_block_volume(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE.but(mode="BLOCK"), SNAP)
    with pytest.raises(InvalidArgument, match="raw block"):
        await fixture.do(COPY)
    await fixture.do(COPY.but(mode="BLOCK"))


async def test_a_clone_that_fails_leaves_nothing(fixture: ServiceFixture) -> None:
    await fixture.do(CREATE, SNAP)
    before = fixture.facts
    for effect in range(1, 4):
        fixture.host.facts.light_fuse(effect, when="after", how="error")
        with pytest.raises(CommandFailed):
            await fixture.do(TWIN)
        assert {n: v for n, v in fixture.facts.items() if n != "blown"} == before
        assert get(fixture, Volume, "twin") is None


async def test_a_stage_grows_the_filesystem_of_a_grown_volume(fixture: ServiceFixture) -> None:
    from zfsilod.requests.volumes import UpdateVolume

    await fixture.do(CREATE, *up("data"), *down("data")[:2])
    await fixture.do(UpdateVolume(id="data", mask=("capacity_bytes",), capacity_bytes=2 * GIB))
    await fixture.do(Stage(id="data"))
    assert get(fixture, Attachment, "data").disk.size_bytes == 2 * GIB
    (content,) = facts(fixture, "content").values()
    assert content["size"] == 2 * GIB
