"""The limits of I/O, with control groups and kernel threads in a temporary directory."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.host.control_groups import KEEPING, START, STOP, FakeGroups, Systemd
from tests.host.doubles import Interrupted
from zfsilod.host.configfs import Configfs
from zfsilod.host.io_limits import (
    GROUP,
    KEEPER,
    UNIT_GROUP,
    RealIoLimits,
    is_of_session,
    line,
    parse,
)
from zfsilod.model.errors import FailedPrecondition
from zfsilod.model.host_facts import NO_LIMITS, IoLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA, OTHER = "zfsilo-data", "zfsilo-other"
NUMBERS = {DATA: "230:0", OTHER: "230:16"}
LIMITS = IoLimits(read_iops=500, write_bytes=2 << 20)
SESSION, NEW_SESSION = ("416", "415"), ("452", "451")
KTHREADD, SHELL = "2", "900"
KERNEL, USER = 0x00208040, 0x00400100  # flags of proc_pid_stat(5)


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
