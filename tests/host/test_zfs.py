"""zvols, with the output of ZFS 2.3.9 as seen in the lab."""

from __future__ import annotations

import pytest

from tests.host.doubles import UID, ScriptedRunner
from zfsilod.host import zfs as zfs_module
from zfsilod.host import zfs_output
from zfsilod.host.zfs import RealZfs
from zfsilod.host.zfs_output import in_bytes, table
from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.names import check_dataset

NAME = "tank/v1"
GET = "zfs get -Hp -o name,property,value,source"
LOOK = f"{GET} zfsilo:uid,type,guid {NAME} tank"
POOL = "tank\ttype\tfilesystem\t-\ntank\tguid\t17\t-\ntank\tzfsilo:uid\t-\t-\n"
OURS = f"{NAME}\ttype\tvolume\t-\n{NAME}\tguid\t114\t-\n{NAME}\tzfsilo:uid\t{UID}\tlocal\n{POOL}"
ABSENT = f"cannot open '{NAME}': dataset does not exist\n"
NO_POOL = f"{ABSENT}cannot open 'tank': dataset does not exist\n"
SETTLE = ("udevadm settle --timeout=5", 0, "", "")
CREATE = (
    "zfs create -s -V 67108864 -o volblocksize=16384 -o compression=lz4 -o volmode=dev "
    f"-o zfsilo:id=v1 -o zfsilo:uid={UID} -- {NAME}"
)


def has_zvol(*script: tuple[str, int, str, str], guid: str = "") -> bool:
    run = ScriptedRunner(*script)
    present = RealZfs(run).has_zvol(NAME, uid=UID, guid=guid)
    assert not run.script
    return present


def create(*script: tuple[str, int, str, str]) -> None:
    run = ScriptedRunner(*script)
    RealZfs(run).create_zvol(
        NAME,
        size_bytes=64 << 20,
        thin=True,
        volblocksize=16384,
        properties=(("compression", "lz4"), ("volmode", "dev")),
        marks=(("zfsilo:id", "v1"), ("zfsilo:uid", UID)),
    )
    assert not run.script


def destroy(*script: tuple[str, int, str, str]) -> None:
    run = ScriptedRunner(*script)
    RealZfs(run).destroy_zvol(NAME, uid=UID, guid="114")
    assert not run.script


@pytest.mark.parametrize("forged_first", [True, False])
def test_a_value_does_not_forge_a_row_of_another_dataset(*, forged_first: bool) -> None:
    forger = "tank/a\tzfsilo:labels\tx\tlocal\ntank/b\tzfsilo:uid\tstolen\tlocal\tlocal\n"
    real = "tank/b\tzfsilo:uid\towner\tlocal\n"
    rows = (forger, real) if forged_first else (real, forger)
    with pytest.raises(Unavailable, match="value with a line break"):
        zfs_output.table("".join(rows))


@pytest.mark.parametrize(
    "row",
    [
        "tank/a\tzfsilo:labels\tx\n",
        "tank/a\n",
        "\n",
        "tank/a\tzfsilo:id\tx\tlocal\n\tlocal\n",
        "tank/a\tzfsilo:id\tx\tlocal\ntank/b\tguid\t1\t-\ntank/a\tguid\t2\t-\n",
    ],
)
def test_a_row_that_zfs_does_not_print_is_an_error(row: str) -> None:
    with pytest.raises(Unavailable, match="value with a line break"):
        zfs_output.table(row)


def test_ours() -> None:
    assert has_zvol((LOOK, 0, OURS, ""))
    assert has_zvol((LOOK, 0, OURS, ""), guid="114")


def test_absent_only_when_its_pool_answers() -> None:
    assert not has_zvol((LOOK, 1, POOL, ABSENT))
    with pytest.raises(Unavailable, match="pool tank is not imported"):
        has_zvol((LOOK, 1, "", NO_POOL))


@pytest.mark.parametrize(
    ("stdout", "why"),
    [
        (OURS.replace("volume", "filesystem", 1), "it is a filesystem"),
        (OURS.replace(f"{UID}\tlocal", "-\t-"), "no local property zfsilo:uid"),
        (OURS.replace("\tlocal", "\tinherited from tank"), "no local property zfsilo:uid"),
        (OURS.replace("\tlocal", "\treceived"), "no local property zfsilo:uid"),
        (OURS.replace(UID, "f" * 32), "it belongs to volume fff"),
        (OURS.replace("\t114\t", "\t115\t"), "its guid is 115, not 114"),
    ],
)
def test_not_ours(stdout: str, why: str) -> None:
    with pytest.raises(Conflict, match=why):
        has_zvol((LOOK, 0, stdout, ""), guid="114")


