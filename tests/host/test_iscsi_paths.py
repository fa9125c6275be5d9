"""Several sessions as paths of one map: real record files, scripted tools, a temporary sysfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.doubles import TARGET, UID, Interrupted, chap
from tests.host.test_iscsi import DISK, LOGIN, PORTAL, Initiator
from zfsilod.host import iscsi as iscsi_module
from zfsilod.host import iscsi_paths
from zfsilod.host.device_users import described, static_users
from zfsilod.host.maps import MapDevice, wwid_of
from zfsilod.host.multipath import Multipath, reuse_line
from zfsilod.model.errors import Busy, Conflict, Unavailable
from zfsilod.model.host_facts import SessionProblem

if TYPE_CHECKING:
    from pathlib import Path

BESIDE, AWAY = "10.88.0.1:3260", "10.99.0.1:3260"
WWID = f"36001405{UID[:25]}"
ADD_PATH, ADD_MAP = "multipathd add path sda", f"multipathd add map {WWID}"
ADD_SECOND = "multipathd add path sdb"
LOGIN_BESIDE = LOGIN.replace(PORTAL, BESIDE)
LOGOUT, LOGOUT_BESIDE = (f"iscsiadm -m session -r {sid} --logout" for sid in (1, 2))
FAIL, FORGET = "multipathd disablequeueing map chosen", f"multipath -w {WWID}"
TABLE = "dmsetup table chosen"
QUEUEING = "0 2097152 multipath 1 queue_if_no_path 0 1 1 service-time 0 1 2 8:0 1 1"
REMOVE = "multipathd del path sda"
FLUSH, LEAVE = "multipath -f chosen", "dmsetup remove --deferred chosen"


class TwoPortals(Initiator):
    """An initiator with multipathd, and node records of two portals."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (self.sys.run / "multipathd.pid").write_text("4711\n")
        self.mark = self.sys.run / "zfsilo/maps" / TARGET
        self.failing = self.sys.run / "zfsilo/maps/dm-0.failing"
        self.record()
        self.record("10.88.0.1,3260,1")

    def first(self) -> Path:
        """Log in at the first portal."""
        self.sys.add_portal(1, PORTAL)
        return self.sys.login()

    def second(self, state: str = "LOGGED_IN", portal: str = BESIDE) -> Path:
        """Log in at another portal."""
        self.sys.add_portal(2, portal)
        return self.sys.login(sid=2, disk="sdb", number="8:16", state=state)

    def both(self) -> tuple[Path, Path]:
        """Have both sessions as paths of a map."""
        sessions = self.first(), self.second()
        self.join("sda")
        self.join("sdb")
        return sessions

    def join(self, disk: str) -> None:
        """Have a disk as a path of the map that a login has made."""
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        self.mark.touch()
        self.sys.join(disk)

    def makes_map(self, table: str = QUEUEING) -> None:
        """Add to the script that multipathd makes the map, with a table in the kernel."""
        self.script(ADD_PATH)
        self.script(ADD_MAP, effect=lambda: self.sys.join("sda"))
        self.script(TABLE, stdout=table)

    def third_joins(self) -> None:
        """Add to the script that a session at AWAY becomes a path of the map."""

        def log_in() -> None:
            self.sys.add_portal(3, AWAY)
            self.sys.login(sid=3, disk="sdc", number="8:32")

        self.script(LOGIN.replace(PORTAL, AWAY), effect=log_in)
        self.script("multipathd add path sdc", effect=lambda: self.sys.join("sdc"))

    def logs_out(self, command: str, session: Path, number: str) -> None:
        """Add a logout to the script."""
        self.script(command, effect=lambda: self.sys.logout(session, number=number))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoPortals:
    monkeypatch.setattr(iscsi_module, "DISK_DEADLINE_S", 0.3)
    monkeypatch.setattr(iscsi_paths, "JOIN_DEADLINE_S", 0.3)
    monkeypatch.setattr("zfsilod.host.multipath.MAKE_DEADLINE_S", 0.1)
    monkeypatch.setattr("zfsilod.host.multipath.WWIDS", str(tmp_path / "wwids"))
    monkeypatch.setattr("zfsilod.host.multipath.REMOVE_DEADLINE_S", 0.1)
    answer_at(monkeypatch, PORTAL, BESIDE)
    return TwoPortals(tmp_path)


