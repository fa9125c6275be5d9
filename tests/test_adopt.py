"""What no record knows: listed, removed when asked, or taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    FailedPrecondition,
    NotFound,
    StoreCorrupt,
)
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.records import Attachment, Dependent, Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.requests import orphans
from zfsilod.requests.adoption import find
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume, Purger, UndeleteVolume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.pool_import import adopt_all
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
)
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.storage.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.doubles import House

GIB = 1 << 30
LABELS = (("app", "db"), ("csi.zfsilo.io/name", 'odd "name"\n\u00e9'))
CREATE = CreateVolume(
    id="data",
    capacity_bytes=GIB,
    mode="FILESYSTEM",
    labels=LABELS,
    hosts=("take",),
    properties=(("compression", "zstd"),),
    access_modes=("SINGLE_NODE_WRITER", "MULTI_NODE_READER_ONLY"),
)
UP = (
    CREATE,
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
    Stage(id="data"),
    MountAt(id="data", path="/srv/data"),
)
DOWN = (Disconnect(id="data", force=True), Unpublish(volume="data"))


def volume(zfsilo: House) -> Volume | None:
    with zfsilo.service.store.read() as txn:
        return txn.get(Volume, "data")


async def forget(zfsilo: House, *buckets: str) -> None:
    """Lose records, as with the state directory."""
    for bucket in buckets:
        key = "data/take" if bucket == "publication" else "data"
        await zfsilo.service.write(lambda txn, b=bucket, k=key: txn.drop(b, k))  # type: ignore[misc]


async def names(zfsilo: House) -> list[str]:
    return [each.name.partition("/")[0] for each in await orphans.find(zfsilo.service)]


async def test_what_records_own_is_no_orphan(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    assert await names(zfsilo) == []


async def test_what_a_running_operation_is_about_is_no_orphan(zfsilo: House) -> None:
    zfsilo.launcher.gate.clear()
    begun = await zfsilo.service.submit(CREATE, caller="a")
    uid = next(step.uid for step in (m.step for m in begun.actions) if hasattr(step, "uid"))
    zfsilo.host.zfs.create_zvol(
        "tank/zfsilo/data",
        size_bytes=GIB,
        thin=True,
        volblocksize=16384,
        properties=(),
        marks=(("zfsilo:uid", uid),),
    )
    assert await names(zfsilo) == []
    zfsilo.launcher.gate.set()
    await zfsilo.service.wait(begun.id, 10)


async def test_what_lost_its_record_is_listed_and_removed_when_asked(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await forget(zfsilo, "attachment", "publication", "volume")
    assert await names(zfsilo) == ["export", "node", "session", "zvol"]
    found = [each.name for each in await orphans.find(zfsilo.service)]
    before = zfsilo.facts
    with pytest.raises(Busy, match="end that first, or remove it with --force"):
        await zfsilo.do(RemoveOrphans(names=tuple(found)))
    assert zfsilo.facts == before
    await zfsilo.do(RemoveOrphans(names=tuple(found), force=True))
    assert {n.partition(":")[0] for n in zfsilo.facts} == {"content", "point"}
    with pytest.raises(NotFound, match="no orphan zvol/tank"):
        await zfsilo.do(RemoveOrphans(names=("zvol/tank/zfsilo/data",)))


async def test_an_admission_without_a_publication_stays_until_asked(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await forget(zfsilo, "publication")
    before = zfsilo.facts
    with pytest.raises(Conflict, match="which no publication names: see zfsiloctl orphan list"):
        await zfsilo.service.sync("data", caller="a")
    report = await zfsilo.service.sync_all(caller="a")
    assert "no publication names" in dict(report.complaints)["data"]
    assert zfsilo.facts == before, "a lost record cuts nobody off"
    (orphan,) = await orphans.find(zfsilo.service)
    assert orphan.name.startswith("acl/")
    await zfsilo.do(RemoveOrphans(names=(orphan.name,)), Disconnect(id="data", force=True))
    await zfsilo.service.sync_all(caller="a")
    assert {n.partition(":")[0] for n in zfsilo.facts} & {"target", "acl", "backstore"} == set()


async def test_a_stray_mount_is_an_orphan(zfsilo: House) -> None:
    await zfsilo.do(*UP)

    def unmounted(txn: Any) -> None:
        found = txn.get(Attachment, "data")
        txn.put(found.but(mounts=(), state="STAGED"))

    await zfsilo.service.write(unmounted)
    (orphan,) = await orphans.find(zfsilo.service)
    assert orphan.name == "mount/srv/data"
    await zfsilo.do(RemoveOrphans(names=(orphan.name,), force=True))
    assert zfsilo.host.facts.names("mount") == ["/var/lib/zfsilo/staging/data"]


def timeless(found: Volume) -> Volume:
    """Return a volume without what an adoption cannot know."""
    filesystem = found.filesystem.but(host="", operation="")
    return found.but(revision=0, epoch=0, created_at=0, updated_at=0, filesystem=filesystem)


async def test_a_store_is_rebuilt_from_the_pool(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await zfsilo.do(UpdateVolume(id="data", mask=("hosts",), hosts=("take", "other")), *DOWN)
    before = volume(zfsilo)
    assert before is not None
    await forget(zfsilo, "volume")
    assert await adopted(zfsilo) == ["volumes/data"]
    after = volume(zfsilo)
    assert after is not None
    assert after.epoch > before.epoch, "no epoch comes twice"
    assert timeless(after) == timeless(before)
    assert await adopted(zfsilo) == []
    await zfsilo.do(*UP[1:])


async def adopted(zfsilo: House, *complaints: str) -> list[str]:
    """Adopt everything, and return the names of what was."""
    found = await adopt_all(zfsilo.service, "a")
    assert tuple(found.complaints) == complaints
    return [each.subject for each in found.adopted]


KINDS = (Volume, Trashed, Snapshot, SnapshotGroup, Dependent)
MORE = (
    CREATE,
    CREATE.but(id="more", labels=()),
    CreateSnapshot(id="monday", volume="data", labels=LABELS),
    CreateVolume(id="copy", capacity_bytes=GIB, source_snapshot="monday"),
    CreateVolume(id="twin", capacity_bytes=2 * GIB, source_volume="data"),
    CreateSnapshotGroup(id="both", volumes=("more", "data"), labels=(("app", "db"),)),
    DeleteVolume(id="more", dependents="KEEP"),
    CREATE.but(id="more", labels=()),
)


def records(zfsilo: House) -> dict[str, Any]:
    """Return the records that an adoption can bring back, without what it cannot know."""
    with zfsilo.service.store.read() as txn:
        found = {f"{kind.bucket()}/{each.key}": each for kind in KINDS for each in txn.scan(kind)}
    return {name: known(each) for name, each in found.items()}


def known(record: Any) -> Any:
    """Return a record without what only the store knew: revisions, times, who formatted."""
    match record:
        case Trashed():
            return record.but(volume=known(record.volume), revision=0, deleted_at=0, purge_at=0)
        case Volume():
            return timeless(record)
        case Snapshot():
            filesystem = record.filesystem.but(host="", operation="")
            return record.but(revision=0, created_at=0, filesystem=filesystem)
        case SnapshotGroup():
            return record.but(revision=0, created_at=0)
    return record.but(revision=0)


async def lose_all(zfsilo: House) -> None:
    def lose(txn: Any) -> None:
        for kind in KINDS:
            for each in list(txn.scan(kind)):
                txn.drop(kind.bucket(), each.key)

    await zfsilo.service.write(lose)


async def test_snapshots_groups_clones_and_the_trash_come_back(zfsilo: House) -> None:
    await zfsilo.do(*UP, *DOWN, *MORE[1:])
    before = records(zfsilo)
    await lose_all(zfsilo)
    assert sorted(await adopted(zfsilo)) == [
        "snapshotGroups/both",
        "snapshots/monday",
        "volumes/copy",
        "volumes/data",
        "volumes/more",
        "volumes/more",
        "volumes/twin",
    ]
    assert records(zfsilo) == before
    assert await adopted(zfsilo) == []


async def test_what_came_back_keeps_what_it_needs(zfsilo: House) -> None:
    await zfsilo.do(*MORE)
    await lose_all(zfsilo)
    await adopted(zfsilo)
    with pytest.raises(FailedPrecondition, match="has snapshots or clones"):
        await zfsilo.do(DeleteVolume(id="data"))
    await Purger(zfsilo.service).purge()
    assert any(name.startswith("zvol:tank/zfsilo/.trash/") for name in zfsilo.facts)
    await zfsilo.do(
        DeleteSnapshotGroup(id="both"),
        DeleteVolume(id="copy"),
        DeleteVolume(id="twin"),
        DeleteSnapshot(id="monday"),
        DeleteVolume(id="data"),
        DeleteVolume(id="more"),
        UndeleteVolume(id="more"),
    )
    assert zfsilo.host.facts.names("zvol") == ["tank/zfsilo/more"]


async def test_what_the_pool_does_not_tell_is_said(zfsilo: House) -> None:
    await zfsilo.do(*MORE)
    await lose_all(zfsilo)
    for cut in zfsilo.host.facts.names("cut"):  # as an older version marked them
        fact = zfsilo.host.facts.get(f"cut:{cut}")
        told = {n: v for n, v in fact["marks"].items() if n in ("zfsilo:cut", "zfsilo:snapshot")}
        zfsilo.host.facts.memory[f"cut:{cut}"] = fact | {"marks": told}
    found = await adopt_all(zfsilo.service, "a")
    assert [each.partition(" ")[0] for each in found.unknown] == ["who", "when", "an"]
    assert "groups both:" in found.unknown[2]
    with zfsilo.service.store.read() as txn:
        group = txn.get(SnapshotGroup, "both")
        assert group is not None
        assert [txn.get(Snapshot, each).group for each in group.snapshots] == ["both", "both"]  # type: ignore[union-attr]


async def test_what_an_unfinished_clone_left_is_told_and_left_alone(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    found = volume(zfsilo)
    assert found is not None
    snapshot_ref = SnapshotRef(dataset=found.dataset, uid=found.uid)
    zfsilo.host.snapshots.take((snapshot_ref,), "c" * 32, (("zfsilo:cut", "c" * 32),))
    assert await adopted(zfsilo, f"tank/zfsilo/data@zfsilo-{'c' * 32}") == []


async def test_what_lies_in_the_trash_is_not_adopted_by_name(zfsilo: House) -> None:
    await zfsilo.do(*MORE)
    (trash,) = [n for n in zfsilo.host.facts.names("zvol") if ".trash" in n]
    with pytest.raises(FailedPrecondition, match="is in the trash: zfsiloctl adopt --all"):
        await find(zfsilo.service, trash, "")


async def test_a_foreign_zvol_is_taken_over(zfsilo: House) -> None:
    zvol = {
        "uid": "",
        "guid": "77",
        "size": GIB,
        "thin": False,
        "properties": {"volblocksize": "8192", "sync": "standard"},
    }
    zfsilo.host.facts.memory["zvol:tank/vm-1"] = zvol
    request = await find(zfsilo.service, "tank/vm-1", "")
    await zfsilo.do(request)
    with zfsilo.service.store.read() as txn:
        found = txn.get(Volume, "vm-1")
    assert found is not None
    assert (found.dataset, found.guid, found.thin) == ("tank/vm-1", "77", False)
    assert dict(found.properties) == {"sync": "standard"}
    assert found.filesystem.state == "NONE", (
        "a consumer finds what it carries, and never formats it"
    )
    with pytest.raises(AlreadyExists, match="is the volume vm-1"):
        await zfsilo.do(request.but(id="again"))
    await zfsilo.do(Publish(volume="vm-1", host="take"))


async def test_what_is_no_zvol_is_refused(zfsilo: House) -> None:
    with pytest.raises(FailedPrecondition, match="is no zvol"):
        await find(zfsilo.service, "tank/zfsilo", "")


@pytest.mark.parametrize("left", [0, 100, 2 * 4096])
def test_a_store_that_is_cut_short_is_never_begun_anew(tmp_path: Path, left: int) -> None:
    Store.create(tmp_path, host="simulated", size_bytes=1 << 20).close()
    data = tmp_path / "store" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(left)
    with pytest.raises(StoreCorrupt, match="rebuild it from the pool with zfsiloctl adopt --all"):
        Store.create(tmp_path, host="simulated", size_bytes=1 << 20)


def test_a_store_of_garbage_is_never_begun_anew(tmp_path: Path) -> None:
    Store.create(tmp_path, host="simulated", size_bytes=1 << 20).close()
    (tmp_path / "store" / "data.mdb").write_bytes(b"garbage!" * 4096)
    with pytest.raises(StoreCorrupt, match="is damaged"):
        Store.create(tmp_path, host="simulated", size_bytes=1 << 20)
