"""New secrets for live sessions: a temporary sysfs, and a fake kernel behind netlink."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, cast

import pytest

from tests.host.doubles import TARGET, FakeSys, ScriptedRunner, chap
from zfsilod.host import session_secrets as module
from zfsilod.host.disks import Disks, auth_parameters
from zfsilod.host.session_secrets import LiveSessionSecrets
from zfsilod.model.errors import CommandFailed, Unavailable

if TYPE_CHECKING:
    import socket
    from pathlib import Path

HANDLE = 18446744072639369504
RESTART = "systemctl restart --job-mode=ignore-dependencies iscsid.service"
EVENT_BYTES = 56  # struct iscsi_uevent
NAMES = {22: "username", 23: "username_in", 24: "password", 25: "password_in"}
OLD, NEW = {TARGET: chap(1)}, {TARGET: chap(2)}


class Kernel:
    """Receives SET_PARAM as struct iscsi_uevent, and writes the parameter to sysfs."""

    def __init__(self, sys: Path) -> None:
        self.sys = sys
        self.error = 0
        self.taken: list[str] = []

    def send(self, message: bytes) -> None:
        length, kind, flags = struct.unpack_from("=IHH", message)
        assert (length, kind, flags) == (len(message), 16, 1)
        event, error, handle, sid, cid, parameter, size = struct.unpack_from(
            "=IIQIIII", message, 16
        )
        assert (event, error, handle, cid) == (16, 0, HANDLE, 0)
        value = message[16 + EVENT_BYTES :][:size]
        assert value.endswith(b"\0"), "the kernel takes a string"
        assert len(message) % 4 == 0
        if not self.error:
            self.taken.append(NAMES[parameter])
            path = self.sys / f"class/iscsi_session/session{sid}" / NAMES[parameter]
            path.write_bytes(value[:-1] + b"\n")

    def recv(self, _size: int) -> bytes:
        return struct.pack("=IHHII", 68, 16, 0, 0, 0) + struct.pack(
            "=IIQ24xi4x", 16, 0, HANDLE, -self.error
        )

    def close(self) -> None:
        """Do nothing; a socket has this method."""


class SessionHost:
    """A client with a session in a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.fake = FakeSys(root)
        self.session = self.login(1)
        transport = self.fake.sys / "class/iscsi_transport/tcp"
        transport.mkdir(parents=True)
        (transport / "handle").write_text(f"{HANDLE}\n")
        self.kernel = Kernel(self.fake.sys)
        self.outdated = root / "outdated"
        self.run = ScriptedRunner((RESTART, 0, "", ""))
        self.run.effects[RESTART] = self.reconnect
        self.secrets = LiveSessionSecrets(
            self.run,
            Disks(self.fake.sys, self.fake.dev, self.fake.run),
            outdated=self.outdated,
            lock=root / "lock",
            connect=lambda: cast("socket.socket", self.kernel),
        )

    def login(self, sid: int) -> Path:
        folder = self.fake.login(sid=sid, disk=f"sd{sid}", number=f"8:{16 * (sid - 1)}")
        for name, value in auth_parameters(chap(1)).items():
            (folder / name).write_text(f"{value}\n")
        connection = self.fake.sys / f"class/iscsi_connection/connection{sid}:0"
        connection.mkdir(parents=True)
        (connection / "local_port").write_text("40000\n")
        return folder

    def reconnect(self) -> None:
        """Reconnect the session, as an iscsid does after its restart."""
        assert self.outdated.exists()
        for port in self.fake.sys.glob("class/iscsi_connection/*/local_port"):
            port.write_text("40001\n")


@pytest.fixture
def client(tmp_path: Path) -> SessionHost:
    return SessionHost(tmp_path)


def test_kernel_and_iscsid_get_the_secrets(client: SessionHost) -> None:
    assert client.secrets.are_set(OLD)
    assert not client.secrets.are_set(NEW)
    client.secrets.set(NEW)
    assert client.secrets.are_set(NEW)
    assert sorted(client.kernel.taken) == sorted(NAMES.values())
    assert not client.outdated.exists()
    assert client.run.script == []


def test_each_session_of_a_disk_gets_the_secrets(client: SessionHost) -> None:
    client.login(2)
    client.secrets.set(NEW)
    assert client.secrets.are_set(NEW)
    assert sorted(client.kernel.taken) == sorted([*NAMES.values()] * 2)


def test_secrets_are_not_set_until_iscsid_has_them(client: SessionHost) -> None:
    client.run.script = [(RESTART, 1, "", "no such unit")]
    client.run.effects.clear()
    with pytest.raises(CommandFailed):
        client.secrets.set(NEW)
    assert not client.secrets.are_set(NEW)
    client.run.script = [(RESTART, 0, "", "")]
    client.run.effects[RESTART] = client.reconnect
    client.secrets.set(NEW)
    assert client.secrets.are_set(NEW)


def test_a_lost_session_is_left_out(client: SessionHost) -> None:
    (client.session / "state").write_text("FAILED\n")
    client.secrets.set(NEW)
    assert client.secrets.are_set(NEW)
    assert (client.kernel.taken, len(client.run.script)) == ([], 1)
    assert client.secrets.are_set({"iqn.2026-01.org.zfsilo:give:none": chap(2)})


def test_a_refusal_of_the_kernel_is_reported_without_the_secret(client: SessionHost) -> None:
    client.kernel.error = errno.EPERM
    with pytest.raises(Unavailable, match="refused the new username") as caught:
        client.secrets.set(NEW)
    assert "initiator-2" not in f"{caught.value.message} {caught.value.facts}"
    assert len(client.run.script) == 1, "iscsid was restarted without need"


def test_a_session_that_is_lost_meanwhile_is_no_error(client: SessionHost) -> None:
    client.kernel.error = errno.EINVAL
    send = client.kernel.send

    def lose(message: bytes) -> None:
        (client.session / "state").write_text("FAILED\n")
        send(message)

    client.kernel.send = lose  # type: ignore[method-assign]
    client.run.effects[RESTART] = lambda: client.fake.logout(client.session)
    client.secrets.set(NEW)
    assert client.secrets.are_set(NEW)


def test_secrets_that_cannot_be_read_are_unknown(client: SessionHost) -> None:
    (client.session / "password").unlink()
    (client.session / "password").mkdir()
    with pytest.raises(Unavailable, match="does not show the secrets"):
        client.secrets.are_set(OLD)


@pytest.mark.parametrize("port", ["40000\n", ""], ids=["not disconnected", "not reconnected"])
def test_a_session_that_does_not_return_is_logged(
    client: SessionHost,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    port: str,
) -> None:
    monkeypatch.setattr(module, "RECONNECT_S", 0.1)
    file = client.fake.sys / "class/iscsi_connection/connection1:0/local_port"
    client.run.effects[RESTART] = lambda: file.write_text(port)
    client.secrets.set(NEW)
    assert "not all iSCSI sessions were reconnected" in capsys.readouterr().err
    assert client.secrets.are_set(NEW)
