"""Node records and sessions: real record files, a scripted iscsiadm, a temporary sysfs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import TARGET, UID, FakeSys, ScriptedRunner, chap
from zfsilod.host import iscsi as iscsi_module
from zfsilod.host import kernel_session
from zfsilod.host.disks import Disks
from zfsilod.host.iscsi import RealIscsi, host_nqn, initiator_name
from zfsilod.host.node_records import Nodes
from zfsilod.model.chap import Chap
from zfsilod.model.errors import (
    Busy,
    CommandFailed,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    ZfsiloError,
)
from zfsilod.model.host_facts import Disk, SessionProblem
from zfsilod.model.names import portal_parts

if TYPE_CHECKING:
    from collections.abc import Callable

PORTAL = "10.77.0.1:3260"
DISK = Disk(target=TARGET, serial=UID, size_bytes=64 << 20)
NEW = f"iscsiadm -m node -T {TARGET} -p {PORTAL},1 -o new"
LOGIN = f"iscsiadm -m node -T {TARGET} -p {PORTAL} --login"
LOGOUT = "iscsiadm -m session -r 1 --logout"
RECORD = """\
# BEGIN RECORD 2.1.11
node.name = {target}
node.tpgt = 1
node.startup = automatic
iface.iscsi_ifacename = default
node.session.initial_login_retry_max = 8
node.session.auth.authmethod = None
node.session.auth.chap_algs = MD5
node.session.timeo.replacement_timeout = 5
node.conn[0].address = 10.77.0.1
node.conn[0].startup = manual
# END RECORD
"""


class Initiator:
    """An initiator in a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root / "iscsi"
        (self.root / "nodes").mkdir(parents=True)
        (self.root / "static").mkdir()
        self.sys = FakeSys(root)
        self.database_lock = root / "lock.write"
        self.nodes = Nodes((root / "other", self.root), self.database_lock)
        self.run = ScriptedRunner()
        self.disks = Disks(self.sys.sys, self.sys.dev, self.sys.run)
        self.iscsi = RealIscsi(self.run, self.disks, self.nodes, root / "host.lock")

    def record(self, portal: str = "10.77.0.1,3260,1", text: str = RECORD) -> Path:
        """Write a record as `iscsiadm -o new` does."""
        file = self.root / "nodes" / TARGET / portal / "default"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(target=TARGET))
        link = self.root / "static" / f"{TARGET},{portal},default"
        link.unlink(missing_ok=True)
        link.symlink_to(file.parent)
        return file

    def script(
        self, command: str, rc: int = 0, *, effect: Callable[[], object] = int, stdout: str = ""
    ) -> None:
        """Add a command with its effect to the script."""
        self.run.script.append((command, rc, stdout, ""))
        self.run.effects[command] = effect


@pytest.fixture
def initiator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Initiator:
    monkeypatch.setattr(iscsi_module, "DISK_DEADLINE_S", 0.3)
    monkeypatch.setattr("zfsilod.host.logins.LOGOUT_DEADLINE_S", 0.1)
    return Initiator(tmp_path)


# Records


def test_a_record_is_made_by_iscsiadm_and_completed_in_the_file(initiator: Initiator) -> None:
    initiator.script(NEW, effect=initiator.record)
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())
    (file,) = map(Path, initiator.nodes.files(TARGET))
    text = file.read_text()
    assert text.startswith("# BEGIN RECORD 2.1.11\nnode.name = ")
    assert text.endswith("\n# END RECORD\n")
    assert "node.startup = manual\n" in text
    assert "node.session.auth.password_in = target-1\n" in text
    assert text.count("authmethod = ") == 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (initiator.root / ".zfsilo-record").exists()


def test_secrets_and_portals_are_compared(initiator: Initiator) -> None:
    initiator.record()
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(2))
    assert not initiator.iscsi.has_node(TARGET, (PORTAL, "10.77.0.9:3260"), chap=chap())
    assert not initiator.iscsi.has_node(TARGET, (), chap=chap())
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(2))
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(2))


@pytest.mark.parametrize("text", ["", RECORD[:200], RECORD.rsplit("\n", 2)[0]])
def test_a_torn_record_is_made_again(text: str, initiator: Initiator) -> None:
    file = initiator.record(text=text)
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())
    initiator.script(NEW, effect=initiator.record)
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())
    assert file.exists()


