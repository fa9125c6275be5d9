"""The units of a stream to a peer, under a real systemd: that of zfs send, and that of TLS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.systemd.simulated import FACTS, ctl, delete_volumes, simulated_host, wait_until
from zfsilod.host.fake import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.namespace import SystemdHost

UNITS = (
    "systemctl",
    "list-units",
    "--all",
    "--no-legend",
    "--plain",
    "zfsilo-send-*",
    "zfsilo-dial-*",
)
PEER = "/srv/peer"
ADDRESS = "127.0.0.1:9760"
ON_PEER = ("env", f"ZFSILO_SIMULATE={PEER}", "zfsiloctl")
JOIN = "/root/peer.join"


@pytest.fixture(scope="module")
def sd() -> Iterator[SystemdHost]:
    """A machine whose zfsilod has joined another one, which is a process of the same machine."""
    with simulated_host() as machine:
        machine.write(f"{PEER}/etc/zfsilod.toml", '[daemon]\nhost_id = "other"\n')
        simulate = ("zfsilod", "--simulate", PEER, "--tcp", ADDRESS)
        unit = f"[Service]\nExecStart=/usr/bin/{' '.join(simulate)}\n"
        machine.write("/etc/systemd/system/peer.service", unit)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "peer.service")
        wait_until(
            lambda: machine.run(*ON_PEER, "info", check=False).rc == 0, "the peer has started"
        )
        issue = ("pki", "issue", "user", "give", "--role", "replica", "--address", ADDRESS)
        machine.run(*ON_PEER, *issue, "--file", JOIN)
        assert "as its peer" in ctl(machine, "join", JOIN).stdout
        yield machine


def show(sd: SystemdHost, unit: str, name: str) -> str:
    return sd.run("systemctl", "show", "-P", name, unit).stdout.strip()


def write(sd: SystemdHost, blocks: dict[str, str]) -> None:
    """Set the blocks of the volume that are in use."""
    facts = Facts(sd.root / FACTS)
    facts.effect(f"blocks:{facts.get('zvol:tank/zfsilo/data')['uid']}", blocks)


def received(sd: SystemdHost) -> dict[str, str]:
    """Return the blocks that the peer has."""
    facts = Facts(sd.root / PEER.lstrip("/") / "facts.json")
    uid = facts.get("zvol:tank/zfsilo/data")["uid"]
    return dict(facts.get(f"replica-blocks:{uid}"))


def test_a_stream_and_its_units(sd: SystemdHost) -> None:
    ctl(sd, "volume", "create", "data", "1G")
    write(sd, {"1": "a", "2": "b"})
    assert ctl(sd, "volume", "replicate", "data", "--to", "other").stdout == (
        "replicate data to other: done\n"
    )
    assert received(sd) == {"1": "a", "2": "b"}
    # Slow enough to be looked at.
    write(sd, {str(number): "x" * 4000 for number in range(120)})
    operation = ctl(
        sd, "volume", "replicate", "data", "--to", "other", "--rate", "256K", "--no-wait"
    ).stdout.strip()
    wait_until(
        lambda: "sent," in ctl(sd, "operation", "show", operation, check=False).stdout,
        "the stream has begun",
    )
    units = [line.split()[0] for line in sd.run(*UNITS).stdout.splitlines()]
    (dialer,) = (unit for unit in units if unit.startswith("zfsilo-dial-"))
    status = sd.read(f"/proc/{show(sd, dialer, 'MainPID')}/status")
    assert "CapBnd:\t0000000000000000" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Uid:\t0" not in status
    assert "NoNewPrivs:\t1" in status
    print(sd.run("systemd-analyze", "security", "--no-pager", dialer, check=False).stdout)
    sd.run("systemctl", "kill", "--signal=KILL", dialer)
    ctl(sd, "operation", "wait", operation)
    shown = json.loads(ctl(sd, "operation", "show", operation, "--json").stdout)
    assert shown["state"] == "OPERATION_STATE_DONE"
    assert len(received(sd)) == 120
    wait_until(lambda: sd.run(*UNITS).stdout == "", "the units are gone")


def test_a_policy_and_its_timer(sd: SystemdHost) -> None:
    write(sd, {"3": "by a timer"})
    policy = ("replication", "create", "often", "--to", "other", "--calendar", "*:*:0/2")
    ctl(sd, *policy, "--volume", "data")
    wait_until(lambda: received(sd) == {"3": "by a timer"}, "the timer runs the policy")
    service = "zfsilo-replicate@often.service"
    ctl(sd, "replication", "delete", "often")
    timers = ("systemctl", "list-units", "--no-legend", "--plain", "zfsilo-replicate@*.timer")
    wait_until(lambda: not sd.run(*timers).stdout, "the timer is stopped")
    wait_until(lambda: show(sd, service, "ActiveState") != "activating", "the last run has ended")
    assert show(sd, service, "TimeoutStartUSec") == "infinity"
    assert sd.run("systemctl", "start", service, check=False).rc != 0
    assert show(sd, service, "Result") == "exit-code"
    sd.run("systemctl", "reset-failed", service)


@pytest.mark.parametrize("cut", ["zfsilo-send-*", "zfsilod.service"])
def test_a_stream_goes_on(sd: SystemdHost, cut: str) -> None:
    write(sd, {str(number): cut * 300 for number in range(120)})
    operation = ctl(
        sd, "volume", "replicate", "data", "--to", "other", "--rate", "256K", "--no-wait"
    ).stdout.strip()
    wait_until(
        lambda: "sent," in ctl(sd, "operation", "show", operation, check=False).stdout,
        "the stream has begun",
    )
    if cut.endswith("*"):
        sd.run("systemctl", "kill", "--signal=KILL", cut)
    else:
        sd.run("systemctl", "restart", cut)
    ctl(sd, "operation", "wait", operation)
    shown = json.loads(ctl(sd, "operation", "show", operation, "--json").stdout)
    assert shown["state"] == "OPERATION_STATE_DONE"
    assert received(sd)["7"] == cut * 300
    wait_until(lambda: sd.run(*UNITS).stdout == "", "the units are gone")


@pytest.mark.parametrize("cut", ["", "zfsilod-gateway.service", "zfsilo-op-*", "zfsilod.service"])
def test_a_stream_through_the_gateway(sd: SystemdHost, cut: str) -> None:
    """The peer sends to the daemon whose workers and gateway are units."""
    if not cut:
        ctl(sd, "pki", "init", "--name", "localhost")
        sd.run("systemctl", "enable", "--now", "zfsilod-tcp.socket")
        issue = ("pki", "issue", "user", "other", "--role", "replica", "--address", "127.0.0.1")
        ctl(sd, *issue, "--file", "/root/give.join")
        sd.run(*ON_PEER, "join", "/root/give.join")
        sd.run(*ON_PEER, "volume", "create", "back", "1G")
    there = Facts(sd.root / PEER.lstrip("/") / "facts.json")
    blocks = {str(number): f"{cut} {number}" * 200 for number in range(120)}
    uid = there.get("zvol:tank/zfsilo/back")["uid"]
    there.effect(f"blocks:{uid}", blocks)
    words = ("volume", "replicate", "back", "--to", "give", "--rate", "256K", "--no-wait")
    operation = sd.run(*ON_PEER, *words).stdout.strip()
    show_it = (*ON_PEER, "operation", "show", operation)
    wait_until(lambda: "sent," in sd.run(*show_it, check=False).stdout, "the stream has begun")
    if cut:
        sd.run("systemctl", "kill", "--signal=KILL", cut)
    sd.run(*ON_PEER, "operation", "wait", operation, timeout_s=60)
    assert Facts(sd.root / FACTS).get(f"replica-blocks:{uid}") == blocks
    assert "healthy, a replica" in ctl(sd, "volume", "show", "back").stdout


def test_the_end(sd: SystemdHost) -> None:
    ctl(sd, "volume", "replicate", "data", "--to", "other", "--end")
    sd.run(*ON_PEER, "volume", "delete", "data", "--yes")
    ctl(sd, "volume", "delete", "back", "--yes")
    delete_volumes(sd)
    sd.run("systemctl", "stop", "peer.service")
