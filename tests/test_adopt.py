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
)
from zfsilod.model.host_facts import SnapshotRef
from zfsilod.model.records import Attachment, Dependent, Snapshot, SnapshotGroup, Trashed, Volume
from zfsilod.requests.attach import Connect, MountAt, Stage
from zfsilod.requests.deletion import DeleteVolume, UndeleteVolume
from zfsilod.requests.detach import Disconnect
from zfsilod.requests.orphans import RemoveOrphans
from zfsilod.requests.publications import Publish, Unpublish
from zfsilod.requests.snapshots import (
    CreateSnapshot,
    CreateSnapshotGroup,
    DeleteSnapshot,
    DeleteSnapshotGroup,
)
from zfsilod.requests.volumes import CreateVolume, UpdateVolume
from zfsilod.service.orphan_scan import find_orphans
from zfsilod.service.pool_import import adopt_all
from zfsilod.service.pool_scan import find_zvol
from zfsilod.service.purger import Purger

if TYPE_CHECKING:
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
    with zfsilo.service.context.store.read() as txn:
        return txn.get(Volume, "data")


async def forget(zfsilo: House, *buckets: str) -> None:
    """Lose records, as with the state directory."""
    for bucket in buckets:
        key = "data/take" if bucket == "publication" else "data"
        await zfsilo.service.context.write(lambda txn, b=bucket, k=key: txn.drop(b, k))  # type: ignore[misc]


async def names(zfsilo: House) -> list[str]:
    return [orphan.name.partition("/")[0] for orphan in await find_orphans(zfsilo.service.context)]


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
    found_names = [orphan.name for orphan in await find_orphans(zfsilo.service.context)]
    before = zfsilo.facts
    with pytest.raises(Busy, match="end that first, or remove it with --force"):
        await zfsilo.do(RemoveOrphans(names=tuple(found_names)))
    assert zfsilo.facts == before
    await zfsilo.do(RemoveOrphans(names=tuple(found_names), force=True))
    assert {n.partition(":")[0] for n in zfsilo.facts} == {"content", "point"}
    with pytest.raises(NotFound, match="no orphan zvol/tank"):
        await zfsilo.do(RemoveOrphans(names=("zvol/tank/zfsilo/data",)))


async def test_an_admission_without_a_publication_stays_until_asked(zfsilo: House) -> None:
    await zfsilo.do(*UP)
    await forget(zfsilo, "publication")
    before = zfsilo.facts
    with pytest.raises(Conflict, match="which no publication names: see zfsiloctl orphan list"):
        await zfsilo.service.reconciler.sync("data", caller="a")
    report = await zfsilo.service.reconciler.sync_all(caller="a")
    assert "no publication names" in dict(report.complaints)["data"]
    assert zfsilo.facts == before, "a lost record cuts nobody off"
    (orphan,) = await find_orphans(zfsilo.service.context)
    assert orphan.name.startswith("acl/")
    await zfsilo.do(RemoveOrphans(names=(orphan.name,)), Disconnect(id="data", force=True))
    await zfsilo.service.reconciler.sync_all(caller="a")
    assert {n.partition(":")[0] for n in zfsilo.facts} & {"target", "acl", "backstore"} == set()


async def test_a_stray_mount_is_an_orphan(zfsilo: House) -> None:
    await zfsilo.do(*UP)

    def unmounted(txn: Any) -> None:
        attachment = txn.get(Attachment, "data")
        txn.put(attachment.but(mounts=(), state="STAGED"))

    await zfsilo.service.context.write(unmounted)
    (orphan,) = await find_orphans(zfsilo.service.context)
    assert orphan.name == "mount/srv/data"
    await zfsilo.do(RemoveOrphans(names=(orphan.name,), force=True))
    assert zfsilo.host.facts.names("mount") == ["/var/lib/zfsilo/staging/data"]


