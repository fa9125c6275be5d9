"""The checks that run after every test of tier 2 detect leaks and secrets."""

import base64
import uuid
from collections.abc import Iterator

import pytest

from tests.systemd.leak_check import leaks, scan_secrets
from tests.systemd.namespace import SystemdHost

SECRET = b"correct-horse-battery"


@pytest.fixture(scope="module")
def host() -> Iterator[SystemdHost]:
    """A bare machine."""
    with SystemdHost() as machine:
        yield machine


def test_a_clean_machine_leaks_nothing(host: SystemdHost) -> None:
    assert leaks(host, grace_s=0) == []


def test_leaks_of_units(host: SystemdHost) -> None:
    host.run("systemd-run", "--unit=zfsilo-op-1.service", "sleep", "60")
    host.run("systemd-run", "--unit=zfsilo-fails.service", "--wait", "false", check=False)
    host.run("systemd-run", "--unit=other.service", "--wait", "false", check=False)
    left = leaks(host, grace_s=0)
    assert "unit zfsilo-op-1.service is active (running)" in left
    assert "unit zfsilo-fails.service is failed (failed)" in left
    assert len(left) == 2
    host.run("systemctl", "stop", "zfsilo-op-1.service")
    host.run("systemctl", "reset-failed")


# systemd-run returns before the shell has become the worker.
RENAMED = "until grep -qs '^zfsilo-worker' /proc/[0-9]*/cmdline; do sleep 0.05; done"


def test_leaks_of_devices_mounts_and_processes(host: SystemdHost) -> None:
    host.run("sh", "-c", "truncate -s 8M /tmp/disk && losetup --find /tmp/disk")
    host.run("mount", "-t", "tmpfs", "none", "/mnt")
    host.run("systemd-run", "--unit=x", "sh", "-c", "exec -a zfsilo-worker sleep 60", check=False)
    host.run("systemd-run", "--unit=y", "bash", "-c", "exec -a zfsilo-worker sleep 60")
    host.run("sh", "-c", RENAMED)
    with host.start("sleep", "60") as process:
        left = leaks(host, grace_s=0)
        process.kill()
    assert any(leak.endswith("is attached to /tmp/disk") for leak in left)
    assert "tmpfs is mounted on /mnt" in left
    assert any(leak.endswith("runs: zfsilo-worker 60") for leak in left)
    assert any(leak.endswith("started by the test, still runs") for leak in left)
    host.power_cut()
    assert leaks(host, grace_s=0) == []


def test_a_unit_that_is_being_collected_is_not_a_leak(host: SystemdHost) -> None:
    host.run("systemd-run", "--collect", "--unit=zfsilo-op-2.service", "sleep", "0.2")
    assert leaks(host) == []


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("logger password={}", "(MESSAGE=)"),
        ("systemd-run -q --unit=zfsilo-a --description={} sleep 60", "unit property Description"),
        ("systemd-run -q --unit=zfsilo-b -pEnvironment=A={} sleep 60", "environ of "),
        ("systemd-run -q --unit=c sh -c 'sleep 60; {}'", "argv of "),
        ("systemd-run -q --unit=d sh -c 'sleep 60; {}'", "/run/systemd/transient/d.service"),
        ("echo {} >/var/lib/core", "/var/lib/core"),
        ("truncate -s 1G /var/x; printf {} >>/var/x; truncate -s 2G /var/x", "/var/x"),
        ("echo {} >/dev/shm/x", "/dev/shm/x"),
    ],
)
def test_secrets_are_found(host: SystemdHost, command: str, place: str) -> None:
    secret = uuid.uuid4().hex
    host.run("sh", "-c", command.replace("{}", secret))
    hits = scan_secrets(host, [b"never-said-anywhere", secret.encode()])
    assert any(hit.startswith("secret 1 in ") and place in hit for hit in hits), hits
    assert not any("secret 0" in hit or secret in hit for hit in hits)


def test_encoded_secrets_are_found(host: SystemdHost) -> None:
    places = {
        "/var/lib/basic-0": base64.b64encode(b"user:" + SECRET),
        "/var/lib/basic-1": base64.b64encode(b"u:" + SECRET + b":x"),
        "/var/lib/basic-2": base64.urlsafe_b64encode(SECRET),
        "/var/lib/hex": (b"x" + SECRET).hex().encode(),
    }
    for path, content in places.items():
        host.write(path, content.decode())
    assert scan_secrets(host, [SECRET]) == [f"secret 0 in {path}" for path in places]


def test_an_allowed_place_may_hold_secrets(host: SystemdHost) -> None:
    secret = uuid.uuid4().hex
    host.write("/var/lib/zfsilo/allowed", secret)
    assert scan_secrets(host, [secret.encode()], allowed=["/var/lib/zfsilo/"]) == []
