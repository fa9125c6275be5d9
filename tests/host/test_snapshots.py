"""Snapshots and clones, against what ZFS 2.3.9 says."""

from __future__ import annotations

import pytest

from tests.host.doubles import UID, ScriptedRunner
from zfsilod.host.snapshots import RealSnapshots
from zfsilod.host.zfs import RealZfs
from zfsilod.model.errors import Busy, CommandFailed, Conflict, FailedPrecondition, Unavailable
from zfsilod.model.host_facts import SnapshotRef

CUT = "c" * 32
A = SnapshotRef(dataset="tank/a", uid=UID)
B = SnapshotRef(dataset="tank/b", uid="b" * 32)
SNAP_A, SNAP_B = f"tank/a@zfsilo-{CUT}", f"tank/b@zfsilo-{CUT}"
GET = "zfs get -Hp -o name,property,value,source guid,zfsilo:cut,defer_destroy,zfsilo:uid"
LOOK = f"{GET} tank/a {SNAP_A} tank"
LOOK_BOTH = f"{GET} tank/a {SNAP_A} tank/b {SNAP_B} tank"
POOL = "tank\tguid\t1\t-\n"
ZVOL_A = f"tank/a\tguid\t2\t-\ntank/a\tzfsilo:uid\t{UID}\tlocal\n"
ZVOL_B = f"tank/b\tguid\t3\t-\ntank/b\tzfsilo:uid\t{B.uid}\tlocal\n"
DESTROY = (f"zfs destroy -d {SNAP_A}", 0, "", "")


def rows(snapshot: str, *, cut: str = CUT, source: str = "local", deferred: str = "off") -> str:
    return (
        f"{snapshot}\tguid\t7\t-\n{snapshot}\tzfsilo:cut\t{cut}\t{source}\n"
        f"{snapshot}\tdefer_destroy\t{deferred}\t-\n"
    )


def absent(*names: str) -> str:
    return "".join(f"cannot open '{each}': dataset does not exist\n" for each in names)


THERE = (LOOK, 0, ZVOL_A + rows(SNAP_A) + POOL, "")
NOT_THERE = (LOOK, 1, ZVOL_A + POOL, absent(SNAP_A))


def snapshots(*script: tuple[str, int, str, str]) -> tuple[RealSnapshots, ScriptedRunner]:
    run = ScriptedRunner(*script)
    return RealSnapshots(run, RealZfs(run)), run


def has(*script: tuple[str, int, str, str], snapshot_ref: SnapshotRef = A) -> bool:
    adapter, run = snapshots(*script)
    found = adapter.has_cut((snapshot_ref,), CUT)
    assert not run.script
    return found


def test_one_that_is_given_up_is_there_for_nobody() -> None:
    assert has(THERE)
    assert has(THERE, snapshot_ref=A.but(guid="7"))
    assert not has(NOT_THERE)
    assert not has((LOOK, 0, ZVOL_A + rows(SNAP_A, deferred="on") + POOL, ""))
    assert not has((LOOK, 1, POOL, absent("tank/a", SNAP_A)))


@pytest.mark.parametrize(
    "found", [rows(SNAP_A, cut="x"), rows(SNAP_A, source="inherited from tank/a")]
)
def test_not_ours(found: str) -> None:
    with pytest.raises(Conflict, match="not ours"):
        has((LOOK, 0, ZVOL_A + found + POOL, ""))
    with pytest.raises(Conflict, match="guid"):
        has(THERE, snapshot_ref=A.but(guid="8"))


def test_an_error_is_never_absence() -> None:
    with pytest.raises(CommandFailed):
        has((LOOK, 1, ZVOL_A + POOL, f"cannot open '{SNAP_A}': I/O error\n"))
    with pytest.raises(Unavailable, match="not imported"):
        has((LOOK, 1, "", absent("tank/a", SNAP_A, "tank")))
    with pytest.raises(CommandFailed):  # nothing is said of it at all
        has((LOOK, 1, ZVOL_A + POOL, ""))


def test_a_group_is_one_command() -> None:
    cut = (
        f"zfs snapshot -o zfsilo:cut={CUT} {SNAP_A} {SNAP_B}", 0, "", "",
    )  # fmt: skip
    none = (LOOK_BOTH, 1, ZVOL_A + ZVOL_B + POOL, absent(SNAP_A, SNAP_B))
    adapter, run = snapshots(none, none, cut)
    adapter.cut((A, B), CUT, (("zfsilo:cut", CUT),))
    assert not run.script
    half = (LOOK_BOTH, 1, ZVOL_A + rows(SNAP_A) + ZVOL_B + POOL, absent(SNAP_B))
    adapter, run = snapshots(half, half, DESTROY, cut)
    adapter.cut((A, B), CUT, (("zfsilo:cut", CUT),))
    assert not run.script


