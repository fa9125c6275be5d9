"""The limits of I/O, with control groups and kernel threads in a temporary directory."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import Interrupted, ScriptedRunner
from zfsilod.host.configfs import Configfs
from zfsilod.host.io_limits import (
    GROUP,
    KEEPER,
    UNIT,
    UNIT_GROUP,
    RealIoLimits,
    is_of_session,
    line,
    parse,
)
from zfsilod.model.errors import CommandFailed, FailedPrecondition
from zfsilod.model.host_facts import NO_LIMITS, IoLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA, OTHER = "zfsilo-data", "zfsilo-other"
NUMBERS = {DATA: "230:0", OTHER: "230:16"}
LIMITS = IoLimits(read_iops=500, write_bytes=2 << 20)
SESSION, NEW_SESSION = ("416", "415"), ("452", "451")
KEEPING, KTHREADD, SHELL = "700", "2", "900"
START, STOP = (f"systemctl {verb} {UNIT}" for verb in ("start", "stop"))
KERNEL, USER = 0x00208040, 0x00400100  # flags of proc_pid_stat(5)


class FakeGroups(Configfs):
    """Control groups with the rules of cgroup v2 that matter here.

    `calls` is the number of changes that succeed; the next one raises Interrupted.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, "the kernel's control groups")
        self.folder = root
        self.calls: int | None = None
        self.gone: set[str] = set()  # threads that end before they are moved
        self.has_io = True
        self.fill(root)

    def fill(self, folder: Path) -> None:
        """Make the files of a new group."""
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            (folder / name).write_text("")
        (folder / "cgroup.controllers").write_text("io\n" if self.has_io else "cpu\n")

    def count(self) -> None:
        """Count a change."""
        if self.calls is not None:
            if self.calls == 0:
                raise Interrupted
            self.calls -= 1

    def members(self, group: str = ".") -> set[str]:
        """Return the processes of a group."""
        return set((self.folder / group / "cgroup.procs").read_text().split())

    def put(self, group: str, *processes: str) -> None:
        """Move processes to a group."""
        for file in [*self.folder.rglob("cgroup.procs")]:
            left = set(file.read_text().split()) - {*processes}
            wanted = left | set(processes) if file.parent == self.folder / group else left
            file.write_text("".join(f"{process}\n" for process in sorted(wanted)))

    def read(self, path: str) -> str | None:
        """Return an attribute."""
        if path.endswith("/cgroup.events") and self.has(path.rpartition("/")[0]):
            populated = bool(self.members(path.rpartition("/")[0]))
            return f"populated {int(populated)}\nfrozen 0"
        return super().read(path)

    def write(self, path: str, value: str) -> None:
        """Set an attribute."""
        self.count()
        group, _slash, name = path.rpartition("/")
        if name == "cgroup.procs":
            if value in self.gone:
                raise CommandFailed("no such process", errno="ESRCH")
            self.put(group, value)
        elif name == "cgroup.subtree_control":
            assert value == "-io" or not self.members(group), "EBUSY: the group has processes"
            (self.folder / path).write_text(value.replace("-io", "").removeprefix("+"))
        else:
            self._limit(self.folder / path, value)

    def _limit(self, file: Path, text: str) -> None:
        number, limits = parse(text)
        lines = dict(map(parse, file.read_text().splitlines())) | {number: limits}
        lines = {one: its for one, its in lines.items() if its}
        file.write_text("".join(f"{line(*one)}\n" for one in lines.items()))

    def make(self, path: str) -> None:
        """Make a group."""
        self.count()
        folder = self.folder / path
        if not folder.exists():
            folder.mkdir()
            self.fill(folder)
            if (folder.parent / "cgroup.subtree_control").read_text() == "io":
                (folder / "io.max").write_text("")

    def remove(self, path: str) -> None:
        """Remove a group without processes and groups."""
        self.count()
        folder = self.folder / path
        if folder.exists():
            assert not self.members(path), "EBUSY: the group has processes"
            assert not [one for one in folder.iterdir() if one.is_dir()], "EBUSY: it has groups"
            shutil.rmtree(folder)


