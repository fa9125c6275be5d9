"""A session that iscsid does not log out of: a temporary sysfs, and a fake kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, cast

import pytest

from tests.host.doubles import TARGET, FakeSys, NetlinkKernel, ScriptedRunner
from zfsilod.host.disks import Disks
from zfsilod.host.kernel_session import end_session
from zfsilod.model.errors import Unavailable

if TYPE_CHECKING:
    import socket
    from pathlib import Path

RESTART = "systemctl restart --job-mode=ignore-dependencies iscsid.service"
DESTROY_SESSION, DESTROY_CONNECTION, STOP = 12, 14, 18
STOP_CONN_TERM = 1


class EndingKernel(NetlinkKernel):
    """Destroys a session whose connection was stopped and destroyed, in this order."""

    def __init__(self, fake: FakeSys, session: Path) -> None:
        super().__init__()
        self.fake = fake
        self.session = session
        self.busy = False

    def answer(self, kind: int, arguments: bytes) -> int:
        if kind == STOP:
            assert struct.unpack_from("=QI", arguments) == (0, STOP_CONN_TERM)
        elif kind == DESTROY_SESSION and (self.busy or DESTROY_CONNECTION not in self.calls):
            return -errno.EBUSY
        elif kind == DESTROY_SESSION and self.session.exists():
            self.fake.logout(self.session)
        return 0


@pytest.fixture
def kernel(tmp_path: Path) -> EndingKernel:
    fake = FakeSys(tmp_path)
    transport = fake.sys / "class/iscsi_transport/tcp"
    transport.mkdir(parents=True)
    (transport / "handle").write_text(f"{EndingKernel.HANDLE}\n")
    return EndingKernel(fake, fake.login(state="FAILED"))


def end(kernel: EndingKernel, lock: Path) -> ScriptedRunner:
    run = ScriptedRunner((RESTART, 0, "", ""))
    disks = Disks(kernel.fake.sys, kernel.fake.dev, kernel.fake.run)
    session = disks.session(TARGET)
    assert session is not None
    end_session(run, disks, session, lock, kernel=lambda: cast("socket.socket", kernel))
    return run


def test_the_kernel_ends_it_and_iscsid_forgets_it(kernel: EndingKernel, tmp_path: Path) -> None:
    run = end(kernel, tmp_path / "lock")
    assert kernel.calls == [STOP, DESTROY_CONNECTION, DESTROY_SESSION]
    assert not kernel.session.exists()
    assert run.script == []


def test_a_session_that_the_kernel_keeps_is_an_error(kernel: EndingKernel, tmp_path: Path) -> None:
    kernel.busy = True
    with pytest.raises(Unavailable, match="did not end the session") as raised:
        end(kernel, tmp_path / "lock")
    assert raised.value.reason == "LOGOUT_TIMEOUT"
    assert kernel.session.exists()