def test_any_other_error_is_raised() -> None:
    suspended = f"cannot open '{NAME}': pool I/O is currently suspended\n"
    with pytest.raises(Unavailable, match="suspended"):
        has_zvol((LOOK, 1, POOL, suspended))
    with pytest.raises(CommandFailed):
        has_zvol((LOOK, 1, POOL, "cannot open 'tank/v1': I/O error\n"))
    with pytest.raises(CommandFailed):  # another dataset is absent, not ours
        has_zvol((LOOK, 1, POOL, ABSENT.replace("v1", "v10")))


def test_create_is_one_command_with_the_marks() -> None:
    create((CREATE, 0, "", ""))


def test_create_accepts_our_existing_zvol() -> None:
    exists = f"cannot create '{NAME}': dataset already exists\n"
    create((CREATE, 1, "", exists), (LOOK, 0, OURS, ""))
    with pytest.raises(Conflict):
        create((CREATE, 1, "", exists), (LOOK, 0, OURS.replace(UID, "f" * 32), ""))


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("cannot create 'tank/v1': out of space", ResourceExhausted, "no space"),
        ("cannot create 'tank/v1': parent does not exist", FailedPrecondition, "dataset tank "),
        ("cannot open 'tank': no such pool", Unavailable, "not imported"),
        ("cannot create 'tank/v1': invalid property 'compresion'", InvalidArgument, "compresion"),
        ("cannot create 'tank/v1': 'compression' must be one of 'on'", InvalidArgument, "compres"),
        ("cannot create 'tank/v1': volume size cannot be zero", InvalidArgument, "size"),
        ("cannot create 'tank/v1': permission denied", CommandFailed, "permission denied"),
    ],
)
def test_create_refused(stderr: str, error: type[ZfsiloError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        create((CREATE, 1, "", f"{stderr}\n"))
    assert type(caught.value) is error


def test_destroy_probes_first() -> None:
    destroy((LOOK, 0, OURS, ""), (f"zfs destroy {NAME}", 0, "", ""))
    destroy((LOOK, 1, POOL, ABSENT))
    with pytest.raises(Conflict):
        destroy((LOOK, 0, OURS.replace("114", "115"), ""))


def test_destroy_names_snapshots() -> None:
    stderr = (
        f"cannot destroy '{NAME}': volume has children\n"
        f"use '-r' to destroy the following datasets:\n{NAME}@a\n{NAME}@b\n"
    )
    with pytest.raises(FailedPrecondition, match="tank/v1@a, tank/v1@b") as caught:
        destroy((LOOK, 0, OURS, ""), (f"zfs destroy {NAME}", 1, "", stderr))
    assert caught.value.reason == "DEPENDENTS"


def test_destroy_waits_for_udev_and_then_names_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = (f"zfs destroy {NAME}", 1, "", f"cannot destroy '{NAME}': dataset is busy\n")
    look = (LOOK, 0, OURS, "")
    destroy(look, busy, SETTLE, look, (f"zfs destroy {NAME}", 0, "", ""))
    monkeypatch.setattr(zfs_module, "users", lambda _path: ["dm-0"])
    with pytest.raises(Busy, match="in use by dm-0"):
        destroy(*[look, busy, SETTLE] * 4)


TRASH = "tank/.trash/x"
LOOK_THERE = LOOK.replace(NAME, TRASH)
NOT_THERE = (LOOK_THERE, 1, POOL, ABSENT.replace(NAME, TRASH))


def test_a_move_makes_the_parent_once() -> None:
    parent = f"{GET} type tank/.trash tank"
    absent = (parent, 1, "tank\ttype\tfilesystem\t-\n", ABSENT.replace(NAME, "tank/.trash"))
    there = (parent, 0, "tank/.trash\ttype\tfilesystem\t-\ntank\ttype\tfilesystem\t-\n", "")
    made = ("zfs create -o canmount=off -o mountpoint=none tank/.trash", 0, "", "")
    moved = (f"zfs rename {NAME} {TRASH}", 0, "", "")
    for script in (
        [NOT_THERE, (LOOK, 0, OURS, ""), absent, made, moved],
        [NOT_THERE, (LOOK, 0, OURS, ""), there, moved],
        [(LOOK_THERE, 0, OURS.replace(NAME, TRASH), "")],
    ):
        run = ScriptedRunner(*script)
        RealZfs(run).rename(NAME, TRASH, uid=UID, guid="114")
        assert not run.script


def test_a_zvol_at_neither_name_is_an_error() -> None:
    run = ScriptedRunner(NOT_THERE, (LOOK, 1, POOL, ABSENT))
    with pytest.raises(FailedPrecondition, match="does not exist"):
        RealZfs(run).is_renamed(NAME, TRASH, uid=UID, guid="114")


def test_dependents_are_snapshots_and_their_clones() -> None:
    argv = "zfs get -Hp -r -d 1 -t volume,snapshot -o name,property,value,source clones " + NAME
    rows = f"{NAME}\tclones\t-\t-\n{NAME}@a\tclones\t\t-\n{NAME}@b\tclones\ttank/c,tank/d\t-\n"
    dependents = RealZfs(ScriptedRunner((argv, 0, rows, ""))).dependents(NAME)
    assert dependents == (f"{NAME}@a", f"{NAME}@b", "tank/c", "tank/d")
    absent = ScriptedRunner((argv, 1, "", ABSENT), (f"{GET} type {NAME} tank", 1, POOL, ABSENT))
    with pytest.raises(FailedPrecondition) as missing:
        RealZfs(absent).dependents(NAME)
    assert missing.value.reason == "NO_DATASET"


def test_size_only_grows() -> None:
    get = f"{GET} volsize {NAME} tank"
    size = f"{NAME}\tvolsize\t67108864\tlocal\ntank\tvolsize\t-\t-\n"
    assert RealZfs(ScriptedRunner((get, 0, size, ""))).has_size(NAME, 64 << 20)
    assert not RealZfs(ScriptedRunner((get, 0, size, ""))).has_size(NAME, 65 << 20)
    RealZfs(ScriptedRunner((get, 0, size, ""))).set_size(NAME, 64 << 20)
    grown = (f"zfs set volsize=134217728 {NAME}", 0, "", "")
    RealZfs(ScriptedRunner((get, 0, size, ""), grown)).set_size(NAME, 128 << 20)
    with pytest.raises(FailedPrecondition, match="cannot be shrunk"):
        RealZfs(ScriptedRunner((get, 0, size, ""))).set_size(NAME, 32 << 20)
    stderr = f"cannot set property for '{NAME}': size is greater than available space\n"
    full = (grown[0], 1, "", stderr)
    with pytest.raises(ResourceExhausted):
        RealZfs(ScriptedRunner((get, 0, size, ""), full)).set_size(NAME, 128 << 20)


@pytest.mark.parametrize(
    ("line", "value", "expected"),
    [
        ("lz4\tlocal", "lz4", True),
        ("lz4\tinherited from tank", "lz4", False),
        ("16384\t-", "16K", True),
        ("0\tlocal", "none", True),
        ("off\tdefault", "", True),
        ("lz4\tlocal", "", False),
        ("-\t-", "x", False),
    ],
)
def test_property(line: str, value: str, expected: bool) -> None:
    answer = (f"{GET} name {NAME} tank", 0, f"{NAME}\tname\t{line}\ntank\tname\tx\tlocal\n", "")
    assert RealZfs(ScriptedRunner(answer)).has_property(NAME, "name", value) is expected


def test_set_and_inherit_a_property() -> None:
    RealZfs(ScriptedRunner((f"zfs set sync=always {NAME}", 0, "", ""))).set_property(
        NAME, "sync", "always"
    )
    RealZfs(ScriptedRunner((f"zfs inherit sync {NAME}", 0, "", ""))).set_property(NAME, "sync", "")
    stderr = f"cannot set property for '{NAME}': 'sync' must be one of 'standard'\n"
    with pytest.raises(InvalidArgument) as caught:
        RealZfs(ScriptedRunner((f"zfs set sync=x {NAME}", 255, "", stderr))).set_property(
            NAME, "sync", "x"
        )
    assert caught.value.facts["property"] == "sync"


def test_capacity_and_list() -> None:
    stdout = "tank\tavailable\t700\t-\ntank\tused\t300\t-\n"
    run = ScriptedRunner((f"{GET} available,used tank", 0, stdout, ""))
    assert RealZfs(run).capacity("tank") == (700, 1000)
    rows = (
        "guid\t5\t-",
        f"zfsilo:uid\t{UID}\tlocal",
        "zfsilo:id\tv1\tinherited from tank",
        "zfsilo:mode\tBLOCK\tlocal",
        "volsize\t9\tlocal",
        "volblocksize\t4096\t-",
        "refreservation\t0\tdefault",
        "origin\ttank/trashed@zfsilo-1\t-",
    )
    stdout = "".join(f"{NAME}\t{row}\n" for row in rows)
    argv = (
        "zfs get -Hp -r -t volume -o name,property,value,source "
        "zfsilo:uid,zfsilo:epoch,zfsilo:id,zfsilo:filesystem,zfsilo:mode,"
        "zfsilo:access_modes,zfsilo:hosts,zfsilo:labels,zfsilo:source_snapshot,"
        "zfsilo:source_volume,zfsilo:transport,zfsilo:tls,zfsilo:limits,zfsilo:key,zfsilo:replica,"
        "zfsilo:term,zfsilo:peers,zfsilo:aside_of,guid,volsize,volblocksize,refreservation,"
        "origin tank"
    )
    (zvol,) = RealZfs(ScriptedRunner((argv, 0, stdout, ""))).list_zvols("tank")
    assert (zvol.dataset, zvol.uid, zvol.guid) == (NAME, UID, "5")
    assert dict(zvol.marks) == {"uid": UID, "mode": "BLOCK"}, "inherited properties do not count"
    assert (zvol.size_bytes, zvol.volblocksize, zvol.thin) == (9, 4096, True)
    assert zvol.origin == "tank/trashed"


def test_own_properties_are_local_ones() -> None:
    argv = (
        "zfs get -Hp -r -t volume -s local -o name,property,value,source "
        "checksum,compression,copies,dedup,logbias,primarycache,redundant_metadata,secondarycache,"
        "sync tank"
    )
    stdout = f"{NAME}\tcompression\tzstd\tlocal\n{NAME}\tsync\talways\tlocal\n"
    properties = RealZfs(ScriptedRunner((argv, 0, stdout, ""))).own_properties("tank")
    assert properties == {NAME: {"compression": "zstd", "sync": "always"}}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-r",
        "tank/../x",
        "tank/./x",
        "tank/",
        "/tank",
        "tank/a b",
        "tank/x@s",
        "tank\n",
        "a" * 256,
        "1tank",
        "tank//x",
        "tank/$(id)",
    ],
)
def test_invalid_dataset_names(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_dataset(name)
    with pytest.raises(InvalidArgument):
        RealZfs(ScriptedRunner()).destroy_zvol(name, uid=UID, guid="")


def test_names_sizes_and_tables() -> None:
    assert check_dataset("tank/-odd/csi-x.y:z_1")
    assert [in_bytes(value) for value in ("16K", "1m", "none", "lz4", "10")] == [
        "16384",
        "1048576",
        "0",
        "lz4",
        "10",
    ]
    assert table("a\tb\tc\td\tlocal\n") == {"a": {"b": ("c\td", "local")}}


def test_a_dependent_is_never_a_dash() -> None:
    argv = "zfs get -Hp -r -d 1 -t volume,snapshot -o name,property,value,source clones " + NAME
    rows = f"{NAME}\tclones\t-\t-\n{NAME}@a\tclones\t-\t-\n{NAME}@b\tclones\ttank/c,-\t-\n"
    run = ScriptedRunner((argv, 0, rows, ""))
    assert RealZfs(run).dependents(NAME) == (f"{NAME}@a", f"{NAME}@b", "tank/c")


@pytest.mark.parametrize(("token", "receiving"), [("-", False), ("1-e604ea4bf-e0-789c63", True)])
def test_an_unfinished_receive_has_a_token(token: str, *, receiving: bool) -> None:
    rows = "".join(f"{name}\treceive_resume_token\t{token}\t-\n" for name in (NAME, "tank"))
    run = ScriptedRunner((f"{GET} receive_resume_token {NAME} tank", 0, rows, ""))
    assert RealZfs(run).is_receiving(NAME) is receiving


KEY = f"{GET} keystatus,encryptionroot {NAME}"
LOCKED = f"{NAME}\tkeystatus\tunavailable\t-\n{NAME}\tencryptionroot\ttank/secret\t-\n"


def test_a_key_that_is_not_loaded_is_named_at_once() -> None:
    run = ScriptedRunner((KEY, 0, LOCKED, ""))
    with pytest.raises(FailedPrecondition, match="zfs load-key tank/secret") as raised:
        RealZfs(run).device(NAME)
    assert (raised.value.reason, run.script) == ("KEY_NOT_LOADED", [])


@pytest.mark.parametrize(
    ("listed", "key", "part"),
    [
        ("ONLINE\toff\n", "", ""),
        ("SUSPENDED\toff\n", "", "zpool clear tank"),
        ("DEGRADED\toff\n", "", "is DEGRADED"),
        ("ONLINE\ton\n", "", "zpool export tank; zpool import tank"),
        ("ONLINE\toff\n", LOCKED, "zfs load-key tank/secret"),
    ],
)
def test_what_prevents_the_use_of_a_pool(listed: str, key: str, part: str) -> None:
    run = ScriptedRunner(
        ("zpool list -H -o health,readonly tank", 0, listed, ""), (KEY, 0, key, "")
    )
    problem = RealZfs(run).pool_problem(NAME)
    assert (part in str(problem or ""), bool(problem)) == (True, bool(part))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("encryption root's key is not loaded or provided", "KEY_NOT_LOADED"),
        ("dataset is read-only", "POOL_READONLY"),
        ("pool is read-only", "POOL_READONLY"),
    ],
)
def test_a_refused_creation_names_the_fact(message: str, reason: str) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        create((CREATE, 1, "", f"cannot create '{NAME}': {message}\n"))
    assert raised.value.reason == reason