class Systemd(ScriptedRunner):
    """Starts and stops the unit, in any order."""

    def __init__(self, groups: FakeGroups) -> None:
        super().__init__()
        self.groups = groups
        self.commands: list[str] = []

    def __call__(self, argv: list[str], **how: object) -> object:  # type: ignore[override]
        """Start or stop the unit, which has its group while it has a process."""
        self.groups.count()
        command = " ".join(argv)
        self.commands.append(command)
        unit = self.groups.folder / UNIT_GROUP
        if command == START:
            if not unit.exists():
                unit.mkdir(parents=True)
                self.groups.fill(unit)
            control = (unit / "cgroup.subtree_control").read_text()
            is_running = KEEPING in self.groups.members(KEEPER) if (unit / "keeper").exists() else 0
            assert is_running or not control, "EBUSY: no process can start in the group"
            if not is_running:
                self.groups.put(UNIT_GROUP, KEEPING)
            return None
        assert command == STOP
        if unit.exists():
            self.groups.put("nowhere", KEEPING)
            if not self.groups.members(GROUP) if (unit / "volumes").exists() else True:
                shutil.rmtree(unit)
        return None


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    threads = {
        SESSION[0]: ("iscsi_trx", KERNEL),
        SESSION[1]: ("iscsi_ttx", KERNEL),
        NEW_SESSION[0]: ("iscsi_trx", KERNEL),
        NEW_SESSION[1]: ("iscsi_ttx", KERNEL),
        KTHREADD: ("kthreadd", KERNEL),
        SHELL: ("iscsi_trx", USER),  # a process chooses its name
    }
    for thread, (name, flags) in threads.items():
        (folder / thread).mkdir(parents=True)
        (folder / thread / "comm").write_text(f"{name}\n")
        (folder / thread / "stat").write_text(f"{thread} ({name}) S 2 0 0 0 -1 {flags} 0 0\n")
    return folder


@pytest.fixture
def groups(tmp_path: Path) -> FakeGroups:
    (tmp_path / "cgroup").mkdir()
    fake = FakeGroups(tmp_path / "cgroup")
    fake.put(".", KTHREADD, SHELL, *SESSION)
    return fake


@pytest.fixture
def systemd(groups: FakeGroups) -> Systemd:
    return Systemd(groups)


@pytest.fixture
def make(
    tmp_path: Path, proc: Path, groups: FakeGroups, systemd: Systemd
) -> Callable[..., RealIoLimits]:
    """The maker of adapters, each as in a process of its own."""
    for backstore, number in NUMBERS.items():
        folder = tmp_path / "target/core/iblock_0" / backstore
        folder.mkdir(parents=True)
        major, minor = number.split(":")
        (folder / "info").write_text(f"Status: ACTIVATED\n        Major: {major} Minor: {minor}  X")

    def made(*, surveyed: bool = False) -> RealIoLimits:
        target, lock = Configfs(tmp_path / "target"), tmp_path / "limits.lock"
        return RealIoLimits(
            systemd,
            groups,
            target,
            surveyed=surveyed,
            proc=proc,
            lock=lock,
        )

    return made


@pytest.fixture
def limits(make: Callable[..., RealIoLimits]) -> RealIoLimits:
    return make()


def test_a_limit_has_a_line_and_all_sessions(limits: RealIoLimits, groups: FakeGroups) -> None:
    assert limits.has_limits(DATA, NO_LIMITS, dataset="tank/data")
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    assert groups.read(f"{GROUP}/io.max") == "230:0 rbps=max wbps=2097152 riops=500 wiops=max"
    assert groups.members(GROUP) == {*SESSION}
    assert groups.members() == {KTHREADD, SHELL}
    assert groups.members(KEEPER) == {KEEPING}
    assert limits.has_limits(DATA, LIMITS, dataset="tank/data")
    assert not limits.has_limits(DATA, LIMITS.but(read_iops=501), dataset="tank/data")
    assert limits.has_all_sessions()


def test_the_last_limit_takes_everything_along(
    limits: RealIoLimits, groups: FakeGroups, systemd: Systemd
) -> None:
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    limits.set_limits(OTHER, LIMITS.but(write_bytes=0), dataset="tank/other")
    assert systemd.commands == [START]
    limits.set_limits(DATA, NO_LIMITS, dataset="tank/data")
    assert groups.members(GROUP) == {*SESSION}
    assert limits.has_limits(OTHER, LIMITS.but(write_bytes=0), dataset="tank/other")
    limits.set_limits(OTHER, NO_LIMITS, dataset="tank/other")
    assert not groups.has(UNIT_GROUP)
    assert groups.members() == {KTHREADD, SHELL, *SESSION}
    assert systemd.commands == [START, STOP]


def test_a_new_session_is_seen_and_taken(limits: RealIoLimits, groups: FakeGroups) -> None:
    groups.put(".", *NEW_SESSION)
    assert limits.has_all_sessions(), "without limits no session lacks them"
    limits.take_sessions()
    assert groups.members() >= {*NEW_SESSION}
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    groups.put(".", *NEW_SESSION)
    assert not limits.has_all_sessions()
    limits.take_sessions()
    assert limits.has_all_sessions()
    assert groups.members(GROUP) == {*SESSION, *NEW_SESSION}


