"""Snapshot sets and clones, with the output of ZFS 2.3.9."""

from __future__ import annotations

import pytest

from tests.host.doubles import UID, ScriptedRunner
from zfsilod.host.snapshots import RealSnapshots
from zfsilod.host.zfs import RealZfs
from zfsilod.model.errors import Busy, CommandFailed, Conflict, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import SnapshotRef

SET_UID = "c" * 32
A = SnapshotRef(dataset="tank/a", uid=UID)
B = SnapshotRef(dataset="tank/b", uid="b" * 32)
SNAP_A, SNAP_B = f"tank/a@zfsilo-{SET_UID}", f"tank/b@zfsilo-{SET_UID}"
GET = (
    "zfs get -Hp -o name,property,value,source "
    "zfsilo:cut,zfsilo:uid,zfsilo:operation,guid,defer_destroy"
)
LOOK = f"{GET} tank/a {SNAP_A} tank"
LOOK_BOTH = f"{GET} tank/a {SNAP_A} tank/b {SNAP_B} tank"
POOL = "tank\tguid\t1\t-\n"
ZVOL_A = f"tank/a\tguid\t2\t-\ntank/a\tzfsilo:uid\t{UID}\tlocal\n"
ZVOL_B = f"tank/b\tguid\t3\t-\ntank/b\tzfsilo:uid\t{B.uid}\tlocal\n"
DESTROY = (f"zfs destroy -d {SNAP_A}", 0, "", "")


def rows(
    snapshot: str, *, set_uid: str = SET_UID, source: str = "local", deferred: str = "off"
) -> str:
    return (
        f"{snapshot}\tguid\t7\t-\n{snapshot}\tzfsilo:cut\t{set_uid}\t{source}\n"
        f"{snapshot}\tdefer_destroy\t{deferred}\t-\n"
    )


def absent(*names: str) -> str:
    return "".join(f"cannot open '{name}': dataset does not exist\n" for name in names)


THERE = (LOOK, 0, ZVOL_A + rows(SNAP_A) + POOL, "")
NOT_THERE = (LOOK, 1, ZVOL_A + POOL, absent(SNAP_A))


def snapshots(*script: tuple[str, int, str, str]) -> tuple[RealSnapshots, ScriptedRunner]:
    run = ScriptedRunner(*script)
    return RealSnapshots(run, RealZfs(run)), run


def has(*script: tuple[str, int, str, str], snapshot_ref: SnapshotRef = A) -> bool:
    adapter, run = snapshots(*script)
    present = adapter.has_set((snapshot_ref,), SET_UID)
    assert not run.script
    return present


def test_a_released_snapshot_counts_as_absent() -> None:
    assert has(THERE)
    assert has(THERE, snapshot_ref=A.but(guid="7"))
    assert not has(NOT_THERE)
    assert not has((LOOK, 0, ZVOL_A + rows(SNAP_A, deferred="on") + POOL, ""))
    assert not has((LOOK, 1, POOL, absent("tank/a", SNAP_A)))


@pytest.mark.parametrize(
    "foreign", [rows(SNAP_A, set_uid="x"), rows(SNAP_A, source="inherited from tank/a")]
)
def test_not_ours(foreign: str) -> None:
    with pytest.raises(Conflict, match="does not belong to this volume"):
        has((LOOK, 0, ZVOL_A + foreign + POOL, ""))
    with pytest.raises(Conflict, match="guid"):
        has(THERE, snapshot_ref=A.but(guid="8"))


def test_an_error_is_never_absence() -> None:
    with pytest.raises(CommandFailed):
        has((LOOK, 1, ZVOL_A + POOL, f"cannot open '{SNAP_A}': I/O error\n"))
    with pytest.raises(Unavailable, match="not imported"):
        has((LOOK, 1, "", absent("tank/a", SNAP_A, "tank")))
    with pytest.raises(CommandFailed):  # zfs reports neither the snapshot nor an error
        has((LOOK, 1, ZVOL_A + POOL, ""))


def test_a_set_is_one_command() -> None:
    taken = (
        f"zfs snapshot -o zfsilo:cut={SET_UID} {SNAP_A} {SNAP_B}",
        0,
        "",
        "",
    )
    none = (LOOK_BOTH, 1, ZVOL_A + ZVOL_B + POOL, absent(SNAP_A, SNAP_B))
    adapter, run = snapshots(none, none, taken)
    adapter.take((A, B), SET_UID, (("zfsilo:cut", SET_UID),))
    assert not run.script
    half = (LOOK_BOTH, 1, ZVOL_A + rows(SNAP_A) + ZVOL_B + POOL, absent(SNAP_B))
    adapter, run = snapshots(half, half, DESTROY, taken)
    adapter.take((A, B), SET_UID, (("zfsilo:cut", SET_UID),))
    assert not run.script