def test_the_record_of_a_former_portal_is_removed(initiator: Initiator) -> None:
    initiator.record("10.77.0.9,3260,1")
    initiator.script(NEW, effect=initiator.record)
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())


def test_the_older_layout_and_ipv6_are_read(initiator: Initiator) -> None:
    old = initiator.root / "nodes" / TARGET / "fd00::1,3260"
    old.parent.mkdir()
    old.write_text(RECORD)
    assert initiator.nodes.files(TARGET) == {str(old): "[fd00::1]:3260"}
    initiator.iscsi.add_node(TARGET, ("[fd00::1]:3260",), chap=chap())
    assert initiator.iscsi.has_node(TARGET, ("[fd00::1]:3260",), chap=chap())


def test_nothing_is_left_of_a_node(initiator: Initiator) -> None:
    file = initiator.record()
    other = initiator.root / "static" / "iqn.2026-01.org.zfsilo:give:other,10.77.0.1,3260,1,default"
    other.symlink_to("/nowhere")
    for half in ((), (file.unlink,), (file.unlink, file.parent.rmdir)):
        initiator.record()
        for removal in half:
            removal()
        initiator.iscsi.remove_node(TARGET)
        assert not list((initiator.root / "nodes").iterdir())
        assert list((initiator.root / "static").iterdir()) == [other]
    initiator.iscsi.remove_node(TARGET)


def test_a_record_of_zfsilo_is_marked_with_its_server(initiator: Initiator) -> None:
    initiator.script(NEW, effect=initiator.record)
    assert initiator.iscsi.owner(TARGET) is None
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(), server="give")
    assert initiator.iscsi.owner(TARGET) == "give"
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server="give")
    for name in ("archive", "giv"):
        with pytest.raises(Conflict, match="belongs to server give"):
            initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server=name)
        with pytest.raises(Conflict, match="belongs to server give"):
            initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(2), server=name)
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server="give")
    initiator.iscsi.remove_node(TARGET)
    assert initiator.iscsi.owner(TARGET) is None


def test_a_record_of_an_administrator_is_not_overwritten(initiator: Initiator) -> None:
    file = initiator.record()
    before = file.read_text()
    assert initiator.iscsi.owner(TARGET) == ""
    with pytest.raises(Conflict, match="was not made by zfsilo"):
        initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(), server="give")
    assert file.read_text() == before
    file.unlink()
    file.parent.rmdir()
    initiator.sys.login()
    assert initiator.iscsi.owner(TARGET) == ""


def test_a_record_of_version_0_1_0_has_no_mark(initiator: Initiator) -> None:
    initiator.record()
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())  # as 0.1.0 did
    assert initiator.iscsi.owner(TARGET) == ""
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server="give")
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(2), server="give")
    assert initiator.iscsi.owner(TARGET) == "give"


def test_a_killed_worker_leaves_a_mark_and_no_record(initiator: Initiator) -> None:
    initiator.nodes.set_mark(TARGET, "give")
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server="give")
    initiator.record()  # half made: without the settings of zfsilo
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), server="give")
    initiator.iscsi.remove_node(TARGET)
    initiator.nodes.set_mark(TARGET, "give")
    initiator.iscsi.remove_node(TARGET)
    assert initiator.iscsi.owner(TARGET) is None


def test_a_record_in_use_stays(initiator: Initiator) -> None:
    file = initiator.record()
    initiator.sys.login()
    with pytest.raises(Busy, match="log out first"):
        initiator.iscsi.remove_node(TARGET)
    assert file.exists()