def answer_at(monkeypatch: pytest.MonkeyPatch, *portals: str) -> None:
    """Let only these portals accept connections."""
    monkeypatch.setattr("zfsilod.host.portals.accepts_connections", portals.__contains__)


def unused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every disk be unused, and return those that were checked."""
    checked: list[str] = []
    for module in (iscsi_module, iscsi_paths):
        monkeypatch.setattr(module, "check_unused", lambda path, _name: checked.append(path))
    return checked


# A map is made at a login


def test_a_login_at_two_portals_makes_a_map(host: TwoPortals) -> None:
    host.script(LOGIN, effect=host.first)
    host.makes_map()
    host.script(LOGIN_BESIDE, effect=host.second)
    host.script(ADD_SECOND, effect=lambda: host.sys.join("sdb"))
    host.iscsi.login(DISK)
    assert not host.run.script
    assert host.iscsi.has_session(DISK)
    device = host.disks.need(DISK)
    assert isinstance(device, MapDevice)
    assert (device.path, device.paths) == (f"{host.sys.dev}/dm-0", ["sda", "sdb"])
    assert host.iscsi.problems([DISK]) == {}
    assert host.iscsi.follows(DISK, (PORTAL, BESIDE))


def test_the_map_is_made_with_the_only_portal_that_answers(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others join it later, under a mounted filesystem."""
    answer_at(monkeypatch, PORTAL)
    host.script(LOGIN, effect=host.first)
    host.makes_map()
    host.iscsi.login(DISK)
    assert host.iscsi.problems([DISK]) == {
        TARGET: SessionProblem(fault="PATH_LOST", portals=(BESIDE,))
    }
    assert host.iscsi.follows(DISK, (PORTAL, BESIDE))


def test_without_a_map_there_is_one_session(host: TwoPortals) -> None:
    host.script(LOGIN, effect=host.first)
    for _try in range(3):
        host.script(ADD_PATH)
        host.script(ADD_MAP, 1)
    host.iscsi.login(DISK)
    assert not host.run.script
    assert len(host.disks.sessions_with(TARGET)) == 1
    assert host.disks.need(DISK).name == "sda"
    assert host.iscsi.problems([DISK]) == {
        TARGET: SessionProblem(fault="ONE_PATH", portals=(PORTAL, BESIDE))
    }
    assert not host.iscsi.has_paths(DISK)


def test_a_map_that_would_not_wait_is_not_used(host: TwoPortals) -> None:
    """multipathd does not read the settings of volumes: an outage would be an error."""
    host.script(LOGIN, effect=host.first)
    host.makes_map(table=QUEUEING.replace("1 queue_if_no_path", "0"))
    host.script(FLUSH, effect=host.sys.unjoin)
    host.script(FORGET)
    host.iscsi.login(DISK)
    assert not host.run.script
    assert not host.mark.exists()
    assert host.disks.need(DISK).name == "sda"


def test_without_multipathd_nothing_is_asked(host: TwoPortals) -> None:
    (host.sys.run / "multipathd.pid").unlink()
    host.script(LOGIN, effect=host.first)
    host.iscsi.login(DISK)
    assert host.iscsi.problems([DISK])[TARGET].fault == "ONE_PATH"


def test_multipathd_decides_on_a_disk_with_one_portal(host: TwoPortals) -> None:
    """It makes a map of any disk, where it is configured so: before the disk has a user."""
    host.iscsi.remove_node(TARGET)
    host.record()
    host.script(LOGIN, effect=host.first)
    host.script(ADD_PATH, effect=lambda: host.sys.join("sda"))
    host.iscsi.login(DISK)
    assert host.disks.need(DISK).name == "dm-0"