def test_a_listing_is_of_what_is_ours_and_there() -> None:
    argv = (
        "zfs get -Hp -r -t snapshot -o name,property,value,source guid,volsize,creation,"
        "defer_destroy,zfsilo:cut,zfsilo:snapshot,zfsilo:members,zfsilo:filesystems,zfsilo:labels "
        "tank"
    )

    def listed(name: str, source: str, deferred: str) -> str:
        rows = (
            "guid\t7\t-", "volsize\t9\t-", "creation\t1700000000\t-",
            f"defer_destroy\t{deferred}\t-", f"zfsilo:cut\t{CUT}\t{source}",
            "zfsilo:snapshot\tmonday\tlocal", "zfsilo:labels\t{}\tinherited from tank",
        )  # fmt: skip
        return "".join(f"{name}\t{row}\n" for row in rows)

    stdout = (
        listed(SNAP_A, "local", "off") + listed(SNAP_B, "local", "on")
        + listed("tank/a@by-hand", "inherited from tank/a", "off")
    )  # fmt: skip
    adapter, run = snapshots((argv, 0, stdout, ""))
    (found,) = adapter.list_snapshots("tank")
    assert not run.script
    assert (found.dataset, found.guid, found.size_bytes) == ("tank/a", "7", 9)
    assert (found.cut, found.created_at) == (CUT, 1700000000)
    assert dict(found.marks) == {"cut": CUT, "snapshot": "monday"}


def test_no_snapshot_of_what_is_not_ours() -> None:
    foreign = (LOOK, 1, ZVOL_A.replace("local", "inherited from tank") + POOL, absent(SNAP_A))
    adapter, _run = snapshots(foreign)
    with pytest.raises(Conflict):
        adapter.cut((A,), CUT, ())
    adapter, _run = snapshots((LOOK, 1, POOL, absent("tank/a", SNAP_A)))
    with pytest.raises(FailedPrecondition, match="does not exist"):
        adapter.cut((A,), CUT, ())


def test_giving_up_leaves_clones_alone() -> None:
    adapter, run = snapshots(THERE, DESTROY)
    adapter.give_up((A,), CUT)
    assert not run.script
    adapter, run = snapshots(NOT_THERE)
    adapter.give_up((A,), CUT)
    assert not run.script


def test_a_snapshot_that_cannot_be_given_up_now() -> None:
    said = f"cannot destroy snapshot {SNAP_A}: dataset is busy\n"
    adapter, _run = snapshots(THERE, (DESTROY[0], 1, "", said))
    with pytest.raises(Busy):
        adapter.give_up((A,), CUT)


def test_a_clone_of_a_volume_gives_its_snapshot_up_at_once() -> None:
    looked = "zfs get -Hp -o name,property,value,source type,guid,zfsilo:uid tank/c tank"
    nothing = (looked, 1, "tank\ttype\tfilesystem\t-\n", absent("tank/c"))
    script = (
        nothing, NOT_THERE, NOT_THERE,
        (f"zfs snapshot -o zfsilo:cut={CUT} {SNAP_A}", 0, "", ""),
        (f"zfs clone -o volmode=dev -o zfsilo:uid=x {SNAP_A} tank/c", 0, "", ""),
        THERE, DESTROY,
    )  # fmt: skip
    adapter, run = snapshots(*script)
    adapter.clone(
        "tank/c", uid="x", snapshot_ref=A, cut=CUT, own=True, properties=(("volmode", "dev"),),
        marks=(("zfsilo:uid", "x"),),
    )  # fmt: skip
    assert not run.script


def test_a_clone_of_a_lost_snapshot() -> None:
    looked = "zfs get -Hp -o name,property,value,source type,guid,zfsilo:uid tank/c tank"
    adapter, _run = snapshots(
        (looked, 1, "tank\ttype\tfilesystem\t-\n", absent("tank/c")),
        (f"zfs clone {SNAP_A} tank/c", 1, "", absent(SNAP_A)),
    )
    with pytest.raises(FailedPrecondition, match="does not exist") as lost:
        adapter.clone(
            "tank/c", uid="x", snapshot_ref=A, cut=CUT, own=False, properties=(), marks=()
        )
    assert lost.value.reason == "LOST"


def test_thick() -> None:
    get = "zfs get -Hp -o name,property,value,source refreservation,volsize tank/c tank"
    for reserved, thick in (("0", False), ("1100", True)):
        said = f"tank/c\trefreservation\t{reserved}\tlocal\ntank/c\tvolsize\t1000\tlocal\n"
        adapter, _run = snapshots((get, 0, said, ""))
        assert adapter.is_thick("tank/c") is thick
    adapter, run = snapshots(("zfs set refreservation=auto tank/c", 0, "", ""))
    adapter.set_thick("tank/c", thick=True)
    assert not run.script
