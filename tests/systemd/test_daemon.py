"""The daemon under a real systemd: units, activation, access, configuration, key and sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import (
    MANAGER,
    ctl,
    delete_volumes,
    light_fuse,
    operations,
    simulated_host,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

MAX_EXPOSURE = 1.6  # 0.1 of it for AF_NETLINK: the kernel tells there when a session is lost
SCRAPE = """
import socket
metrics = socket.socket(socket.AF_UNIX)
metrics.connect("/run/zfsilo/metrics.sock")
metrics.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
print(metrics.makefile().read())
"""


CLOCK = """
import asyncio, logging, sys
sys.path.insert(0, "/usr/lib/zfsilo")
from zfsilod.systemd.bus import connect
from zfsilod.systemd.time_service import SystemClock

async def ask():
    print(await SystemClock(await connect(None)).is_synchronised())

logging.basicConfig(stream=sys.stdout)
asyncio.run(ask())
"""


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine whose zfsilod has a simulated host."""
    with simulated_host() as machine:
        yield machine


@pytest.fixture(autouse=True)
def no_volumes(sd: SystemdHost) -> Iterator[None]:
    """Delete the volumes after each test."""
    yield
    delete_volumes(sd)


def test_systemd_analyze_accepts_the_units(sd: SystemdHost) -> None:
    sockets = [f"zfsilod{name}.socket" for name in ("", "-tcp", "-csi", "-metrics", "-relay")]
    units = ["zfsilod.service", "zfsilod-gateway.service", *sockets, "zfsilo.slice"]
    units += ["zfsilo-renew.service", "zfsilo-renew.timer", "zfsilo-limits.service"]
    instances = ("rollback", "snapshot", "volume")
    templates = [f"zfsilo-{name}@x.service" for name in instances]
    paths = [f"/usr/lib/systemd/system/{name}" for name in (*units, *templates)]
    verified = sd.run("systemd-analyze", "verify", "--man=no", *paths)
    assert verified.stdout + verified.stderr == ""