def test_a_thread_that_ends_meanwhile_is_no_error(limits: RealIoLimits, groups: FakeGroups) -> None:
    groups.gone = {SESSION[0]}
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    assert groups.members(GROUP) == {SESSION[1]}


def test_a_kernel_without_limits_is_named(limits: RealIoLimits, groups: FakeGroups) -> None:
    groups.has_io = False
    with pytest.raises(FailedPrecondition) as refused:
        limits.set_limits(DATA, LIMITS, dataset="tank/data")
    assert refused.value.reason == "NO_IO_LIMITS"
    assert not groups.has(UNIT_GROUP)
    limits.set_limits(DATA, NO_LIMITS, dataset="tank/data")


def test_a_unit_whose_process_was_killed(
    limits: RealIoLimits, groups: FakeGroups, systemd: Systemd
) -> None:
    """systemd cannot remove a group that has threads: it limits them until the last limit goes."""
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    groups.put("nowhere", KEEPING)
    limits.set_limits(OTHER, LIMITS, dataset="tank/other")
    for backstore in NUMBERS:
        limits.set_limits(backstore, NO_LIMITS, dataset="tank/data")
    assert not groups.has(UNIT_GROUP)
    assert systemd.commands == [START, STOP]


def test_a_removal_that_was_cut_is_a_difference(
    limits: RealIoLimits, groups: FakeGroups, systemd: Systemd
) -> None:
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    groups.put("nowhere", KEEPING)
    groups.calls = 4  # the line, both threads, the group
    with pytest.raises(Interrupted):
        limits.set_limits(DATA, NO_LIMITS, dataset="tank/data")
    groups.calls = None
    assert groups.has(UNIT_GROUP)
    assert not groups.has(GROUP)
    assert not limits.has_limits(DATA, NO_LIMITS, dataset="tank/data")
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    assert groups.members(GROUP) == {*SESSION}
    assert systemd.commands == [START, START]


def test_a_survey_reads_once(make: Callable[..., RealIoLimits], groups: FakeGroups) -> None:
    make().set_limits(DATA, LIMITS, dataset="tank/data")
    surveyed = make(surveyed=True)
    assert surveyed.has_limits(DATA, LIMITS, dataset="tank/data")
    assert surveyed.has_all_sessions()
    groups.put(".", *NEW_SESSION)
    assert surveyed.has_all_sessions()
    surveyed.take_sessions()
    groups.put(".", *NEW_SESSION)
    assert not surveyed.has_all_sessions()


@pytest.mark.parametrize("before", [NO_LIMITS, LIMITS.but(read_iops=20)])
@pytest.mark.parametrize("after", [NO_LIMITS, LIMITS])
def test_a_change_that_is_killed_can_be_finished_and_reverted(
    before: IoLimits, after: IoLimits, make: Callable[..., RealIoLimits], groups: FakeGroups
) -> None:
    def change(limits: IoLimits, calls: int | None = None) -> bool:
        groups.calls = calls
        try:
            make().set_limits(DATA, limits, dataset="tank/data")
        except Interrupted:
            return False
        finally:
            groups.calls = None
        return True

    def check(limits: IoLimits) -> None:
        assert make().has_limits(DATA, limits, dataset="tank/data")
        assert groups.has(UNIT_GROUP) == bool(limits)
        assert groups.members(GROUP if limits else ".") >= {*SESSION}

    change(before)
    for calls in range(40):
        if change(after, calls):
            break
        change(after)
        check(after)
        change(before)
        change(after, calls)
        change(before)
        check(before)
    else:
        pytest.fail("it never ended")
    assert calls >= (1 if before != after else 0)


def test_a_device_without_a_backstore_is_that_of_the_zvol(
    limits: RealIoLimits, groups: FakeGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits.set_limits(DATA, LIMITS, dataset="tank/data")
    shutil.rmtree(tmp_path / "target/core/iblock_0" / DATA)
    monkeypatch.setattr("zfsilod.host.zvol_device.link", lambda _dataset: "/dev/null")
    groups.write(f"{GROUP}/io.max", line("1:3", LIMITS))
    assert limits.has_limits(DATA, LIMITS, dataset="tank/data")


def test_what_is_a_thread_of_a_session(proc: Path) -> None:
    assert is_of_session(f"{proc}/{SESSION[0]}")
    assert not is_of_session(f"{proc}/{SHELL}")
    assert not is_of_session(f"{proc}/{KTHREADD}")
    assert not is_of_session(f"{proc}/gone")


def test_a_line_there_and_back() -> None:
    assert parse(line("230:0", LIMITS)) == ("230:0", LIMITS)
    assert line("230:0", NO_LIMITS) == "230:0 rbps=max wbps=max riops=max wiops=max"