def test_the_lock_of_a_killed_iscsiadm_is_removed(
    initiator: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfsilod.host.node_records.STALE_S", 0.3)
    initiator.nodes.remove_stale_lock()
    initiator.database_lock.touch()
    started = time.monotonic()
    initiator.nodes.remove_stale_lock()
    assert 0.2 < time.monotonic() - started < 2
    assert not initiator.database_lock.exists()


@pytest.mark.parametrize("leap_s", [8 * 86400, -8 * 86400])
def test_a_lock_in_use_stays_when_the_clock_leaps(
    initiator: Initiator, monkeypatch: pytest.MonkeyPatch, leap_s: int
) -> None:
    """It was judged by its age: a leap forwards removed it, one backwards waited for days."""
    monkeypatch.setattr("zfsilod.host.node_records.STALE_S", 1.0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + leap_s)
    initiator.database_lock.touch()
    holder = threading.Timer(0.3, initiator.database_lock.unlink)
    holder.start()
    started = time.monotonic()
    initiator.nodes.remove_stale_lock()
    assert 0.2 < time.monotonic() - started < 5
    holder.join()
    assert not initiator.database_lock.exists()


def test_values_that_would_add_lines_are_refused(initiator: Initiator) -> None:
    evil = Chap(
        username="u",
        password="p\nnode.startup = automatic",
        mutual_username="m",
        mutual_password="n",
    )
    initiator.record()
    with pytest.raises(InvalidArgument):
        initiator.iscsi.add_node(TARGET, (PORTAL,), chap=evil)
    for target in ("../x", "iqn.2026-01.a:b/../c"):
        with pytest.raises(InvalidArgument):
            initiator.iscsi.add_node(target, (PORTAL,), chap=chap())
        with pytest.raises(InvalidArgument):
            initiator.iscsi.remove_node(target)


@pytest.mark.parametrize(
    "portal", ["", "x", "10.0.0.1", "-x:1", "a b:1", "[::1]", "h:123456", "h:1\n"]
)
def test_invalid_portals(portal: str) -> None:
    with pytest.raises(InvalidArgument):
        portal_parts(portal)


def test_portals() -> None:
    assert portal_parts(PORTAL) == ("10.77.0.1", 3260)
    assert portal_parts("[fd00::1]:860") == ("fd00::1", 860)


# Sessions


def test_login_waits_for_the_disk(initiator: Initiator) -> None:
    initiator.record()
    initiator.script(LOGIN, effect=initiator.sys.login)
    assert not initiator.iscsi.has_session(DISK)
    initiator.iscsi.login(DISK)
    assert initiator.iscsi.has_session(DISK)
    device = initiator.disks.find(TARGET)
    assert device is not None
    assert device.path == f"{initiator.sys.dev}/sda"
    assert initiator.iscsi.sessions("iqn.2026-01.org.zfsilo") == [TARGET]
    initiator.iscsi.login(DISK)


@pytest.mark.parametrize(
    ("rc", "error", "message"),
    [
        (24, PermissionDenied, "refused the CHAP secrets"),
        (19, PermissionDenied, "mutual CHAP"),
        (8, Unavailable, "code 8"),
        (20, FailedPrecondition, "iscsid.socket"),
        (21, FailedPrecondition, "no node record"),
    ],
)
def test_login_refused(
    rc: int, error: type[ZfsiloError], message: str, initiator: Initiator
) -> None:
    initiator.record()
    initiator.script(LOGIN, rc)
    with pytest.raises(error, match=message) as caught:
        initiator.iscsi.login(DISK)
    assert type(caught.value) is error


@pytest.mark.parametrize("answer", [8, 19, 24], ids=["away", "another server", "refused"])
def test_login_takes_the_first_portal_that_lets_it_in(answer: int, initiator: Initiator) -> None:
    """In the network of this client an address of the server may be that of another one."""
    first = initiator.record("10.77.0.9,3260,1")
    os.utime(first, (1, 1))
    initiator.record()
    initiator.script(LOGIN.replace("0.1:", "0.9:"), answer)
    initiator.script(LOGIN, effect=initiator.sys.login)
    initiator.iscsi.login(DISK)
    assert not initiator.run.script


def test_a_refused_login_is_told_before_a_portal_that_is_away(initiator: Initiator) -> None:
    first = initiator.record("10.77.0.9,3260,1")
    os.utime(first, (1, 1))
    initiator.record()
    initiator.script(LOGIN.replace("0.1:", "0.9:"), 24)
    initiator.script(LOGIN, 8)
    with pytest.raises(PermissionDenied, match=r"0\.9:3260"):
        initiator.iscsi.login(DISK)


def test_login_without_a_record(initiator: Initiator) -> None:
    with pytest.raises(FailedPrecondition, match="no node record"):
        initiator.iscsi.login(DISK)


def test_login_without_a_disk(initiator: Initiator) -> None:
    initiator.record()
    initiator.script(LOGIN)
    with pytest.raises(Unavailable, match="did not appear"):
        initiator.iscsi.login(DISK)


def test_another_disk_is_a_conflict(initiator: Initiator) -> None:
    session = initiator.sys.login(serial="f" * 32)
    with pytest.raises(Conflict, match=f"serial {'f' * 32}, not {UID}"):
        initiator.iscsi.has_session(DISK)
    with pytest.raises(Conflict):
        initiator.iscsi.login(DISK)
    initiator.sys.logout(session)
    initiator.sys.login(size_bytes=32 << 20)
    with pytest.raises(Conflict, match="33554432 bytes, not 67108864"):
        initiator.iscsi.login(DISK)


def test_a_disk_that_grew_meanwhile_is_taken(initiator: Initiator) -> None:
    initiator.sys.login(size_bytes=128 << 20)
    initiator.iscsi.login(DISK)


def test_a_lost_session_is_unavailable(initiator: Initiator) -> None:
    initiator.sys.login(state="FAILED")
    with pytest.raises(Unavailable, match="recovered"):
        initiator.iscsi.has_session(DISK)


def test_the_problems_of_sessions(initiator: Initiator) -> None:
    assert initiator.iscsi.problems([DISK]) == {TARGET: SessionProblem(fault="NO_SESSION")}
    session = initiator.sys.login()
    assert initiator.iscsi.problems([DISK]) == {}
    assert initiator.iscsi.problems([DISK.but(serial="f" * 32)]) == {
        TARGET: SessionProblem(fault="NO_DISK")
    }
    for state in ("FAILED", "FREE"):
        (session / "state").write_text(f"{state}\n")
        assert initiator.iscsi.problems([DISK]) == {TARGET: SessionProblem(fault="LOST")}


def test_udev_is_waited_for(initiator: Initiator) -> None:
    (initiator.sys.run / "udev/data").mkdir(parents=True)
    (initiator.sys.run / "udev/control").touch()
    initiator.sys.login()
    assert not initiator.iscsi.has_session(DISK)
    (initiator.sys.run / "udev/data/b8:0").touch()
    assert initiator.iscsi.has_session(DISK)


def test_logout_ends_when_the_session_has_left_sysfs(initiator: Initiator) -> None:
    initiator.iscsi.logout(DISK)
    session = initiator.sys.login()
    initiator.script(LOGOUT, effect=lambda: initiator.sys.logout(session))
    initiator.iscsi.logout(DISK)
    assert not initiator.iscsi.sessions()


def test_logout_is_repeated_for_an_iscsid_that_was_restarted(initiator: Initiator) -> None:
    session = initiator.sys.login()
    ends: list[Callable[[], object]] = [int, lambda: initiator.sys.logout(session)]
    initiator.script(LOGOUT, 2)
    initiator.script(LOGOUT, effect=lambda: ends.pop(0)())
    initiator.iscsi.logout(DISK)
    assert not initiator.run.script


def test_a_logout_that_did_nothing_is_an_error(initiator: Initiator) -> None:
    initiator.sys.login()
    initiator.run.script += [(LOGOUT, 0, "", "")] * 4
    with pytest.raises(Unavailable, match="did not end"):
        initiator.iscsi.logout(DISK)
    initiator.run.script.append((LOGOUT, 10, "", "iscsiadm: logout failed"))
    with pytest.raises(CommandFailed):
        initiator.iscsi.logout(DISK)


def test_a_disk_in_use_is_not_logged_out(
    initiator: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_unused(path: Path, name: str) -> None:
        raise Busy(f"{name} ({path}) is in use")

    monkeypatch.setattr(iscsi_module, "check_unused", check_unused)
    session = initiator.sys.login()
    with pytest.raises(Busy):
        initiator.iscsi.logout(DISK)
    (session / "state").write_text("FAILED\n")  # lost: its logout ends hanging I/O
    initiator.script(LOGOUT, effect=lambda: initiator.sys.logout(session))
    initiator.iscsi.logout(DISK)


def test_other_targets_are_never_touched(initiator: Initiator) -> None:
    initiator.sys.login(target=f"{TARGET}0", sid=2, disk="sdb", number="8:16")
    initiator.iscsi.logout(DISK)
    assert not initiator.iscsi.has_session(DISK)
    assert initiator.iscsi.sessions() == [f"{TARGET}0"]


def test_size_and_rescan(initiator: Initiator) -> None:
    assert not initiator.iscsi.has_size(DISK)
    with pytest.raises(FailedPrecondition, match="connect the volume"):
        initiator.iscsi.rescan(DISK)
    session = initiator.sys.login(size_bytes=32 << 20)
    assert not initiator.iscsi.has_size(DISK)
    with pytest.raises(Unavailable, match="33554432"):
        initiator.iscsi.rescan(DISK)
    (rescan,) = session.glob("device/target*/*/rescan")
    assert rescan.read_text() == "1"
    (size,) = session.glob("device/target*/*/block/*/size")
    size.write_text(f"{DISK.size_bytes // 512}\n")
    assert initiator.iscsi.has_size(DISK)
    initiator.iscsi.rescan(DISK)


def test_initiator_name(tmp_path: Path) -> None:
    path = tmp_path / "initiatorname.iscsi"
    assert initiator_name(path) == ""
    path.write_text("## made by a tool\nInitiatorName=iqn.2024-01.lab.take:host\n")
    assert initiator_name(path) == "iqn.2024-01.lab.take:host"
    path.write_text(
        "InitiatorName=\n InitiatorName= iqn.2024-01.a:b \nInitiatorName=iqn.2024-01.c:d\n"
    )
    assert initiator_name(path) == "iqn.2024-01.a:b", "iscsid uses the first that is not empty"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"# Rechner von J\xfcrgen\nInitiatorName=iqn.2024-01.a:b\n", "iqn.2024-01.a:b"),
        ("InitiatorName=iqn.2024-01.a:b\n".encode("utf-16"), ""),
        (b"\xef\xbb\xbfInitiatorName=iqn.2024-01.a:b\n", ""),
        (b"\xef\xbb\xbf# made by\nInitiatorName=iqn.2024-01.a:b\n", "iqn.2024-01.a:b"),
    ],
    ids=["a comment in latin-1", "UTF-16", "a mark of UTF-8", "a mark before a comment"],
)
def test_a_name_of_iscsi_stops_no_start(content: bytes, name: str, tmp_path: Path) -> None:
    """What iscsid does not find is none."""
    path = tmp_path / "initiatorname.iscsi"
    path.write_bytes(content)
    assert initiator_name(path) == name


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (
            b"nqn.2014-08.org.nvmexpress:uuid:4C4C4544-AA\r\n",
            "nqn.2014-08.org.nvmexpress:uuid:4C4C4544-AA",
        ),
        (b" nqn.2014-08.org.example:a \nnqn.2014-08.org.example:b\n", "nqn.2014-08.org.example:a"),
        (b"\xff\xfen\x00q\x00n\x00", ""),
        (b"# none yet\n", ""),
        (b"", ""),
    ],
    ids=["line end of Windows", "two lines", "another encoding", "a comment", "empty"],
)
def test_a_name_of_nvme_stops_no_start(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostnqn"
    assert host_nqn(path) == ""
    path.write_bytes(content)
    assert host_nqn(path) == name


# How long I/O waits for a lost session


@pytest.mark.parametrize(
    ("seconds", "recorded", "shown"), [(0, "-1", "off"), (600, "600", "600"), (120, "120", "120")]
)
def test_the_wait_for_a_lost_session_is_in_the_record_and_in_the_session(
    seconds: int, recorded: str, shown: str, initiator: Initiator
) -> None:
    file = initiator.record()
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap(), lost_session_s=seconds)
    assert f"node.session.timeo.replacement_timeout = {recorded}\n" in file.read_text()
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), lost_session_s=seconds)
    assert not initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap(), lost_session_s=7200)
    assert not initiator.iscsi.has_loss_wait(DISK, seconds)
    session = initiator.sys.login()
    initiator.iscsi.set_loss_wait(DISK, seconds)
    assert (session / "recovery_tmo").read_text().strip() == shown
    (session / "recovery_tmo").write_text(f"{shown}\n")  # as the kernel shows it
    assert initiator.iscsi.has_loss_wait(DISK, seconds)
    assert not initiator.iscsi.has_loss_wait(DISK, 7200)


