"""Values that others choose, in output of tools and files of the kernel: none forges a fact."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import TARGET, UID, FakeSys, ScriptedRunner
from zfsilod.host import mountinfo, processes
from zfsilod.host.block import RealBlock
from zfsilod.host.device import Device
from zfsilod.host.disks import Disks
from zfsilod.host.node_records import Nodes
from zfsilod.host.run import Completed, Runner
from zfsilod.host.snapshots import RealSnapshots
from zfsilod.host.zfs import RealZfs
from zfsilod.host.zvol_survey import SurveyedZfs
from zfsilod.model.errors import Conflict, Unavailable, ZfsiloError
from zfsilod.model.host_facts import Disk, Filesystem, SnapshotRef
from zfsilod.model.settings import Export, Settings
from zfsilod.requests.orphans import Inventory, Owned, orphans

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMATTING = Filesystem(
    state="FORMATTING", type="ext4", uuid="11111111-2222-3333-4444-555555555555"
)
SETTINGS = Settings(host_id="give", root="tank/z", export=Export(prefix="iqn.x", portals=()))

# zfs(8)

Datasets = dict[str, dict[str, tuple[str, str]]]
OURS = {"type": ("volume", "-"), "guid": ("7", "-"), "zfsilo:uid": (UID, "local")}
LISTED = {"volsize": ("1024", "local"), "volblocksize": ("512", "-")}
SNAPSHOT = {
    "zfsilo:cut": ("abc", "local"),
    "creation": ("1", "-"),
    "createtxg": ("7", "-"),
    "defer_destroy": ("off", "-"),
}
STOLEN = "tank/z/missing"
USER_PROPERTIES = ("uid", "epoch", "id", "filesystem", "hosts", "labels", "cut", "operation")


class ZfsGet(Runner):
    """`zfs get -Hp` over made-up datasets, printed row by row as zfs(8) does."""

    def __init__(self, datasets: Datasets) -> None:
        super().__init__()
        self.datasets = datasets

    def __call__(
        self,
        argv: list[str],
        *,
        timeout_s: float,
        input: str | bytes = "",  # noqa: A002 - as in Runner
        ok: tuple[int, ...] = (0,),
        inherit: tuple[int, ...] = (),
    ) -> Completed:
        at = argv.index("name,property,value,source") + 1
        names, asked = argv[at].split(","), argv[at + 1 :]
        local = "-s" in argv
        snapshots = "snapshot" in argv
        if "-r" in argv:
            asked = [
                name
                for name in sorted(self.datasets)
                if any(f"{name}/".startswith(f"{root}/") for root in asked)
                and ("@" in name) == snapshots
                and (self.datasets[name].get("type", ("volume",))[0] == "volume" or "-d" in argv)
            ]
        rows = [
            "\t".join((name, key, *self.datasets[name].get(key, ("-", "-"))))
            for name in sorted(asked)
            if name in self.datasets
            for key in names
            if not local or self.datasets[name].get(key, ("-", "-"))[1] == "local"
        ]
        missing = [name for name in asked if name not in self.datasets]
        errors = (f"cannot open '{name}': dataset does not exist\n" for name in missing)
        stdout = "".join(f"{row}\n" for row in rows)
        return Completed(tuple(argv), 1 if missing else 0, stdout, "".join(errors))


def forgery(names: dict[str, tuple[str, str]], dataset: str = STOLEN) -> str:
    """Return a value whose lines are rows of another dataset; zfs appends the source `local`."""
    rows = ["\t".join((dataset, name, *value)) for name, value in names.items()]
    return "x\tlocal\n" + "\n".join(rows).removesuffix("\tlocal")


def pool(forged: str, where: str) -> ZfsGet:
    """Return a pool in which one user property of one dataset has a forged value."""
    datasets: Datasets = {
        "tank": {"type": ("filesystem", "-"), "guid": ("1", "-")},
        "tank/z": {"type": ("filesystem", "-"), "guid": ("2", "-")},
        "tank/z/a": OURS | LISTED,
        "tank/z/a@zfsilo-abc": OURS | LISTED | SNAPSHOT,
        "tank/z/z": OURS | LISTED,
    }
    for dataset in ("tank", "tank/z", "tank/z/a", "tank/z/a@zfsilo-abc", "tank/z/z"):
        datasets[dataset] = datasets[dataset] | {where: (forged, "local")}
    return ZfsGet(datasets)


FORGED = OURS | LISTED | SNAPSHOT | {"zfsilo:epoch": ("9:x", "local")}
LAST = ("zfsilo:uid", "zfsilo:epoch", "zfsilo:cut")


@pytest.mark.parametrize("where", [f"zfsilo:{name}" for name in USER_PROPERTIES])
@pytest.mark.parametrize("last", LAST)
def test_a_value_forges_no_dataset(where: str, last: str) -> None:
    names = {name: FORGED[name] for name in (*(n for n in FORGED if n != last), last)}
    run = pool(forgery(names), where)
    zfs, ref = RealZfs(run), SnapshotRef(dataset=STOLEN, uid=UID)
    questions: tuple[Callable[[], object], ...] = (
        lambda: zfs.has_zvol(STOLEN, uid=UID, guid=""),
        lambda: zfs.find_epoch(STOLEN)[0],
        lambda: zfs.exists(STOLEN),
        lambda: [zvol for zvol in zfs.list_zvols("tank/z") if zvol.dataset == STOLEN],
        lambda: zfs.own_properties("tank/z").get(STOLEN),
        lambda: RealSnapshots(run, zfs).has_set((ref,), "abc"),
        lambda: [s for s in RealSnapshots(run, zfs).list_snapshots("tank") if s.dataset == STOLEN],
        lambda: SurveyedZfs(run, ("tank/z/a", STOLEN)).has_zvol(STOLEN, uid=UID, guid=""),
    )
    for question in questions:
        with suppress(Unavailable):
            assert not question()


@pytest.mark.parametrize("value", ["a\tb", "\x1b[2J", "x\r", "\x0b\x0c\x85\u2028", "", "local"])
def test_a_value_without_a_line_break_is_read_as_it_is(value: str) -> None:
    run = pool(value, "zfsilo:labels")
    zvols = {zvol.dataset: dict(zvol.marks) for zvol in RealZfs(run).list_zvols("tank/z")}
    assert zvols["tank/z/a"] == {"uid": UID, "labels": value}
    assert RealZfs(run).has_zvol("tank/z/a", uid=UID, guid="7")


# The kernel's files


def test_a_mount_point_with_any_name_is_one_mount(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    forged = "36 25 8:0 / /srv/victim rw - ext4 /dev/sda rw"
    names = (
        f"/srv/a\n{forged}",
        "/srv/a - ext4 /dev/sdb rw",
        "/srv/\\040",
        "/srv/\udcff",
        "/srv/#",
    )
    for number, name in enumerate(names):
        escaped = "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in name)
        line = f"{number} 25 8:{number} / {escaped} rw shared:1 - fuse.x {escaped[1:]} rw\n"
        file.write_bytes(line.encode(errors="surrogateescape"))
        (mount,) = mountinfo.read(file)
        assert (mount.path, mount.number, mount.type) == (name, f"8:{number}", "fuse.x")
        assert mount.source == name[1:]


@pytest.mark.parametrize("comm", [b"\xff\xfe\n", b"a\x1b[2Jb\n", b"a\nb\n", b"\n"])
def test_a_process_with_any_name_is_named(tmp_path: Path, comm: bytes) -> None:
    (tmp_path / "7/fd").mkdir(parents=True)
    (tmp_path / "7/comm").write_bytes(comm)
    (tmp_path / "7/cwd").symlink_to("/srv/data/x")
    (name,) = processes.using("/srv/data", tmp_path)
    assert name.isprintable()
    assert name.endswith(" (7)")


def test_a_session_with_any_name_does_not_hide_the_others(tmp_path: Path) -> None:
    host = FakeSys(tmp_path)
    host.login()
    for number, name in enumerate((b"iqn.\xff\xfe\n", TARGET.encode() + b"\nx\n", b"\n"), start=2):
        folder = host.sys / f"class/iscsi_session/session{number}"
        folder.mkdir()
        (folder / "targetname").write_bytes(name)
    disks = Disks(host.sys, host.dev, host.run)
    session = disks.session(TARGET)
    assert session
    assert session.sid == "1"
    assert [s.sid for s in disks.sessions() if s.target == TARGET] == ["1"]


@pytest.mark.parametrize("page", [b"", b"\0\x80\0\x04\xff\xff\xff\xff", b"\0\x80\0\x04a\nb\n"])
def test_a_serial_of_any_bytes_is_another_serial(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "sda/device").mkdir(parents=True)
    (tmp_path / "sda/device/vpd_pg80").write_bytes(page)
    assert Device(f"{tmp_path}/sda").serial != UID


# open-iscsi, blkid(8)


def test_a_node_record_with_any_value_keeps_it(tmp_path: Path) -> None:
    record = tmp_path / "nodes" / TARGET / "10.0.0.1,3260,1"
    record.parent.mkdir(parents=True)
    odd = b"node.session.auth.username = \xffa\x0bb\x85\xe2\x80\xa8node.startup = automatic\n"
    record.write_bytes(b"# BEGIN RECORD 2.1\nnode.startup = manual\n" + odd + b"# END RECORD\n")
    nodes = Nodes((tmp_path,))
    assert nodes.read(record)["node.startup"] == "manual"
    nodes.update(record, {"node.startup": "onboot"})
    assert nodes.read(record)["node.startup"] == "onboot"
    assert odd in record.read_bytes()


def test_a_label_forges_no_type(tmp_path: Path) -> None:
    host = FakeSys(tmp_path)
    host.login(size_bytes=1 << 20)
    disk = host.dev / "sda"
    disk.write_bytes(b"x" * (1 << 20))
    disks = Disks(host.sys, host.dev, host.run)
    wanted = Disk(target=TARGET, serial=UID, size_bytes=1 << 20)
    for label in ("x\u2028TYPE=ext4", "x\x0bTYPE=ext4", "x\nTYPE=ext4"):
        stdout = f"DEVNAME={disk}\nTYPE=crypto_LUKS\nLABEL={label}\n"
        run = ScriptedRunner((f"blkid -p -o export {disk}", 0, stdout, ""))
        with pytest.raises(Conflict) as refused:
            RealBlock(run, disks, tmp_path).has_filesystem(wanted, FORMATTING)
        assert refused.value.facts["found"] == "crypto_LUKS"


def test_an_error_can_be_passed_on_and_shown() -> None:
    hostile = "a\nb\x1b[2J\udcff"
    error = ZfsiloError(f"{hostile} is in use", users=hostile)
    for text in (error.message, *error.facts.values()):
        text.encode()
        assert "\x1b" not in text


def test_an_orphan_of_any_name_is_listed(tmp_path: Path) -> None:
    path = "/srv/\udcff\x1b[2J\n"
    inventory = Inventory(
        zvols=(),
        backstores=(),
        allowed=(),
        sessions=((TARGET, (path, "dm-0")),),
        nodes=(),
    )
    owned = Owned(uids=frozenset(), targets=frozenset(), paths=frozenset(), allowed=frozenset())
    for known in (owned, owned.but(targets=frozenset({TARGET}))):
        (orphan,) = orphans(inventory, known, SETTINGS)
        for text in (orphan.name, orphan.text, *orphan.users):
            assert text.isprintable()