def test_an_enabled_socket_starts_at_a_restart_of_the_service(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    for socket in ("zfsilod-metrics.socket", "zfsilod-tcp.socket"):
        sd.run("systemctl", "enable", socket)
    sd.run("systemctl", "restart", "zfsilod.service")
    try:
        assert sd.run("systemctl", "is-active", "zfsilod-tcp.socket").stdout == "active\n"
        text = sd.run("/usr/bin/python3", "-c", SCRAPE).stdout
        assert 'zfsilo_volumes{state="created"} 1.0' in text
    finally:
        for socket in ("zfsilod-metrics.socket", "zfsilod-tcp.socket"):
            sd.run("systemctl", "disable", "--now", socket, check=False)


def test_timedated_answers_in_the_sandbox_of_the_daemon(sd: SystemdHost) -> None:
    sandbox = ("-p", "ProtectClock=yes", "-p", "PrivateDevices=yes", "-p", "NoNewPrivileges=yes")
    asked = sd.run("systemd-run", "--wait", "--pipe", *sandbox, "/usr/bin/python3", "-c", CLOCK)
    wanted = sd.run("timedatectl", "show", "--property=NTPSynchronized", "--value").stdout
    assert asked.stdout == {"yes\n": "True\n", "no\n": "False\n"}[wanted]


def test_d_bus_activates_the_daemon(sd: SystemdHost) -> None:
    sd.run("systemctl", "stop", "zfsilod.service")
    answer = sd.run("busctl", "call", *MANAGER, "GetCapacity", "s", "")
    assert answer.stdout.startswith("tt ")


def test_the_socket_activates_the_daemon(sd: SystemdHost) -> None:
    sd.run("systemctl", "stop", "zfsilod.service")
    assert "Version" in ctl(sd, "info").stdout
    assert sd.run("systemctl", "is-active", "zfsilod.service").stdout.strip() == "active"


def test_polkit_allows_root_and_the_group(sd: SystemdHost) -> None:
    ask = "pkcheck --action-id org.zfsilo1.destroy --process $$"
    assert sd.run("sh", "-c", ask).rc == 0
    refused = sd.run("sh", "-c", f"{ask}; exit $?", uid=1000, check=False)
    assert refused.rc != 0
    assert "requires authentication" in refused.stderr
    sd.run("groupadd", "--force", "zfsilo")
    sd.run("useradd", "--groups", "zfsilo", "member")
    call = f"busctl call {' '.join(MANAGER)} GetCapacity s ''"
    allowed = sd.run("runuser", "-u", "member", "--", "sh", "-c", call)
    assert allowed.stdout.startswith("tt ")
    sd.run("userdel", "member")


def test_others_than_root_are_refused(sd: SystemdHost) -> None:
    bus = sd.run("busctl", "call", *MANAGER, "GetCapacity", "s", "", uid=1000, check=False)
    assert bus.rc != 0
    assert "uid 1000 needs a password for org.zfsilo1.read" in bus.stderr
    socket = sd.run("zfsiloctl", "info", uid=1000, check=False)
    assert socket.rc == 6
    assert "Traceback" not in socket.stderr


def test_a_wrong_configuration_is_refused_in_one_sentence(sd: SystemdHost) -> None:
    sd.write("/etc/zfsilo/zfsilod.toml.d/wrong.toml", "[server]\nrooot = 'tank'\n")
    refused = sd.run("zfsilod", "--check-config", check=False)
    sd.run("rm", "/etc/zfsilo/zfsilod.toml.d/wrong.toml")
    assert refused.rc == 78
    assert refused.stderr.count("\n") == 1
    assert "wrong.toml: [server] has no key rooot" in refused.stderr


def test_changes_are_audited(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    ctl(sd, "volume", "publish", "data", "nobody", check=False)
    sd.run("journalctl", "--sync")
    records = json.loads(ctl(sd, "audit", "--json").stdout)["records"]
    refused, created = [record for record in records if record["subject"] == "volumes/data"][:2]
    assert (created["action"], created["outcome"]) == ("create", "DONE")
    assert (refused["action"], refused["outcome"]) == ("PublishVolume", "NOT_FOUND")
    assert refused["caller"] == "uid 0 (unix)"


def test_the_key_may_be_an_encrypted_credential(sd: SystemdHost) -> None:
    encrypt = "systemd-creds encrypt --name=zfsilo.key - /etc/credstore.encrypted/zfsilo.key"
    sd.run("mkdir", "-p", "/etc/credstore.encrypted")
    sd.run("sh", "-c", f"head -c 32 /dev/urandom | {encrypt}")
    sd.run("rm", "-f", "/var/lib/zfsilo/key")
    sd.run("systemctl", "restart", "zfsilod.service")
    try:
        ctl(sd, "volume", "create", "data", "1G")
        ctl(sd, "volume", "publish", "data", "take")
        ctl(sd, "rotate-secrets", "data")
        light_fuse(sd, 2, how="kill")
        assert ctl(sd, "rotate-secrets", "data", check=False).rc != 0
        assert operations(sd)[-1]["state"].endswith("ROLLED_BACK")
        ctl(sd, "volume", "sync", "data")
        assert sd.run("ls", "/var/lib/zfsilo/key", check=False).rc != 0
        ctl(sd, "volume", "unpublish", "data", "take")
        # The units of these operations get the key too: a worker without it would make another.
        ctl(sd, "volume", "create", "secret", "1G", "--encrypt")
        ctl(sd, "volume", "rotate-key", "secret")
        ctl(sd, "volume", "publish", "secret", "take")
        ctl(sd, "volume", "delete", "secret", "--unpublish", "--yes")
        assert sd.run("ls", "/var/lib/zfsilo/key", check=False).rc != 0
    finally:
        sd.run("rm", "/etc/credstore.encrypted/zfsilo.key")
        sd.run("systemctl", "restart", "zfsilod.service")


def test_the_sandbox_of_the_daemon(sd: SystemdHost) -> None:
    details = sd.run("systemd-analyze", "security", "--json=short", "zfsilod.service")
    rating = sd.run("systemd-analyze", "security", "zfsilod.service").stdout.splitlines()[-1]
    print(rating)
    assert float(rating.rpartition("service: ")[2].split()[0]) <= MAX_EXPOSURE
    assert json.loads(details.stdout)
    capabilities = sd.run("systemctl", "show", "-p", "CapabilityBoundingSet", "zfsilod.service")
    assert capabilities.stdout.strip() == "CapabilityBoundingSet="