def test_the_wait_for_a_session_that_is_lost_already_stays(initiator: Initiator) -> None:
    session = initiator.sys.login(state="FAILED")
    initiator.iscsi.set_loss_wait(DISK, 0)  # the kernel would answer EBUSY
    assert (session / "recovery_tmo").read_text() == "120\n"
    assert not initiator.iscsi.has_loss_wait(DISK, 0)


@pytest.mark.parametrize("call", ["logout", "drop"])
def test_a_logout_first_ends_the_wait(call: str, initiator: Initiator) -> None:
    session = initiator.sys.login()
    initiator.iscsi.set_loss_wait(DISK, 0)
    waits = []

    def ends() -> None:
        waits.append((session / "recovery_tmo").read_text())
        initiator.sys.logout(session)

    initiator.script(LOGOUT, effect=ends)
    getattr(initiator.iscsi, call)(DISK)
    assert waits == ["5"]


@pytest.mark.parametrize(("before", "during"), [("off", "30"), ("7200", "30"), ("5", "5")])
def test_an_unmount_does_not_wait_for_a_session_that_is_lost_meanwhile(
    before: str, during: str, initiator: Initiator
) -> None:
    wait = initiator.sys.login() / "recovery_tmo"
    wait.write_text(f"{before}\n")
    with initiator.disks.hurried(TARGET):
        assert wait.read_text().strip() == during
    assert wait.read_text().strip() == before