def timeless(volume: Volume) -> Volume:
    """Return a volume without what an adoption cannot know."""
    filesystem = volume.filesystem.but(host="", operation="")
    return volume.but(revision=0, epoch=0, created_at=0, updated_at=0, filesystem=filesystem)


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
    report = await adopt_all(zfsilo.service.context, zfsilo.service, "a")
    assert tuple(report.complaints) == complaints
    return [operation.subject for operation in report.adopted]


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
    with zfsilo.service.context.store.read() as txn:
        stored = [record for kind in KINDS for record in txn.scan(kind)]
    return {f"{record.bucket()}/{record.key}": known(record) for record in stored}


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
            for record in list(txn.scan(kind)):
                txn.drop(kind.bucket(), record.key)

    await zfsilo.service.context.write(lose)


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
    await Purger(zfsilo.service.context, zfsilo.service).purge()
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
        marks = {n: v for n, v in fact["marks"].items() if n in ("zfsilo:cut", "zfsilo:snapshot")}
        zfsilo.host.facts.memory[f"cut:{cut}"] = fact | {"marks": marks}
    report = await adopt_all(zfsilo.service.context, zfsilo.service, "a")
    assert [sentence.partition(" ")[0] for sentence in report.unknown] == [
        "publications",
        "the",
        "an",
    ]
    assert "groups both:" in report.unknown[2]
    with zfsilo.service.context.store.read() as txn:
        group = txn.get(SnapshotGroup, "both")
        assert group is not None
        assert [txn.get(Snapshot, name).group for name in group.snapshots] == ["both", "both"]  # type: ignore[union-attr]


async def test_what_an_unfinished_clone_left_is_told_and_left_alone(zfsilo: House) -> None:
    await zfsilo.do(CREATE)
    record = volume(zfsilo)
    assert record is not None
    snapshot_ref = SnapshotRef(dataset=record.dataset, uid=record.uid)
    zfsilo.host.snapshots.cut((snapshot_ref,), "c" * 32, (("zfsilo:cut", "c" * 32),))
    assert await adopted(zfsilo, f"tank/zfsilo/data@zfsilo-{'c' * 32}") == []


async def test_what_lies_in_the_trash_is_not_adopted_by_name(zfsilo: House) -> None:
    await zfsilo.do(*MORE)
    (trash,) = [n for n in zfsilo.host.facts.names("zvol") if ".trash" in n]
    with pytest.raises(FailedPrecondition, match="is in the trash: run zfsiloctl adopt --all"):
        await find_zvol(zfsilo.service.context, trash, "")


async def test_a_foreign_zvol_is_taken_over(zfsilo: House) -> None:
    zvol = {
        "uid": "",
        "guid": "77",
        "size": GIB,
        "thin": False,
        "properties": {"volblocksize": "8192", "sync": "standard"},
    }
    zfsilo.host.facts.memory["zvol:tank/vm-1"] = zvol
    request = await find_zvol(zfsilo.service.context, "tank/vm-1", "")
    await zfsilo.do(request)
    with zfsilo.service.context.store.read() as txn:
        adopted_volume = txn.get(Volume, "vm-1")
    assert adopted_volume is not None
    assert (adopted_volume.dataset, adopted_volume.guid, adopted_volume.thin) == (
        "tank/vm-1",
        "77",
        False,
    )
    assert dict(adopted_volume.properties) == {"sync": "standard"}
    assert adopted_volume.filesystem.state == "NONE", (
        "a consumer finds what it carries, and never formats it"
    )
    with pytest.raises(AlreadyExists, match="is the volume vm-1"):
        await zfsilo.do(request.but(id="again"))
    await zfsilo.do(Publish(volume="vm-1", host="take"))


async def test_what_is_no_zvol_is_refused(zfsilo: House) -> None:
    with pytest.raises(FailedPrecondition, match="is not a zvol"):
        await find_zvol(zfsilo.service.context, "tank/zfsilo", "")
