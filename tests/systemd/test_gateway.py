"""The gateway under a real systemd: its own process and user, and what it may do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import ctl, simulated_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

GATEWAY = "zfsilod-gateway.service"
JOIN = "/root/ops.join"
MAX_EXPOSURE = 1.0


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine that other hosts may reach, and the join file of an administrator."""
    with simulated_host() as machine:
        ctl(machine, "pki", "init", "--name", "localhost")
        issue = ("pki", "issue", "user", "ops", "--role", "admin")
        ctl(machine, *issue, "--address", "127.0.0.1", "--file", JOIN)
        machine.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
        yield machine


def show(sd: SystemdHost, unit: str, name: str) -> str:
    return sd.run("systemctl", "show", "-P", name, unit).stdout.strip()


def remote(sd: SystemdHost, *words: str) -> str:
    return ctl(sd, "-H", JOIN, *words).stdout


def test_a_call_over_mutual_tls(sd: SystemdHost) -> None:
    assert "admin ops (certificate " in remote(sd, "info")
    gateway, daemon = (show(sd, unit, "MainPID") for unit in (GATEWAY, "zfsilod.service"))
    assert gateway not in ("0", daemon)
    user = sd.run("ps", "-o", "user:20=", "-p", gateway).stdout.strip()
    assert user == "zfsilo-gateway"
    status = sd.read(f"/proc/{gateway}/status")
    assert "CapBnd:\t0000000000000000" in status


def test_a_restart_of_either_process(sd: SystemdHost) -> None:
    for unit in (GATEWAY, "zfsilod.service", GATEWAY):
        before = remote(sd, "info")
        sd.run("systemctl", "kill", "--signal=KILL", unit)
        assert remote(sd, "info") == before
        assert ctl(sd, "info").rc == 0


def test_local_sockets_work_without_the_gateway(sd: SystemdHost) -> None:
    sd.run("systemctl", "stop", "zfsilod-tcp.socket")
    try:
        assert show(sd, GATEWAY, "ActiveState") == "inactive"
        assert ctl(sd, "volume", "list").rc == 0
    finally:
        sd.run("systemctl", "start", "zfsilod-tcp.socket")


def test_all_stops_with_the_local_socket(sd: SystemdHost) -> None:
    """A client that connects again and again would otherwise start the daemon at once."""
    sd.run("systemctl", "enable", "zfsilod-csi.socket")
    sd.run("systemctl", "restart", "zfsilod.service")
    remote(sd, "info")
    units = ("zfsilod.socket", "zfsilod-tcp.socket", "zfsilod-relay.socket", "zfsilod-csi.socket")
    sd.run("systemctl", "stop", "zfsilod.socket")
    try:
        for unit in (*units, GATEWAY, "zfsilod.service"):
            assert show(sd, unit, "ActiveState") == "inactive"
    finally:
        sd.run("systemctl", "start", "zfsilod.socket", "zfsilod.service")
    for unit in units:
        assert show(sd, unit, "ActiveState") == "active"
    assert "admin ops (certificate " in remote(sd, "info")


def test_only_the_gateway_states_who_a_peer_is(sd: SystemdHost) -> None:
    assert sd.run("stat", "-c", "%U %a", "/run/zfsilo/gateway.sock").stdout == (
        "zfsilo-gateway 600\n"
    )
    sd.run("sh", "-c", "chmod 666 /run/zfsilo/gateway.sock")
    try:
        for uid in (0, 1000):
            answer = sd.run("/usr/bin/python3", "-c", FORGED, uid=uid)
            assert answer.stdout == "closed\n"
    finally:
        sd.run("chmod", "600", "/run/zfsilo/gateway.sock")
    assert "admin ops (certificate " in remote(sd, "info")


FORGED = """
import json, socket
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.settimeout(20)
link.connect("/run/zfsilo/gateway.sock")
try:
    link.send(json.dumps({"ask": "settings"}).encode())
    print(link.recv(1000) and "answered" or "closed")
except (BrokenPipeError, ConnectionResetError):
    print("closed")
"""


def test_the_sandbox_of_the_gateway(sd: SystemdHost) -> None:
    remote(sd, "info")
    rating = sd.run("systemd-analyze", "security", GATEWAY).stdout.splitlines()[-1]
    print(rating)
    assert float(rating.rpartition("service: ")[2].split()[0]) <= MAX_EXPOSURE
    probed = json.loads(sd.run("/usr/bin/python3", "-c", inside(sd)).stdout)
    assert probed == {
        "store": False,
        "configuration": False,
        "bus": False,
        "local socket": False,
        "private sockets": False,
        "interfaces": ["lo"],
    }


def inside(sd: SystemdHost) -> str:
    """Return a program that tells what the gateway's namespaces and user can reach."""
    return PROBE.replace("PID", show(sd, GATEWAY, "MainPID"))


PROBE = """
import json, os, socket, subprocess, sys
program = '''
import json, os, socket
def reaches(path):
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
        return True
    except OSError:
        return False
print(json.dumps({
    "store": os.access("/var/lib/zfsilo", os.X_OK),
    "configuration": os.access("/etc/zfsilo", os.X_OK),
    "bus": reaches("/run/dbus/system_bus_socket"),
    "local socket": reaches("/run/zfsilo/zfsilod.sock"),
    "private sockets": os.access("/run/zfsilo/private", os.X_OK),
    "interfaces": [name for _index, name in socket.if_nameindex()],
}))
'''
import pwd
uid = str(pwd.getpwnam("zfsilo-gateway").pw_uid)
enter = ["nsenter", "--target", "PID", "--mount", "--net"]
user = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--"]
sys.stdout.write(subprocess.run(
    [*enter, *user, "/usr/bin/python3", "-c", program], check=True, capture_output=True, text=True
).stdout)
"""