# Settings of iscsid.conf


def test_a_forced_logout_removes_the_disk_that_iscsid_does_not_release(
    initiator: Initiator,
) -> None:
    """With iscsid.safe_logout = Yes iscsiadm exits with 28 while the disk is mounted."""
    session = initiator.sys.login(state="FAILED")
    delete = session / "device/target1:0:0/1:0:0:0/delete"
    removed = []

    def refuses() -> None:
        initiator.script(LOGOUT, effect=ends)

    def ends() -> None:
        removed.append(delete.read_text())
        initiator.sys.logout(session)

    initiator.script(LOGOUT, 28, effect=refuses)
    initiator.iscsi.drop(DISK)
    assert removed == ["1"]
    assert not initiator.iscsi.sessions()


@pytest.mark.parametrize("code", [9, 32])
@pytest.mark.parametrize("forced", [False, True])
def test_the_kernel_ends_a_session_that_iscsid_has_not_reconnected(
    initiator: Initiator, monkeypatch: pytest.MonkeyPatch, code: int, *, forced: bool
) -> None:
    """iscsid was restarted while the server is away: it refuses a logout until it is back."""
    session = initiator.sys.login(state="FAILED")
    monkeypatch.setattr(
        kernel_session, "end_session", lambda *_arguments: initiator.sys.logout(session)
    )
    initiator.script(LOGOUT, code)
    (initiator.iscsi.drop if forced else initiator.iscsi.logout)(DISK)
    assert not initiator.iscsi.sessions()