def test_a_listing_has_our_snapshots_that_are_not_released() -> None:
    argv = (
        "zfs get -Hp -r -t snapshot -o name,property,value,source "
        "zfsilo:cut,zfsilo:snapshot,zfsilo:members,zfsilo:filesystems,zfsilo:labels,zfsilo:policy,"
        "zfsilo:policy_uid,zfsilo:grid_version,zfsilo:peer,"
        "guid,volsize,creation,createtxg,defer_destroy tank"
    )

    def listed(name: str, source: str, deferred: str) -> str:
        rows = (
            "guid\t7\t-",
            "volsize\t9\t-",
            "creation\t1700000000\t-",
            "createtxg\t42\t-",
            f"defer_destroy\t{deferred}\t-",
            f"zfsilo:cut\t{SET_UID}\t{source}",
            "zfsilo:snapshot\tmonday\tlocal",
            "zfsilo:labels\t{}\tinherited from tank",
        )
        return "".join(f"{name}\t{row}\n" for row in rows)

    stdout = (
        listed(SNAP_A, "local", "off")
        + listed(SNAP_B, "local", "on")
        + listed("tank/a@by-hand", "inherited from tank/a", "off")
    )
    adapter, run = snapshots((argv, 0, stdout, ""))
    (snapshot,) = adapter.list_snapshots("tank")
    assert not run.script
    assert (snapshot.dataset, snapshot.guid, snapshot.size_bytes) == ("tank/a", "7", 9)
    assert (snapshot.cut, snapshot.created_at, snapshot.txg) == (SET_UID, 1700000000, 42)
    assert dict(snapshot.marks) == {"cut": SET_UID, "snapshot": "monday"}


def test_other_zvols_are_not_snapshotted() -> None:
    foreign = (LOOK, 1, ZVOL_A.replace("local", "inherited from tank") + POOL, absent(SNAP_A))
    adapter, _run = snapshots(foreign)
    with pytest.raises(Conflict):
        adapter.take((A,), SET_UID, ())
    adapter, _run = snapshots((LOOK, 1, POOL, absent("tank/a", SNAP_A)))
    with pytest.raises(FailedPrecondition, match="does not exist"):
        adapter.take((A,), SET_UID, ())


def test_a_release_leaves_clones_unchanged() -> None:
    adapter, run = snapshots(THERE, DESTROY)
    adapter.release((A,), SET_UID)
    assert not run.script
    adapter, run = snapshots(NOT_THERE)
    adapter.release((A,), SET_UID)
    assert not run.script


def test_a_snapshot_that_cannot_be_released_now() -> None:
    stderr = f"cannot destroy snapshot {SNAP_A}: dataset is busy\n"
    adapter, _run = snapshots(THERE, (DESTROY[0], 1, "", stderr))
    with pytest.raises(Busy):
        adapter.release((A,), SET_UID)


def test_a_clone_of_a_volume_releases_its_snapshot_at_once() -> None:
    looked = "zfs get -Hp -o name,property,value,source zfsilo:uid,type,guid tank/c tank"
    nothing = (looked, 1, "tank\ttype\tfilesystem\t-\n", absent("tank/c"))
    script = (
        nothing,
        NOT_THERE,
        NOT_THERE,
        (f"zfs snapshot -o zfsilo:cut={SET_UID} {SNAP_A}", 0, "", ""),
        (f"zfs clone -o volmode=dev -o zfsilo:uid=x {SNAP_A} tank/c", 0, "", ""),
        THERE,
        DESTROY,
    )
    adapter, run = snapshots(*script)
    adapter.clone(
        "tank/c",
        uid="x",
        snapshot_ref=A,
        snapshot_uid=SET_UID,
        own=True,
        properties=(("volmode", "dev"),),
        marks=(("zfsilo:uid", "x"),),
    )
    assert not run.script


def test_a_clone_of_a_lost_snapshot() -> None:
    looked = "zfs get -Hp -o name,property,value,source zfsilo:uid,type,guid tank/c tank"
    adapter, _run = snapshots(
        (looked, 1, "tank\ttype\tfilesystem\t-\n", absent("tank/c")),
        (f"zfs clone {SNAP_A} tank/c", 1, "", absent(SNAP_A)),
    )
    with pytest.raises(FailedPrecondition, match="does not exist") as lost:
        adapter.clone(
            "tank/c",
            uid="x",
            snapshot_ref=A,
            snapshot_uid=SET_UID,
            own=False,
            properties=(),
            marks=(),
        )
    assert lost.value.reason == "LOST"


def test_reservation() -> None:
    get = "zfs get -Hp -o name,property,value,source refreservation,volsize tank/c tank"
    for refreservation, reserved in (("0", False), ("1100", True)):
        stdout = f"tank/c\trefreservation\t{refreservation}\tlocal\ntank/c\tvolsize\t1000\tlocal\n"
        adapter, _run = snapshots((get, 0, stdout, ""))
        assert adapter.is_reserved("tank/c") is reserved
    adapter, run = snapshots(("zfs set refreservation=auto tank/c", 0, "", ""))
    adapter.set_reserved("tank/c", reserved=True)
    assert not run.script


@pytest.mark.parametrize(
    ("clones", "holds", "users"),
    [
        ("", "0", ()),
        ("-", "-", ()),
        ("tank/x,tank/y", "0", ("tank/x", "tank/y")),
        ("tank/x", "2", ("tank/x", "2 holds (zfs holds)")),
    ],
)
def test_clones_and_holds_use_a_snapshot(clones: str, holds: str, users: tuple[str, ...]) -> None:
    argv = LOOK.replace("defer_destroy", "defer_destroy,clones,userrefs")
    more = f"{SNAP_A}\tclones\t{clones}\t-\n{SNAP_A}\tuserrefs\t{holds}\t-\n"
    adapter, run = snapshots((argv, 0, ZVOL_A + rows(SNAP_A) + more + POOL, ""))
    assert adapter.users((A,), SET_UID) == users
    assert not run.script


def test_nothing_uses_a_snapshot_that_does_not_exist() -> None:
    argv = LOOK.replace("defer_destroy", "defer_destroy,clones,userrefs")
    adapter, _run = snapshots((argv, 1, ZVOL_A + POOL, absent(SNAP_A)))
    assert adapter.users((A,), SET_UID) == ()
