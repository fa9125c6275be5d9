"""Orphans and adoption: things without a record are listed, removed on request, or get one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service_fixture import administrator
from zfsilod.engine.plans.server import first_marks
from zfsilod.host.zfs import MARKS
from zfsilod.model.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    FailedPrecondition,
    NotFound,
)
from zfsilod.model.host_facts import IoLimits, SnapshotRef
from zfsilod.model.records import (
    Attachment,
    Dependent,
    ReplicaOf,
    Snapshot,
    SnapshotGroup,
    Trashed,
    Volume,
)
from zfsilod.requests.attach import MountAt, Stage
from zfsilod.requests.connect import Connect
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
    from tests.service_fixture import ServiceFixture

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
FULL = Volume(
    id="data",
    uid="0" * 32,
    dataset="tank/data",
    capacity_bytes=GIB,
    thin=True,
    mode="FILESYSTEM",
    volblocksize=16384,
    labels=LABELS,
    hosts=("take",),
    transport="NVME",
    tls=True,
    limits=IoLimits(read_iops=500),  # of any volume over iSCSI: marks are compared only
    source_snapshot="earlier@one",
    source_volume="earlier",
    key_uid="0" * 32,
    replica=ReplicaOf(peer="give"),
    term=17,
    term_store="0" * 32,
    peers=("give",),
    aside_of="earlier",
)
UP = (
    CREATE,
    Publish(volume="data", host="take"),
    Connect(id="data", server="give", volume="data"),
    Stage(id="data"),
    MountAt(id="data", path="/srv/data"),
)
DOWN = (Disconnect(id="data", force=True), Unpublish(volume="data"))


def volume(fixture: ServiceFixture) -> Volume | None:
    with fixture.service.context.store.read() as txn:
        return txn.get(Volume, "data")


async def drop_records(fixture: ServiceFixture, *buckets: str) -> None:
    """Remove records, as when the state directory is lost."""
    for bucket in buckets:
        key = "data/take" if bucket == "publication" else "data"
        await fixture.service.context.write(lambda txn, b=bucket, k=key: txn.drop(b, k))  # type: ignore[misc]


async def names(fixture: ServiceFixture) -> list[str]:
    return [orphan.name.partition("/")[0] for orphan in await find_orphans(fixture.service.context)]


def test_the_real_host_reads_every_mark_of_a_volume() -> None:
    written = {name.removeprefix("zfsilo:") for name in first_marks(FULL)}
    assert written | {"epoch"} == set(MARKS)


async def test_things_with_records_are_not_orphans(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    assert await names(fixture) == []


async def test_things_of_a_running_operation_are_not_orphans(fixture: ServiceFixture) -> None:
    fixture.launcher.gate.clear()
    submitted = await fixture.service.submit(CREATE, caller=administrator("a"))
    uid = next(step.uid for step in (m.step for m in submitted.actions) if hasattr(step, "uid"))
    fixture.host.zfs.create_zvol(
        "tank/zfsilo/data",
        size_bytes=GIB,
        thin=True,
        volblocksize=16384,
        properties=(),
        marks=(("zfsilo:uid", uid),),
    )
    assert await names(fixture) == []
    fixture.launcher.gate.set()
    await fixture.service.wait(submitted.id, 10)


async def test_things_without_records_are_listed_and_removed_on_request(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    await drop_records(fixture, "attachment", "publication", "volume")
    assert await names(fixture) == ["export", "node", "session", "zvol"]
    found_names = [orphan.name for orphan in await find_orphans(fixture.service.context)]
    before = fixture.facts
    with pytest.raises(Busy, match="end that first, or remove it with --force"):
        await fixture.do(RemoveOrphans(names=tuple(found_names)))
    assert fixture.facts == before
    await fixture.do(RemoveOrphans(names=tuple(found_names), force=True))
    assert {n.partition(":")[0] for n in fixture.facts} == {"content", "point"}
    with pytest.raises(NotFound, match="no orphan zvol/tank"):
        await fixture.do(RemoveOrphans(names=("zvol/tank/zfsilo/data",)))


async def test_an_acl_without_a_publication_stays_until_it_is_removed(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(*UP)
    await drop_records(fixture, "publication")
    before = fixture.facts
    with pytest.raises(Conflict, match="which no publication names: see zfsiloctl orphan list"):
        await fixture.service.reconciler.sync("data", caller=administrator("a"))
    report = await fixture.service.reconciler.sync_all(caller=administrator("a"))
    assert "no publication names" in dict(report.complaints)["data"]
    assert fixture.facts == before, "a lost record ends no session"
    (orphan,) = await find_orphans(fixture.service.context)
    assert orphan.name.startswith("acl/")
    with pytest.raises(Busy, match=r"in use by iqn\..*--force"):
        await fixture.do(RemoveOrphans(names=(orphan.name,)))
    assert fixture.facts == before
    remove = RemoveOrphans(names=(orphan.name,), force=True)
    await fixture.do(remove, Disconnect(id="data", force=True))
    await fixture.service.reconciler.sync_all(caller=administrator("a"))
    assert {n.partition(":")[0] for n in fixture.facts} & {"target", "acl", "backstore"} == set()


async def test_an_export_with_a_live_session_is_removed_by_force_only(
    fixture: ServiceFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fixture.do(*UP)
    await drop_records(fixture, "publication", "volume")
    before = fixture.facts
    export = next(
        orphan
        for orphan in await find_orphans(fixture.service.context)
        if orphan.name.startswith("export/")
    )
    with pytest.raises(Busy, match=r"in use by iqn\..*--force"):
        await fixture.do(RemoveOrphans(names=(export.name,)))
    assert fixture.facts == before
    has_session = fixture.host.lio.has_session
    answers = [False]  # it logs in after the inventory
    monkeypatch.setattr(
        fixture.host.lio,
        "has_session",
        lambda *key: answers.pop() if answers else has_session(*key),
    )
    with pytest.raises(FailedPrecondition, match="still logged in"):
        await fixture.do(RemoveOrphans(names=(export.name,)))
    assert fixture.facts == before
    await fixture.do(RemoveOrphans(names=(export.name,), force=True))
    assert not fixture.host.lio.list_targets()


async def test_a_mount_without_a_record_is_an_orphan(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)

    def unmounted(txn: Any) -> None:
        attachment = txn.get(Attachment, "data")
        txn.put(attachment.but(mounts=(), state="STAGED"))

    await fixture.service.context.write(unmounted)
    (orphan,) = await find_orphans(fixture.service.context)
    assert orphan.name == "mount/srv/data"
    await fixture.do(RemoveOrphans(names=(orphan.name,), force=True))
    assert fixture.host.facts.names("mount") == ["/var/lib/zfsilo/staging/data"]


def comparable_volume(volume: Volume) -> Volume:
    """Return a volume without the fields that an adoption cannot restore."""
    filesystem = volume.filesystem.but(host="", operation="")
    return volume.but(revision=0, epoch=0, created_at=0, updated_at=0, filesystem=filesystem)


async def test_a_store_is_rebuilt_from_the_pool(fixture: ServiceFixture) -> None:
    await fixture.do(*UP)
    await fixture.do(UpdateVolume(id="data", mask=("hosts",), hosts=("take", "other")), *DOWN)
    before = volume(fixture)
    assert before is not None
    await drop_records(fixture, "volume")
    assert await adopted(fixture) == ["volumes/data"]
    after = volume(fixture)
    assert after is not None
    assert after.epoch > before.epoch, "no epoch comes twice"
    assert comparable_volume(after) == comparable_volume(before)
    assert await adopted(fixture) == []
    await fixture.do(*UP[1:])


async def adopted(fixture: ServiceFixture, *complaints: str) -> list[str]:
    """Adopt everything, and return the names of the adopted things."""
    report = await adopt_all(fixture.service.context, fixture.service, administrator("a"))
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


def records(fixture: ServiceFixture) -> dict[str, Any]:
    """Return the records that an adoption restores, in comparable form."""
    with fixture.service.context.store.read() as txn:
        stored = [record for kind in KINDS for record in txn.scan(kind)]
    return {f"{record.bucket()}/{record.key}": comparable(record) for record in stored}


def comparable(record: Any) -> Any:
    """Return a record without revisions, times and the host that formatted."""
    match record:
        case Trashed():
            return record.but(
                volume=comparable(record.volume), revision=0, deleted_at=0, purge_at=0
            )
        case Volume():
            return comparable_volume(record)
        case Snapshot():
            filesystem = record.filesystem.but(host="", operation="")
            return record.but(revision=0, created_at=0, filesystem=filesystem)
        case SnapshotGroup():
            return record.but(revision=0, created_at=0)
    return record.but(revision=0)


async def drop_all_records(fixture: ServiceFixture) -> None:
    def lose(txn: Any) -> None:
        for kind in KINDS:
            for record in list(txn.scan(kind)):
                txn.drop(kind.bucket(), record.key)

    await fixture.service.context.write(lose)


async def test_snapshots_groups_clones_and_the_trash_are_adopted(fixture: ServiceFixture) -> None:
    await fixture.do(*UP, *DOWN, *MORE[1:])
    before = records(fixture)
    await drop_all_records(fixture)
    assert sorted(await adopted(fixture)) == [
        "snapshotGroups/both",
        "snapshots/monday",
        "volumes/copy",
        "volumes/data",
        "volumes/more",
        "volumes/more",
        "volumes/twin",
    ]
    assert records(fixture) == before
    assert await adopted(fixture) == []


async def test_adopted_volumes_keep_their_dependents(fixture: ServiceFixture) -> None:
    await fixture.do(*MORE)
    await drop_all_records(fixture)
    await adopted(fixture)
    with pytest.raises(FailedPrecondition, match="has snapshots or clones"):
        await fixture.do(DeleteVolume(id="data"))
    await Purger(fixture.service.context, fixture.service).purge()
    assert any(name.startswith("zvol:tank/zfsilo/.trash/") for name in fixture.facts)
    await fixture.do(
        DeleteSnapshotGroup(id="both"),
        DeleteVolume(id="copy"),
        DeleteVolume(id="twin"),
        DeleteSnapshot(id="monday"),
        DeleteVolume(id="data"),
        DeleteVolume(id="more"),
        UndeleteVolume(id="more"),
    )
    assert fixture.host.facts.names("zvol") == ["tank/zfsilo/more"]


async def test_an_adoption_reports_what_the_pool_does_not_record(fixture: ServiceFixture) -> None:
    await fixture.do(*MORE)
    await drop_all_records(fixture)
    for cut in fixture.host.facts.names("cut"):  # as an older version marked them
        fact = fixture.host.facts.get(f"cut:{cut}")
        marks = {n: v for n, v in fact["marks"].items() if n in ("zfsilo:cut", "zfsilo:snapshot")}
        fixture.host.facts.memory[f"cut:{cut}"] = fact | {"marks": marks}
    report = await adopt_all(fixture.service.context, fixture.service, administrator("a"))
    assert [sentence.partition(" ")[0] for sentence in report.unknown] == [
        "publications",
        "the",
        "an",
    ]
    assert "groups both:" in report.unknown[2]
    with fixture.service.context.store.read() as txn:
        group = txn.get(SnapshotGroup, "both")
        assert group is not None
        assert [txn.get(Snapshot, name).group for name in group.snapshots] == ["both", "both"]  # type: ignore[union-attr]


async def test_the_snapshot_of_an_unfinished_clone_is_reported_and_kept(
    fixture: ServiceFixture,
) -> None:
    await fixture.do(CREATE)
    record = volume(fixture)
    assert record is not None
    snapshot_ref = SnapshotRef(dataset=record.dataset, uid=record.uid)
    fixture.host.snapshots.take((snapshot_ref,), "c" * 32, (("zfsilo:cut", "c" * 32),))
    assert await adopted(fixture, f"tank/zfsilo/data@zfsilo-{'c' * 32}") == []


async def test_a_volume_in_the_trash_is_not_adopted_by_name(fixture: ServiceFixture) -> None:
    await fixture.do(*MORE)
    (trash,) = [n for n in fixture.host.facts.names("zvol") if ".trash" in n]
    with pytest.raises(FailedPrecondition, match="is in the trash: run zfsiloctl adopt --all"):
        await find_zvol(fixture.service.context, trash, "")


async def test_a_foreign_zvol_is_adopted(fixture: ServiceFixture) -> None:
    zvol = {
        "uid": "",
        "guid": "77",
        "size": GIB,
        "thin": False,
        "properties": {"volblocksize": "8192", "sync": "standard"},
    }
    fixture.host.facts.memory["zvol:tank/vm-1"] = zvol
    request = await find_zvol(fixture.service.context, "tank/vm-1", "")
    await fixture.do(request)
    with fixture.service.context.store.read() as txn:
        adopted_volume = txn.get(Volume, "vm-1")
    assert adopted_volume is not None
    assert (adopted_volume.dataset, adopted_volume.guid, adopted_volume.thin) == (
        "tank/vm-1",
        "77",
        False,
    )
    assert dict(adopted_volume.properties) == {"sync": "standard"}
    assert adopted_volume.filesystem.state == "NONE", (
        "a client looks for a filesystem on it, and does not format it"
    )
    with pytest.raises(AlreadyExists, match="is the zvol of volume vm-1"):
        await fixture.do(request.but(id="again"))
    await fixture.do(Publish(volume="vm-1", host="take"))


async def test_only_zvols_are_adopted(fixture: ServiceFixture) -> None:
    with pytest.raises(FailedPrecondition, match="is not a zvol"):
        await find_zvol(fixture.service.context, "tank/zfsilo", "")


async def test_a_zvol_outside_of_the_configured_datasets_is_not_adopted(
    fixture: ServiceFixture,
) -> None:
    fixture.host.facts.memory["zvol:tank/vm-2"] = {
        "uid": "",
        "guid": "78",
        "size": GIB,
        "thin": False,
        "properties": {"volblocksize": "8192"},
    }
    request = await find_zvol(fixture.service.context, "tank/vm-2", "")
    with pytest.raises(FailedPrecondition, match=r"server\.adopt_from") as raised:
        await fixture.do(request)
    assert raised.value.reason == "OUTSIDE_LIMITS"


@pytest.mark.parametrize("change", [{"receiving": True}, {"size": 0}])
async def test_an_interrupted_receive_is_not_a_volume(
    fixture: ServiceFixture, change: dict[str, Any]
) -> None:
    """The zvol of `zfs receive -s` that was interrupted: refused with the commands."""
    await fixture.do(CREATE)
    fact = "zvol:tank/zfsilo/data"
    fixture.host.facts.effect(fact, fixture.host.facts.get(fact) | change)
    with fixture.service.context.store.write() as txn:
        txn.drop(Volume.bucket(), "data")
    context = fixture.service.context
    request = await find_zvol(context, "tank/zfsilo/data", "")
    with pytest.raises(FailedPrecondition, match="zfs receive -A tank/zfsilo/data") as raised:
        await fixture.do(request)
    assert raised.value.reason == "UNFINISHED_RECEIVE"
    result = await adopt_all(context, fixture.service, administrator("test"))
    assert (result.adopted, list(result.complaints)) == ([], ["volumes/data"])