def test_a_session_that_has_come_back_is_logged_out_of(
    initiator: Initiator, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = initiator.sys.login(state="LOGGED_IN")
    monkeypatch.setattr(kernel_session, "end_session", pytest.fail)

    def refuses() -> None:
        initiator.script(LOGOUT, effect=lambda: initiator.sys.logout(session))

    initiator.script(LOGOUT, 32, effect=refuses)
    initiator.iscsi.drop(DISK)
    assert not initiator.iscsi.sessions()


def test_a_logout_that_iscsid_refuses_is_reported(initiator: Initiator) -> None:
    """Without force the disk of a session stays."""
    session = initiator.sys.login(state="FAILED")
    initiator.script(LOGOUT, 28)
    with pytest.raises(CommandFailed, match="exited with 28"):
        initiator.iscsi.logout(DISK)
    assert (session / "device/target1:0:0/1:0:0:0/delete").read_text() == ""


def test_a_session_is_never_given_up(initiator: Initiator) -> None:
    file = initiator.record(
        text=RECORD.replace("node.tpgt", "node.session.reopen_max = 3\nnode.tpgt")
    )
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert "node.session.reopen_max = 0\n" in file.read_text()
    older = initiator.record()
    initiator.iscsi.add_node(TARGET, (PORTAL,), chap=chap())
    assert "reopen_max" not in older.read_text()
    assert initiator.iscsi.has_node(TARGET, (PORTAL,), chap=chap())
