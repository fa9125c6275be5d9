"""zfsilo-volume@.service under a real systemd: which failures are tried again, and its end."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import FACTS, ctl, facts, operations, simulated_host
from zfsilod.host.fake import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

JOIN = "/root/take.join"
IQN = f"iqn.2026-01.org.zfsilo:simulated.{hashlib.sha256(f'/{FACTS}'.encode()).hexdigest()[:12]}"
UNIT = "zfsilo-volume@far.service"
FILE = "/etc/zfsilo/volumes.d/far.toml"
WISH = 'server = "give"\nmount_path = "/srv/far"\n'
# One try, without five minutes for the server.
AT_ONCE = "[Service]\nExecStart=\nExecStart=/usr/bin/zfsiloctl up %i --wait 0\n"


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine that is a server, and its own client with a certificate that was revoked."""
    with simulated_host() as machine:
        ctl(machine, "pki", "init", "--name", "localhost")
        ctl(machine, "pki", "issue", "host", "take", "--address", "127.0.0.1", "--file", JOIN)
        machine.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
        ctl(machine, "join", JOIN, "--iqn", IQN)
        machine.write(f"/etc/systemd/system/{UNIT}.d/once.conf", AT_ONCE)
        machine.run("systemctl", "daemon-reload")
        yield machine


def outcome(sd: SystemdHost) -> list[str]:
    """Start the unit, and return its state, the exit code of `up`, and what follows."""
    assert sd.run("systemctl", "start", UNIT, check=False).rc != 0
    names = ("-P", "ExecMainStatus", "-P", "SubState")
    shown = sd.run("systemctl", "show", *names, UNIT).stdout.split()
    sd.run("systemctl", "stop", UNIT)
    sd.run("systemctl", "reset-failed", UNIT, check=False)
    return sorted(shown)


def test_a_server_that_does_not_answer_is_tried_again(sd: SystemdHost) -> None:
    sd.write(FILE, WISH)
    sd.run("systemctl", "stop", "zfsilod-tcp.socket")
    try:
        assert outcome(sd) == ["69", "auto-restart"]
    finally:
        sd.run("systemctl", "start", "zfsilod-tcp.socket")


def test_a_volume_that_its_server_does_not_have_is_tried_again(sd: SystemdHost) -> None:
    sd.write(FILE, WISH)
    assert outcome(sd) == ["69", "auto-restart"]


def test_an_invalid_file_ends_the_retries(sd: SystemdHost) -> None:
    sd.write(FILE, f"{WISH}colour = 'red'\n")
    assert outcome(sd) == ["78", "failed"]
    assert "status=78/CONFIG" in sd.journal()


def test_an_unknown_volume_ends_the_retries(sd: SystemdHost) -> None:
    sd.run("rm", FILE)
    assert outcome(sd) == ["66", "failed"]


def test_a_boot_does_not_wait_for_a_server(sd: SystemdHost) -> None:
    """A unit that needs the volume does; an enabled one would hold up multi-user.target."""
    sd.run("systemctl", "enable", UNIT)
    try:
        sd.run("systemctl", "daemon-reload")
        wants = sd.run("systemctl", "show", "-P", "Wants", "multi-user.target").stdout
        after = sd.run("systemctl", "show", "-P", "After", "multi-user.target").stdout
        assert UNIT in wants
        assert UNIT not in after
        before = sd.run("systemctl", "show", "-P", "Before", UNIT).stdout.split()
        assert before == ["shutdown.target"]
    finally:
        sd.run("systemctl", "disable", UNIT)


def test_a_shutdown_does_not_wait_for_a_lost_server(sd: SystemdHost) -> None:
    """The unit takes its volume down; the daemon ends the session of one without a unit."""
    sd.write(FILE, WISH)
    for name in ("far", "manual"):
        ctl(sd, "volume", "create", name, "1G", "--host", "take")
    sd.run("systemctl", "start", UNIT)
    ctl(sd, "volume", "connect", "manual", "--server", "give")
    assert len(sessions(sd)) == 2
    known = Facts(sd.root / FACTS)
    for name, fact in sessions(sd).items():
        known.effect(name, fact | {"lost": True})
    sd.reboot()
    states = {operation["kind"]: operation["state"] for operation in operations(sd)}
    for kind in ("detach", "end-wait"):
        assert states[kind] == "OPERATION_STATE_DONE"


def sessions(sd: SystemdHost) -> dict[str, dict[str, object]]:
    return {name: fact for name, fact in facts(sd).items() if name.startswith("session:")}


def test_a_refused_certificate_ends_the_retries(sd: SystemdHost) -> None:
    sd.write(FILE, WISH)
    ctl(sd, "pki", "revoke", "host/take")
    assert outcome(sd) == ["77", "failed"]
    assert "status=77/NOPERM" in sd.journal()
