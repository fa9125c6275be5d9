"""Tools that fail, hang, or print wrong output: scripts in place of the tools of real adapters.

At each fault of each call the adapter gives the right answer or a typed error, in bounded time. An
error is never taken for absence, and a filesystem is never made twice.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.host.doubles import TARGET, UID, FakeSys
from tests.host.test_block import DISK, FORMATTING, SIZE, pytestmark
from tests.host.test_zfs import ABSENT, NAME, OURS, POOL
from zfsilod.host import iscsi as iscsi_module
from zfsilod.host import mount as mount_module
from zfsilod.host import mountinfo
from zfsilod.host.block import MIB, RealBlock
from zfsilod.host.disks import Disks
from zfsilod.host.iscsi import RealIscsi
from zfsilod.host.mount import RealMounts
from zfsilod.host.node_records import Nodes
from zfsilod.host.run import Runner
from zfsilod.host.superblock import Superblock
from zfsilod.host.zfs import RealZfs
from zfsilod.model.errors import ZfsiloError

if TYPE_CHECKING:
    from collections.abc import Callable

assert pytestmark  # these tests need the same tools
TOOL = """\
#!/bin/sh
here={here} tool={tool}
n=$(($(cat $here/$tool.count 2>/dev/null || echo 0) + 1))
echo $n > $here/$tool.count
real() {{ {real}; }}
[ "$(cat $here/$tool.at)" = $n ] && . $here/$tool.fault
real "$@"
"""
FAULTS = {
    "late": "sleep 60",
    "slow": 'sleep 0.1; real "$@"; exit $?',
    "partial": 'real "$@" 2>/dev/null | head -c 25; exit 0',
    "garbage": r"printf '\377\000\t\t\t\ngarbage\n'; exit 0",
    "nothing": "exit 0",
    "success and exit 1": 'real "$@"; exit 1',
    "error and exit 0": "echo 'cannot open: I/O error' >&2; exit 0",
    "killed": "kill -9 $$",
}
CODES = {
    "zfs": (1, 2, 255),
    "blkid": (1, 2, 4, 8),
    "e2fsck": (1, 4, 8, 16, 32, 128),
    "mkfs.ext4": (1,),
    "mount": (1, 2, 4, 8, 16, 32, 64),
    "umount": (1, 32),
    "iscsiadm": tuple(range(1, 35)),
    "udevadm": (1,),
}
# Results of e2fsck for an incomplete filesystem, which cannot have been mounted yet.
TORN = {("e2fsck", f"exit {code}") for code in (1, 4, 8)} | {("e2fsck", "success and exit 1")}
CALLS = (1, 2) if os.environ.get("ZFSILO_THOROUGH") else (1,)  # set by `make crash-test`
LATE_S, PATIENT_S = 3.0, 20.0  # the time of a tool where one is late, and otherwise
BOUND_S = 30.0


class Quick(Runner):
    """A runner with short time-outs."""

    limit_s = PATIENT_S

    def __call__(self, argv: list[str], *, timeout_s: float, **options: Any) -> Any:
        return super().__call__(argv, timeout_s=min(timeout_s, Quick.limit_s), **options)


class Toolbox:
    """A directory of scripts in place of tools: each runs the real tool but in one call."""

    def __init__(self, here: Path) -> None:
        self.here = here

    def add(self, tool: str, real: str) -> None:
        """Add a tool; `real` is a shell command that does its work."""
        path = self.here / tool
        path.write_text(TOOL.format(here=self.here, tool=tool, real=real))
        path.chmod(0o755)
        self.break_at(tool, 0, "")

    def break_at(self, tool: str, call: int, fault: str) -> None:
        """Let the n-th call from now fail (0: none)."""
        Quick.limit_s = LATE_S if fault == FAULTS["late"] else PATIENT_S
        (self.here / f"{tool}.at").write_text(f"{call}\n")
        (self.here / f"{tool}.fault").write_text(f"{fault}\n")
        (self.here / f"{tool}.count").unlink(missing_ok=True)

    def calls(self, tool: str) -> int:
        """Return the number of calls of a tool."""
        count = self.here / f"{tool}.count"
        return int(count.read_text()) if count.exists() else 0


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolbox:
    here = tmp_path / "tools"
    here.mkdir()
    monkeypatch.setenv("ZFSILO_TOOLS_PATH", f"{here}:/usr/sbin:/usr/bin:/sbin:/bin")
    return Toolbox(here)


def faults(tool: str) -> dict[str, str]:
    """Return the faults of a tool by name."""
    return FAULTS | {f"exit {code}": f"exit {code}" for code in CODES[tool]}


def bounded(act: Callable[[], object]) -> object:
    """Act within BOUND_S, and return the answer or the typed error."""
    started = time.monotonic()
    try:
        answer = act()
    except ZfsiloError as error:
        answer = error
    assert time.monotonic() - started < BOUND_S
    return answer


# zfs


class ZfsAnswer(NamedTuple):
    """A call of the zfs adapter, the output of a working zfs, and the right answer to it."""

    name: str
    act: Callable[[RealZfs], object]
    stdout: str
    right: object
    stderr: str = ""
    rc: int = 0


def look(properties: str) -> str:
    """Return the output of `zfs get` for our zvol and its pool."""
    return f"{properties}tank\ttype\tfilesystem\t-\n"


ANSWERS = (
    ZfsAnswer("has", lambda zfs: zfs.has_zvol(NAME, uid=UID, guid="114"), OURS, True),
    ZfsAnswer("guid", lambda zfs: zfs.find_guid(NAME, uid=UID), OURS, "114"),
    ZfsAnswer(
        "size",
        lambda zfs: zfs.has_size(NAME, 64 << 20),
        look(f"{NAME}\tvolsize\t67108864\t-\n"),
        True,
    ),
    ZfsAnswer(
        "property",
        lambda zfs: zfs.has_property(NAME, "sync", "always"),
        look(f"{NAME}\tsync\talways\tlocal\n"),
        True,
    ),
    ZfsAnswer("exists", lambda zfs: zfs.exists(NAME), look(f"{NAME}\ttype\tvolume\t-\n"), True),
    ZfsAnswer(
        "dependents",
        lambda zfs: zfs.dependents(NAME),
        f"{NAME}\tclones\t-\t-\n{NAME}@s\tclones\ttank/c\t-\n",
        (f"{NAME}@s", "tank/c"),
    ),
    ZfsAnswer(
        "capacity",
        lambda zfs: zfs.capacity("tank"),
        "tank\tavailable\t1000\t-\ntank\tused\t24\t-\n",
        (1000, 1024),
    ),
    ZfsAnswer("absent", lambda zfs: zfs.has_zvol(NAME, uid=UID, guid=""), POOL, False, ABSENT, 1),
    ZfsAnswer(
        "destroy absent",
        lambda zfs: zfs.destroy_zvol(NAME, uid=UID, guid=""),
        POOL,
        None,
        ABSENT,
        1,
    ),
)


@pytest.mark.parametrize("fault", faults("zfs"))
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)
def test_zfs(tools: Toolbox, answer: ZfsAnswer, fault: str) -> None:
    (tools.here / "out").write_text(answer.stdout)
    (tools.here / "err").write_text(answer.stderr)
    tools.add("zfs", f"cat {tools.here}/out; cat {tools.here}/err >&2; return {answer.rc}")
    assert answer.act(RealZfs(Quick())) == answer.right
    tools.break_at("zfs", 1, faults("zfs")[fault])
    result = bounded(lambda: answer.act(RealZfs(Quick())))
    assert isinstance(result, ZfsiloError) or result == answer.right


# mkfs


class FormatBench:
    """A block adapter with a file as its disk, and tools that can fail."""

    def __init__(self, root: Path, tools: Toolbox) -> None:
        self.sys = FakeSys(root)
        self.sys.login(size_bytes=SIZE)
        self.path = self.sys.dev / "sda"
        for tool in ("mkfs.ext4", "blkid", "e2fsck"):
            tools.add(tool, f'/usr/sbin/{tool} "$@"')
        disks = Disks(self.sys.sys, self.sys.dev, self.sys.run)
        self.block = RealBlock(Quick(), disks, root / "proofs")


@pytest.mark.parametrize(
    ("tool", "fault"),
    [(tool, name) for tool in ("mkfs.ext4", "blkid", "e2fsck") for name in faults(tool)],
)
def test_mkfs(tools: Toolbox, tmp_path: Path, tool: str, fault: str) -> None:
    """After a fault in any call the filesystem is made by the next one, and then never again."""
    for call in CALLS:
        root = tmp_path / f"{call}"
        root.mkdir()
        bench = FormatBench(root, tools)
        tools.break_at(tool, call, faults(tool)[fault])
        bounded(partial(bench.block.make_filesystem, DISK, FORMATTING))
        bounded(partial(bench.block.has_filesystem, DISK, FORMATTING))
        tools.break_at(tool, 0, "")
        bench.block.make_filesystem(DISK, FORMATTING)
        assert bench.block.has_filesystem(DISK, FORMATTING)
        with bench.path.open("r+b") as file:
            file.seek(40 * MIB)
            file.write(b"data")
        tools.break_at("mkfs.ext4", 0, "")
        tools.break_at(tool, call, faults(tool)[fault])
        bounded(partial(bench.block.make_filesystem, DISK, FORMATTING))
        if (tool, fault) not in TORN:
            assert tools.calls("mkfs.ext4") == 0, "the filesystem was made a second time"
            assert bench.path.read_bytes()[40 * MIB : 40 * MIB + 4] == b"data"


# iscsiadm


@pytest.mark.parametrize("fault", faults("iscsiadm"))
def test_iscsiadm(
    tools: Toolbox, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login without a disk is an error, and so is a logout that leaves the disk."""
    monkeypatch.setattr(iscsi_module, "DISK_DEADLINE_S", 0.2)
    monkeypatch.setattr("zfsilod.host.logins.LOGOUT_DEADLINE_S", 0.2)
    root = tmp_path / "iscsi"
    (root / "nodes" / TARGET / "10.77.0.1,3260,1").mkdir(parents=True)
    (root / "nodes" / TARGET / "10.77.0.1,3260,1" / "default").write_text(
        f"node.name = {TARGET}\nnode.conn[0].address = 10.77.0.1\nnode.conn[0].port = 3260\n"
    )
    system = FakeSys(tmp_path)
    tools.add("iscsiadm", "return 0")
    tools.add("udevadm", "return 0")
    disks = Disks(system.sys, system.dev, system.run)
    nodes = Nodes((root,), tmp_path / "lock.write")
    iscsi = RealIscsi(Quick(), disks, nodes, tmp_path / "host.lock")
    tools.break_at("iscsiadm", 1, faults("iscsiadm")[fault])
    assert isinstance(bounded(lambda: iscsi.login(DISK)), ZfsiloError)
    system.login(size_bytes=SIZE)
    tools.break_at("iscsiadm", 1, faults("iscsiadm")[fault])
    assert isinstance(bounded(lambda: iscsi.logout(DISK)), ZfsiloError)
    assert iscsi.has_session(DISK)


# mount


@pytest.mark.parametrize("fault", faults("mount"))
def test_mount(tools: Toolbox, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount counts when it is in mountinfo, whatever mount(8) reports."""
    present = Superblock(type="ext4", uuid="", size_bytes=0, spare_bytes=0)
    monkeypatch.setattr(mountinfo, "read", list)
    monkeypatch.setattr(mount_module, "check_unused", lambda _path, _name: None)
    monkeypatch.setattr(mount_module, "read_superblock", lambda _device: present)
    system = FakeSys(tmp_path)
    system.login(size_bytes=SIZE)
    for tool in ("mount", "umount", "e2fsck"):
        tools.add(tool, "return 0")
    tools.break_at("mount", 1, faults("mount")[fault])
    mounts = RealMounts(Quick(), Disks(system.sys, system.dev, system.run))
    path = str(tmp_path / "stage")
    Path(path).mkdir()

    def stage() -> None:
        mounts.stage(DISK, path, fs_type="ext4", options=(), readonly=False, untouched=False)

    exits_with_0 = fault in ("slow", "partial", "garbage", "nothing", "error and exit 0")
    assert isinstance(bounded(stage), ZfsiloError) or exits_with_0
    assert not mounts.is_staged(DISK, path, options=(), readonly=False)