def test_a_disk_of_one_portal_has_no_map_otherwise(host: TwoPortals) -> None:
    host.iscsi.remove_node(TARGET)
    host.record()
    host.script(LOGIN, effect=host.first)
    host.script(ADD_PATH)
    host.iscsi.login(DISK)
    assert host.iscsi.has_session(DISK)
    assert not host.mark.exists()


def test_a_map_that_is_made_later_is_not_used(host: TwoPortals) -> None:
    """By find_multipaths "greedy", of a disk that a virtual machine has open."""
    host.first()
    host.sys.join("sda")
    assert host.disks.need(DISK).name == "sda"
    assert not host.iscsi.has_paths(DISK)
    assert host.iscsi.has_session(DISK)


def test_a_disk_without_a_map_stays_as_it_is(host: TwoPortals) -> None:
    """It may be mounted: connected by an older version, or before multipathd was installed."""
    host.first()
    assert host.iscsi.has_session(DISK)
    host.iscsi.login(DISK)
    assert host.iscsi.follows(DISK, (BESIDE,)), "a live session stays"
    assert host.disks.need(DISK).name == "sda"


def test_a_worker_that_was_killed_before_the_map_has_made_nothing(host: TwoPortals) -> None:
    """Nothing uses the disk then: the map is made by the next login."""

    def dies() -> None:
        raise Interrupted

    host.script(LOGIN, effect=host.first)
    host.script(ADD_PATH)
    host.script(ADD_MAP, effect=dies)
    with pytest.raises(Interrupted):
        host.iscsi.login(DISK)
    assert not host.iscsi.has_session(DISK)
    host.makes_map()
    host.script(LOGIN_BESIDE, effect=host.second)
    host.script(ADD_SECOND, effect=lambda: host.sys.join("sdb"))
    host.iscsi.login(DISK)
    assert host.iscsi.has_session(DISK)
    assert not host.run.script


