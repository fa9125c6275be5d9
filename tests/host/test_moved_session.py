"""A lost session that moves to another portal: a temporary sysfs, and a fake kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, cast

import pytest

from tests.host.doubles import TARGET, FakeSys, NetlinkKernel, ScriptedRunner
from zfsilod.host import moved_session as module
from zfsilod.host.disks import Disks
from zfsilod.host.moved_session import MovedSession
from zfsilod.model.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from zfsilod.host.node_records import Nodes

FORMER, PRESENT, OTHER = "10.0.0.1:3260", "10.0.0.9:3260", "[fd00::9]:3261"
RESTART = "systemctl restart --job-mode=ignore-dependencies iscsid.service"
BIND, SET, STOP = 15, 16, 18
DESCRIPTOR = 11


class MovingKernel(NetlinkKernel):
    """Takes parameters of a bound connection only."""

    def __init__(self, sys: Path) -> None:
        super().__init__()
        self.folder = sys / "class/iscsi_connection/connection1:0"
        self.bound = False
        self.refuses = 0  # calls of SET that fail first

    def answer(self, kind: int, arguments: bytes) -> int:
        if kind == BIND:
            assert struct.unpack_from("=QI", arguments) == (DESCRIPTOR, 1)
            self.bound = True
        elif kind == STOP:
            assert struct.unpack_from("=QI", arguments) == (0, 3)
            self.bound = False
        elif not self.bound or self.refuses:
            self.refuses -= 1
            return -errno.ENOTCONN
        else:
            parameter, size = struct.unpack_from("=II", arguments)
            value = arguments[32:][: size - 1]
            name = {17: "persistent_address", 18: "persistent_port"}[parameter]
            (self.folder / name).write_bytes(value + b"\n")
        return 0


class Portal:
    """A connection to a portal."""

    def fileno(self) -> int:
        return DESCRIPTOR

    def close(self) -> None:
        """Do nothing; a socket has this method."""


class Records:
    """The node records of the target."""

    def __init__(self, *portals: str) -> None:
        self.portals = portals

    def files(self, _target: str) -> dict[str, str]:
        return {f"file {portal}": portal for portal in self.portals}


class MovingHost:
    """A host with one lost session, whose iscsid returns it from the portals that answer."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = FakeSys(tmp_path)
        self.session = fake.login(state="FAILED")
        connection = fake.sys / "class/iscsi_connection/connection1:0"
        connection.mkdir(parents=True)
        (connection / "persistent_address").write_text("10.0.0.1\n")
        (connection / "persistent_port").write_text("3260\n")
        transport = fake.sys / "class/iscsi_transport/tcp"
        transport.mkdir(parents=True)
        (transport / "handle").write_text(f"{MovingKernel.HANDLE}\n")
        self.kernel = MovingKernel(fake.sys)
        self.answering = {PRESENT, OTHER}
        self.welcome = {PRESENT, OTHER}  # portals at which a login succeeds
        self.disks = Disks(fake.sys, fake.dev, fake.run)
        self.run = ScriptedRunner()
        self.run.effects[RESTART] = self.restart
        self.lock = tmp_path / "lock"
        monkeypatch.setattr(module, "RECONNECT_S", 0.05)

    def restart(self) -> None:
        session = self.disks.session(TARGET)
        assert session is not None
        if self.disks.portal(session) in self.welcome:
            (self.session / "state").write_text("LOGGED_IN\n")

    def connect(self, portal: str) -> socket.socket:
        if portal not in self.answering:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        return cast("socket.socket", Portal())

    def follow(self, *portals: str, restarts: int = 0) -> str:
        """Follow the records with these restarts of iscsid; return the portal of the session."""
        self.run.script = [(RESTART, 0, "", "")] * restarts
        MovedSession(
            self.run,
            self.disks,
            cast("Nodes", Records(*portals)),
            self.lock,
            kernel=lambda: cast("socket.socket", self.kernel),
            portal=self.connect,
        ).follow(TARGET)
        assert self.run.script == []
        session = self.disks.session(TARGET)
        assert session is not None
        return self.disks.portal(session)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MovingHost:
    return MovingHost(tmp_path, monkeypatch)


def test_the_kernel_gets_the_portal_and_iscsid_reads_it(host: MovingHost) -> None:
    assert host.follow(PRESENT, restarts=1) == PRESENT
    assert host.kernel.calls == [BIND, SET, SET, STOP]


def test_a_portal_that_does_not_answer_changes_nothing(host: MovingHost) -> None:
    host.answering = set()
    with pytest.raises(Unavailable, match="did not come back") as refused:
        host.follow(PRESENT)
    assert refused.value.reason == "SESSION_RECOVERY"
    assert host.kernel.calls == []


def test_the_next_portal_is_tried(host: MovingHost) -> None:
    host.welcome = {OTHER}
    assert host.follow(PRESENT, OTHER, restarts=2) == OTHER


def test_iscsid_may_stop_the_connection_in_between(host: MovingHost) -> None:
    host.kernel.refuses = 2
    assert host.follow(PRESENT, restarts=1) == PRESENT
    assert host.kernel.calls.count(BIND) == 3


def test_a_kernel_that_refuses_is_an_error(host: MovingHost) -> None:
    host.kernel.refuses = 99
    with pytest.raises(Unavailable, match="the kernel refused the portal"):
        host.follow(PRESENT)


def test_without_a_record_there_is_nothing_to_follow(host: MovingHost) -> None:
    with pytest.raises(FailedPrecondition):
        host.follow()