@pytest.mark.parametrize("reason", ["a user", "no multipathd"])
def test_a_disk_that_did_not_get_its_map_stays_without_one(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """The worker was killed before the map, and the disk is used since, or multipathd stopped."""
    host.first()
    host.mark.parent.mkdir(parents=True)
    host.mark.touch()
    monkeypatch.setattr(iscsi_module, "users_beside", lambda _path: ["qemu (4711)"])
    if reason == "no multipathd":
        (host.sys.run / "multipathd.pid").unlink()
    assert not host.iscsi.has_session(DISK)
    host.iscsi.login(DISK)
    assert not host.run.script
    assert host.iscsi.has_session(DISK)
    assert not host.mark.exists()


def test_a_session_that_does_not_join_the_map_ends(host: TwoPortals) -> None:
    """Its disk would be a second one with the same data."""
    first = host.first()
    host.join("sda")
    host.script(LOGIN_BESIDE, effect=host.second)
    host.script(ADD_SECOND)
    host.script(LOGOUT_BESIDE, effect=lambda: host.sys.logout(second(host), number="8:16"))
    host.iscsi.follow(DISK, (PORTAL, BESIDE))
    assert [session.folder for session in host.disks.sessions_with(TARGET)] == [str(first)]


def second(host: TwoPortals) -> Path:
    return host.sys.sys / "class/iscsi_session/session2"


def test_a_map_of_another_disk_is_a_user(host: TwoPortals) -> None:
    host.first()
    host.mark.parent.mkdir(parents=True)
    host.mark.touch()
    host.sys.join("sda", serial="f" * 32)
    assert host.disks.need(DISK).name == "sda"
    assert host.disks.joined(TARGET) is None
    (block,) = host.sys.sys.glob("class/iscsi_session/*/device/*/*/block/sda")
    (host.sys.sys / "class/block/sda").symlink_to(block)
    assert "dm-0" in static_users("sda", host.sys.sys, host.sys.sys)


def test_a_path_with_another_serial_is_a_conflict(host: TwoPortals) -> None:
    host.first()
    host.sys.login(sid=2, disk="sdb", number="8:16", serial=f"{UID[:31]}0")
    host.join("sda")
    host.join("sdb")
    with pytest.raises((Conflict, Unavailable)):
        host.disks.need(DISK)


def test_the_users_of_a_path_are_users_of_the_map(host: TwoPortals) -> None:
    host.both()
    for disk in ("sda", "sdb"):
        (block,) = host.sys.sys.glob(f"class/iscsi_session/*/device/*/*/block/{disk}")
        (host.sys.sys / "class/block" / disk).symlink_to(block)
    device = described("dm-0", host.sys.sys)
    assert device.names == {"dm-0", "sda", "sdb"}
    assert device.numbers == {"253:0", "8:0", "8:16"}
    assert static_users("dm-0", host.sys.sys, host.sys.sys) == []
    (host.sys.sys / "class/block/dm-0/holders/dm-7").mkdir(parents=True)
    assert static_users("dm-0", host.sys.sys, host.sys.sys) == ["dm-7"]


# Paths come and go


def test_a_portal_that_appears_joins_and_another_goes(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _second = host.both()
    answer_at(monkeypatch, PORTAL, BESIDE, AWAY)
    assert not host.iscsi.follows(DISK, (BESIDE, AWAY))

    host.third_joins()
    host.script(REMOVE)
    host.logs_out(LOGOUT, first, "8:0")
    host.iscsi.follow(DISK, (BESIDE, AWAY))
    assert not host.run.script
    assert host.iscsi.follows(DISK, (BESIDE, AWAY))
    assert host.disks.need(DISK).name == "dm-0"


def test_the_last_path_stays_until_another_has_joined(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.first()
    host.join("sda")
    answer_at(monkeypatch, PORTAL)
    assert host.iscsi.follows(DISK, (AWAY,)), "nothing answers there"
    host.iscsi.follow(DISK, (AWAY,))
    assert len(host.disks.sessions_with(TARGET)) == 1


def test_a_refused_login_leaves_the_other_path(host: TwoPortals) -> None:
    host.first()
    host.join("sda")
    host.script(LOGIN_BESIDE, 24)
    host.iscsi.follow(DISK, (PORTAL, BESIDE))
    assert host.iscsi.has_session(DISK)


def test_a_lost_path_is_a_problem_and_stays(host: TwoPortals) -> None:
    _first, beside = host.both()
    (beside / "state").write_text("FAILED\n")
    assert host.iscsi.problems([DISK]) == {
        TARGET: SessionProblem(fault="PATH_LOST", portals=(BESIDE,))
    }
    assert host.iscsi.has_session(DISK)
    assert not host.iscsi.is_lost(DISK)
    assert host.iscsi.follows(DISK, (PORTAL, BESIDE)), "iscsid connects it again"


def test_a_disk_that_has_lost_all_paths_gets_a_new_one(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has another address: the map keeps the I/O meanwhile."""
    first, beside = host.both()
    for session in (first, beside):
        (session / "state").write_text("FAILED\n")
    answer_at(monkeypatch, AWAY)
    assert not host.iscsi.follows(DISK, (AWAY,))

    host.third_joins()
    host.script(REMOVE)
    host.logs_out(LOGOUT, first, "8:0")
    host.script("multipathd del path sdb")
    host.logs_out(LOGOUT_BESIDE, beside, "8:16")
    host.iscsi.follow(DISK, (AWAY,))
    assert not host.run.script
    assert host.iscsi.has_session(DISK)


def test_a_follow_without_a_portal_that_answers_is_an_error(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.first()
    (first,) = host.sys.sys.glob("class/iscsi_session/session1")
    (first / "state").write_text("FAILED\n")
    host.join("sda")
    answer_at(monkeypatch, BESIDE)
    host.script(LOGIN_BESIDE, 8)
    with pytest.raises(Unavailable, match="no portal"):
        host.iscsi.follow(DISK, (BESIDE,))


def test_a_map_without_multipathd_gets_no_path_and_says_so(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that the kernel has taken out stays out: only multipathd puts it back."""
    host.both()
    (host.sys.run / "multipathd.pid").unlink()
    assert host.iscsi.problems([DISK]) == {TARGET: SessionProblem(fault="NO_MULTIPATHD")}
    answer_at(monkeypatch, PORTAL, BESIDE, AWAY)
    assert host.iscsi.follows(DISK, (PORTAL, BESIDE, AWAY)), "a session would not join"


def test_a_lost_map_is_told_from_a_lost_disk(host: TwoPortals) -> None:
    for session in host.both():
        (session / "state").write_text("FAILED\n")
    assert host.iscsi.problems([DISK]) == {TARGET: SessionProblem(fault="LOST", is_map=True)}


# The size, the wait and the secrets


def test_growth_reaches_each_path_and_the_map(host: TwoPortals) -> None:
    first, beside = host.both()
    larger = DISK.but(size_bytes=DISK.size_bytes * 2)
    assert not host.iscsi.has_size(larger)

    def grow() -> None:
        (host.sys.sys / "class/block/dm-0/size").write_text(f"{larger.size_bytes // 512}\n")

    host.script("multipathd resize map chosen", effect=grow)
    host.iscsi.rescan(larger)
    assert host.iscsi.has_size(larger)
    for session in (first, beside):
        (rescan,) = session.glob("device/target*/*/rescan")
        assert rescan.read_text() == "1"


def test_growth_ends_a_lost_path(host: TwoPortals) -> None:
    """It has the former size, and multipathd refuses paths of two sizes."""
    _first, beside = host.both()
    (beside / "state").write_text("FAILED\n")
    host.logs_out(LOGOUT_BESIDE, beside, "8:16")
    host.script("multipathd resize map chosen")
    host.iscsi.rescan(DISK)
    assert not host.run.script


def test_the_map_has_the_wait_of_its_configuration(host: TwoPortals) -> None:
    """A path is given up soon, so that another one takes its I/O."""
    sessions = host.both()
    assert not host.iscsi.has_loss_wait(DISK, 0)
    host.script("multipathd restorequeueing map chosen")
    host.iscsi.set_loss_wait(DISK, 0)
    assert {(one / "recovery_tmo").read_text() for one in sessions} == {"5"}
    assert host.iscsi.has_loss_wait(DISK, 0)
    assert host.iscsi.has_loss_wait(DISK, 7200)
    host.script(FAIL)
    host.iscsi.set_loss_wait(DISK, 5)
    assert not host.run.script
    assert not host.iscsi.has_loss_wait(DISK, 0), "also when the worker was killed then"


def test_an_unmount_restores_the_wait_that_it_found(host: TwoPortals) -> None:
    """A path down has ended the waiting before the first unmount."""
    host.both()
    joined = host.disks.joined(TARGET)
    assert joined is not None
    maps = Multipath(host.run, host.disks)
    host.script(FAIL)
    host.script("multipathd restorequeueing map chosen")
    with maps.without_queueing(joined):
        assert host.failing.exists()
    assert not host.failing.exists()
    host.script(FAIL)
    host.script(FAIL)
    maps.set_queueing(joined, on=False)
    with maps.without_queueing(joined):
        assert host.failing.exists()
    assert host.failing.exists()
    assert not host.run.script


def test_the_wait_of_a_map_ends_without_multipathd(host: TwoPortals) -> None:
    host.both()
    (host.sys.run / "multipathd.pid").unlink()
    host.script("dmsetup message chosen 0 fail_if_no_path")
    host.iscsi.set_loss_wait(DISK, 5)
    assert not host.run.script


def test_a_lost_path_ends_before_the_secrets_change(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not log in again; the next pass makes it anew with the new secrets."""
    _first, beside = host.both()
    (beside / "state").write_text("FAILED\n")
    host.logs_out(LOGOUT_BESIDE, beside, "8:16")
    changed: list[object] = []
    monkeypatch.setattr(
        "zfsilod.host.session_secrets.LiveSessionSecrets.set",
        lambda _self, chaps: changed.append(chaps),
    )
    host.iscsi.set_session_secrets({TARGET: chap(2)})
    assert not host.run.script
    assert changed == [{TARGET: chap(2)}]


# Paths down


def test_a_lost_path_is_no_disk_that_hangs(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descent would end its sessions, with data that another path can write."""
    asked: list[float] = []

    def answers(_path: str, timeout_s: float) -> bool:
        asked.append(timeout_s)
        return True

    monkeypatch.setattr(iscsi_module, "is_responsive", answers)
    host.first()
    host.iscsi.is_responsive(DISK)
    host.join("sda")
    host.iscsi.is_responsive(DISK)
    assert asked == [5, 20]


def test_a_logout_leaves_no_map_and_no_session(
    host: TwoPortals, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, beside = host.both()
    checked = unused(monkeypatch)
    host.script(FAIL)
    host.script(FLUSH, effect=host.sys.unjoin)
    host.logs_out(LOGOUT, first, "8:0")
    host.logs_out(LOGOUT_BESIDE, beside, "8:16")
    host.script(FORGET)
    host.iscsi.logout(DISK)
    assert not host.run.script
    assert checked == [f"{host.sys.dev}/dm-0"]
    assert host.disks.find(TARGET) is None
    assert not list((host.sys.run / "zfsilo/maps").glob("*"))


def test_a_map_in_use_is_not_logged_out(host: TwoPortals, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_unused(path: str, name: str) -> None:
        raise Busy(f"{name} ({path}) is in use")

    monkeypatch.setattr(iscsi_paths, "check_unused", check_unused)
    host.both()
    with pytest.raises(Busy, match="dm-0"):
        host.iscsi.logout(DISK)


def test_a_map_that_stays_is_an_error(host: TwoPortals, monkeypatch: pytest.MonkeyPatch) -> None:
    host.both()
    unused(monkeypatch)
    host.script(FAIL)
    host.run.script += [(FLUSH, 1, "", "")] * 50  # until the deadline
    with pytest.raises(Unavailable, match="was not removed"):
        host.iscsi.logout(DISK)
    assert len(host.disks.sessions_with(TARGET)) == 2


def test_a_forced_logout_ends_the_queueing_first(host: TwoPortals) -> None:
    """The map is mounted: it goes when its last user closes it.

    multipathd lets I/O wait again while it removes the first path, so the queueing ends once more.
    """
    first, beside = host.both()
    host.script(FAIL)
    host.logs_out(LOGOUT, first, "8:0")
    host.logs_out(LOGOUT_BESIDE, beside, "8:16")
    host.script(FAIL)
    host.script(LEAVE)
    host.script(FORGET)
    host.iscsi.drop(DISK)
    assert not host.run.script
    assert not host.iscsi.has_any_session(DISK)
    joined = host.disks.find(TARGET)
    assert joined is not None, "its mounts can be told from those of others"
    assert joined.name == "dm-0"


def test_a_connect_uses_the_line_that_a_disconnect_has_left(tmp_path: Path) -> None:
    """`multipath -w` makes a comment of it, and multipathd would append another one."""
    other = f"# Valid WWIDs:\n/{WWID}0/\n#{WWID}0/\n"
    wwids = tmp_path / "wwids"
    reuse_line(str(wwids), WWID)
    assert not wwids.exists()
    for line in (f"#{WWID}/\n", f"/{WWID}/\n"):
        wwids.write_text(f"{other}{line}{other}")
        reuse_line(str(wwids), WWID)
        assert wwids.read_text() == f"{other}/{WWID}/\n{other}"
    wwids.write_text(other)
    reuse_line(str(wwids), WWID)
    assert wwids.read_text() == other


def test_the_wwid_is_that_of_the_target_of_the_kernel() -> None:
    """tests/lab/test_iscsi_paths.py compares it with a real one."""
    assert wwid_of(UID) == WWID
    assert len(WWID) == 33
